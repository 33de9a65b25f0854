"""The house rules of the tests: eight CPU devices, no silent promotion in our own arithmetic, no warning from cmjax."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import environment  # first: it sets what JAX reads
import jax
import pytest
from _pytest.doctest import DoctestModule

# Where only our own functions run. Elsewhere flax and optax promote freely (Adam fails when it may not).
STRICT = (
    "samplers",
    "test_editing",
    "test_guidance",
    "test_noises",
    "test_padded",
    "test_parameterization",
    "test_random",
    "test_sampling",
    "test_structs",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run everything, including what takes minutes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error:::cmjax")


def pytest_unconfigure() -> None:
    if environment.CACHE is not None:
        environment.CACHE.cleanup()


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Tests hold no doctests: what they share would be imported a second time, and all of it searched."""
    return [collector for collector in (yield) if not isinstance(collector, DoctestModule)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="takes minutes; run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not go through it again and again.

    Nor need it look whenever there are 700 new objects: tracing makes more than that at once, and few cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(scope="module", autouse=True)
def _forget(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drop a module's compiled programs after it, so that memory does not grow."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _strict(request: pytest.FixtureRequest) -> Iterator[None]:
    place = Path(request.node.path).relative_to(Path(__file__).parent) if _is_ours(request.node.path) else Path()
    with contextlib.ExitStack() as stack:
        if place.parts and place.parts[0].removesuffix(".py") in STRICT:
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
            stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield


def _is_ours(path: Path) -> bool:
    return Path(__file__).parent in Path(path).parents
