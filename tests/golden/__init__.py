"""What the reference implementation computed, as arrays: this room holds the recordings and the way to read them.

Each `.npz` file was written by `python tests/golden/record.py` (which needs torch and diffusers; reading does not).
All numbers are the reference's own, including its rounding. No file holds sums: a sum is blind to order and sign.

- `inputs.npz`: what every path shares. `x` f32[1, 2, 4, 4, 3] in units of the starting noise; network outputs `m` and
  noise `z`, f32[10, 2, 4, 4, 3] each, one for every step.
- `paths.npz`: for every case of `CASES`, `name/x` f32[n, 2, 4, 4, 3] after each step and `name/t`, the timesteps.
  VP samplers also have `name/second` (TCD: the landing sample; LCM: x0), consistency models `name/x_in`, what the
  network was given.
- `tables.npz`: `alphas_cumprod/...` f32[T], `sigmas/...` f32[n + 1] and `timesteps/...` f64[n].
- `landings.npz`: `landings` i16[101, 1000], TCD's landing index for eta = 0.00 ... 1.00 and timestep 0 ... 999.
- `add_noise.npz`: `name/x` f32[4, 2, 4, 4, 3], `m[0]` noised with `z[0]` to the four times of `ADD_NOISE`.
- `draws.npz`: `z` f32[2, 4, 3, 8, 8], the first two draws of the reference's generator at seed 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .cases import ADD_NOISE, BETAS, CASES, KARRAS, Case

__all__ = ["ADD_NOISE", "BETAS", "CASES", "KARRAS", "Case", "load", "path"]

FOLDER = Path(__file__).parent


@cache
def load(name: str) -> Mapping[str, np.ndarray[Any, Any]]:
    """Read every array of one recording: `load("tables")`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def path(case: Case) -> dict[str, np.ndarray[Any, Any]]:
    """Read one recorded path: its arrays by their short names (`x`, `second`, `t`, ...)."""
    prefix = f"{case.name}/"
    return {key.removeprefix(prefix): value for key, value in load("paths").items() if key.startswith(prefix)}
