"""Walk all samplers; where a law costs seconds for each, those that share their code with others are slow tests."""

from __future__ import annotations

from typing import Any

import pytest

import cmjax

__all__ = ["FIRST_FEW", "each_sampler", "first_samplers"]

NAMES = tuple(sampler.__name__.rpartition(".")[2] for sampler in cmjax.samplers.ALL)
FIRST = ("cm", "tcd", "dpmpp", "flow")  # one of noise levels, one of VP, one with a memory, one of flows


def _each(first: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(sampler, id=name, marks=[] if name in first else [pytest.mark.slow])
        for name, sampler in zip(NAMES, cmjax.samplers.ALL, strict=True)
    ]


FIRST_FEW = _each(FIRST)
each_sampler = pytest.mark.parametrize("sampler", _each(NAMES))
first_samplers = pytest.mark.parametrize("sampler", FIRST_FEW)
