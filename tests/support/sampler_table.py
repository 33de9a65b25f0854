"""The guide's table of all samplers, made from the code: `python tests/support/sampler_table.py` writes it anew.

Words and formulas are the first lines of the modules' and of `renoise`'s docstrings; the rest is measured on a path of
four steps of each sampler's default config.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax.samplers import Prediction

__all__ = ["PAGE", "TABLE", "table"]

PAGE = Path(__file__).parents[2] / "notebooks" / "which_sampler.md"
HEAD = ("sampler", "its step", "x' =", "x is", "remembers", "fresh noise", "further arguments of `init`")
TABLE = re.compile(rf"^{re.escape('| ' + ' | '.join(HEAD))} \|\n(?:\|.*\n)+", re.MULTILINE)


def table() -> str:
    """A row for each sampler of `samplers.ALL`."""
    rows = [HEAD, ("---",) * len(HEAD), *map(_row, cmjax.samplers.ALL)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(sampler: ModuleType) -> tuple[str, ...]:
    state = sampler.init(sampler.Config(), 4)
    alpha, sigma, fresh = (np.asarray(values) for values in _along(state))
    words = _first_line(sampler).partition(": ")[2].rstrip(".")
    name = sampler.__name__.rpartition(".")[2]
    kind = _kind(alpha, sigma, np.asarray(state.timesteps))
    return f"`{name}`", words, _formula(sampler), kind, _memory(state), _noise(fresh), _arguments(sampler)


@jax.jit
def _along(state: Any) -> Any:
    """The rates, and the weight of fresh noise, at each step, f32[n] each."""

    def at(index: jax.Array) -> tuple[jax.Array, ...]:
        now, nothing = state.replace(index=index), jnp.zeros((1, 1), jnp.float32)
        return *now.rates(), now.renoise(Prediction(nothing, nothing), nothing + 1)[0, 0]

    return jax.vmap(at)(jnp.arange(state.num_steps))


def _formula(sampler: ModuleType) -> str:
    """What `renoise` says that it returns: `x' = …`, up to its dtype."""
    found = re.search(r"(?:^|\s)x\S* = (.*?), f32\[", _first_line(sampler.State.renoise))
    assert found, f"the first line of {sampler.__name__}.State.renoise must read: … x' = FORMULA, f32[B, *S] …"
    return found[1].replace("|", "\\|")


def _kind(alpha: np.ndarray, sigma: np.ndarray, times: np.ndarray) -> str:
    """Which noisy samples these are."""
    if np.allclose(alpha, 1):
        return "x0 + σ ε"
    if np.allclose(alpha + sigma, 1):
        return "(1 - s) x0 + s ε"
    return "cos a x0 + sin a ε" if np.allclose(alpha, np.cos(times), atol=1e-6) else "α x0 + σ ε"


def _memory(state: Any) -> str:
    shape = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    if jax.eval_shape(state.begin, shape).memory is None:
        return ""
    return _first_line(type(state).remembered).partition(",")[0].rstrip(".")


def _noise(fresh: np.ndarray) -> str:
    assert fresh[-1] == 0
    return "at each step but the last" if fresh[:-1].all() else "at some steps" if fresh.any() else "none"


def _arguments(sampler: ModuleType) -> str:
    """Keywords, with the defaults that are numbers or words."""
    options = inspect.signature(sampler.init).parameters.values()
    kept = [option for option in options if option.kind is option.KEYWORD_ONLY]
    said = [f"{o.name}={o.default!r}" if isinstance(o.default, float | str) else o.name for o in kept]
    return ", ".join(f"`{words}`" for words in said)


def _first_line(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").splitlines()[0]


if __name__ == "__main__":
    text, count = TABLE.subn(lambda _: table(), PAGE.read_text(encoding="utf-8"))
    assert count == 1, "the page has the table's first line once"
    PAGE.write_text(text, encoding="utf-8")
