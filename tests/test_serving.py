"""The sketch of a server in `benchmarks/slots.py`: who stands in the batch beside a request changes nothing of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from texts import text_model

import cmjax

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def sketch() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import slots

    return slots


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    pipe = text_model()
    lora = cmjax.lora.new(pipe, rank=2, targets=("attn2.to_k", "attn2.to_v", "conv1"))
    rng = np.random.default_rng(0)
    return pipe, jax.tree.map(lambda leaf: np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape).astype("f"), lora)


def mixed(sketch: Any, many: int) -> list[Any]:
    """Requests that have nothing in common."""
    rng = np.random.default_rng(1)
    return [
        sketch.Request(
            prompt=str(rng.choice(["red fox", "blue fox blue", "a"])),
            steps=int(rng.integers(1, sketch.MOST + 1)),
            eta=float(rng.uniform()),
            guidance=None if i % 2 else float(rng.uniform(1, 4)),
            scale=float(rng.uniform()),
            seed=i,
            negative="" if i % 4 else "blue",
        )
        for i in range(many)
    ]


def serve(server: Any, requests: list[Any]) -> dict[Any, np.ndarray]:
    """Let requests in one a tick, as slots become free."""
    waiting, drawn = list(requests), {}
    while waiting or server.is_busy:
        if waiting and server.fits(waiting[0]):
            server.enter(waiting.pop(0))
        drawn |= dict(server.tick())
    return drawn


def grey_levels(picture: np.ndarray) -> np.ndarray:
    return np.round(127.5 * np.clip(picture, -1, 1) + 127.5)


# ---- what the host does, without a device ----------------------------------------------------------------------------


@pytest.fixture
def steps_taken(sketch: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The slots of each tick, none of which computes anything."""
    ticks: list[list[int]] = []

    def tick(pipe: Any, lora: Any, slots: Any, rows: np.ndarray) -> Any:
        ticks.append(rows.tolist())
        return slots

    monkeypatch.setattr(sketch, "tick", tick)
    monkeypatch.setattr(sketch, "put", lambda slots, i, row: slots)
    monkeypatch.setattr(sketch, "decode", lambda pipe, x, i: x)
    nobody = sketch.Slots(cmjax.tcd.init(cmjax.tcd.TCDConfig(), 1), *[np.zeros(())] * 6)
    monkeypatch.setattr(sketch.Server, "_row", lambda *_: nobody)
    return ticks


def test_requests_leave_at_their_own_end_and_ticks_are_as_small_as_they_can_be(sketch: Any, steps_taken: Any) -> None:
    pipe = SimpleNamespace(config=cmjax.tcd.TCDConfig())
    server = sketch.Server(pipe, None, sizes=(1, 2, 4))
    long, short, guided = (sketch.Request("", steps=n, guidance=w) for n, w in ((4, None), (1, None), (2, 3.0)))
    server.enter(long)
    server.enter(short)
    assert server.fits(guided)
    assert [request for request, _ in server.tick()] == [short]
    server.enter(guided)
    assert server.fits(short) and not server.fits(guided)
    assert server.tick() == []
    assert [request for request, _ in server.tick()] == [guided]
    assert [request for request, _ in server.tick()] == [long]
    assert not server.is_busy and sorted(server.free) == [0, 1, 2, 3]
    assert [len(rows) for rows in steps_taken] == [2, 4, 4, 1]
    assert [rows.count(4) for rows in steps_taken] == [0, 1, 1, 0]  # the slot of nobody fills up
    assert all(len(set(rows) - {4}) == len(rows) - rows.count(4) for rows in steps_taken)


def test_a_whole_batch_lets_nobody_in_or_out_before_its_end(sketch: Any, steps_taken: Any) -> None:
    server = sketch.Server(SimpleNamespace(config=cmjax.tcd.TCDConfig()), None, sizes=(2,), whole=True)
    long, short = sketch.Request("", steps=3), sketch.Request("", steps=1)
    server.enter(short)
    assert server.fits(long)
    server.enter(long)
    assert server.tick() == [] == server.tick() and not server.fits(short)
    assert [request for request, _ in server.tick()] == [short, long]
    assert server.fits(short) and not server.is_busy


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_picture_of_a_mixed_batch_is_the_one_drawn_alone_and_no_mix_compiles(sketch: Any, model: Any) -> None:
    sizes, requests = (2, 5), mixed(sketch, 8)
    programs = sketch.begin, sketch.put, sketch.tick, sketch.decode
    server, alone = sketch.Server(*model, sizes), sketch.Alone(*model)
    server.warm()
    before = [program._cache_size() for program in programs]
    drawn = serve(server, requests)
    together = serve(sketch.Server(*model, sizes, whole=True), requests)
    assert [program._cache_size() for program in programs] == before == [1, 1, 2, 1]
    assert len(drawn) == len(together) == len(requests)
    for request in requests:
        expected = alone.draw(request)
        assert np.isfinite(expected).all() and expected.std() > 0.01
        for found in (drawn, together):
            assert np.abs(grey_levels(found[request]) - grey_levels(expected)).max() <= 1, request
    assert sketch.draw_alone._cache_size() == 2
