"""How a sampler is held against the installed reference: this room draws configurations, runs both, and judges.

Every configuration runs step by step. At each step cmjax, the reference and two replays of the formula are given the
same sample (the reference's), the same network output and the same noise, which is what the reference's own generator
draws there. Three rules are held:

1. cmjax is within 5e-6 of the formula in float64, always.
2. cmjax is within 5e-6 of the reference,
3. unless the reference's own float32 tables and coefficients are what differs. That is shown, not assumed: then the
   same formula, replayed in float32 on the reference's own table, must be within 5e-6 of the reference. The distance
   is noted and printed at the end of the run.

Distances are shares of the largest value, for consistency models of max(1, largest).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import replay

__all__ = ["SHAPES", "TOLERANCE", "Ledger", "Noise", "VPRun", "draw_vp", "noised", "subset"]

Array = np.ndarray[Any, Any]
TOLERANCE = 5e-6


def _shapes(count: int) -> list[tuple[int, ...]]:
    """Draw sample shapes of every rank from 1 to 5: few enough that their compiled operations are shared.

    Each holds at least 16 values. A lone value may be the small difference of two large ones, and its share of error is
    then the last digit of float32, whoever computes it.
    """
    rng = np.random.default_rng(5)
    shapes: list[tuple[int, ...]] = []
    while len(shapes) < count:
        rank = 1 + len(shapes) % 5
        shape = tuple(int(size) for size in rng.integers(1, {1: 40, 2: 12}.get(rank, 7), rank))
        if np.prod(shape) >= 16:
            shapes.append(shape)
    return shapes


SHAPES = _shapes(20)


@dataclass
class Ledger:
    """The largest distances seen, for the summary at the end of the run."""

    largest: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def judge(self, sampler: str, ours: Any, reference: Any, exact: Any, rounded: Any, floor: float = 0.0) -> None:
        """Hold one array of one step to the three rules.

        Args:
            sampler: Whose line of the summary this goes to.
            ours: What cmjax computed.
            reference: What the reference computed.
            exact: The formula in float64.
            rounded: The formula in float32, on the reference's own tables.
            floor: Distances are shares of max(floor, largest value).
        """
        self.counts[sampler, "arrays"] += 1
        to_exact = replay.distance(ours, exact, floor)
        self.note(sampler, "to the float64 formula", to_exact)
        assert to_exact <= TOLERANCE, f"{to_exact:.2e} from the float64 formula"
        if np.isnan(reference).any():
            assert np.isnan(rounded).all(), "the reference is NaN, and its float32 does not say why"
            self.counts[sampler, "NaN in the reference"] += 1
            return
        to_reference = replay.distance(ours, reference, floor)
        if to_reference <= TOLERANCE:
            self.note(sampler, "to the reference", to_reference)
            return
        explained = replay.distance(rounded, reference, floor)
        assert explained <= TOLERANCE, (
            f"{to_reference:.2e} from the reference, whose float32 explains all but {explained:.2e}"
        )
        self.counts[sampler, "rounded by the reference"] += 1
        self.note(sampler, "to the reference where its float32 differs", to_reference)

    def note(self, sampler: str, what: str, value: float) -> None:
        """Keep the largest value of a kind."""
        self.largest[sampler, what] = max(self.largest[sampler, what], value)

    def lines(self) -> list[str]:
        """Write the summary: one line per sampler."""
        lines = []
        for sampler in sorted({name for name, _ in self.counts}):
            counts = ", ".join(f"{count} {what}" for (name, what), count in self.counts.items() if name == sampler)
            largest = "; ".join(f"{what} {size:.1e}" for (name, what), size in self.largest.items() if name == sampler)
            lines.append(f"{sampler}: {counts}; largest distance {largest}")
        return lines


class Noise:
    """The reference's generator, and what it is about to draw."""

    def __init__(self, seed: int) -> None:
        import torch

        self.generator = torch.Generator().manual_seed(seed)

    def next(self, shape: tuple[int, ...]) -> Array:
        """Look at the coming draw without drawing it."""
        import torch

        ahead = torch.Generator()
        ahead.set_state(self.generator.get_state())
        return torch.randn(shape, generator=ahead).numpy()


def random_betas(rng: np.random.Generator, T: int) -> dict[str, Any]:
    """Draw a beta schedule whose last squared signal rate float32 can still hold (at least 1e-9)."""
    kind = rng.choice(["linear", "scaled_linear", "squaredcos_cap_v2", "trained"])
    if kind == "squaredcos_cap_v2":
        return {"beta_schedule": str(kind)}
    while True:
        low, high = sorted(float(beta) for beta in 10 ** rng.uniform([-4.5, -2.5], [-1.5, -0.3]))
        if kind == "trained":
            config: dict[str, Any] = {"trained_betas": [float(beta) for beta in rng.uniform(low, high, T)]}
        else:
            config = {"beta_schedule": str(kind), "beta_start": low, "beta_end": high}
        if replay.alphas_cumprod(T, **config)[-1] > 1e-9:
            return config


def subset(rng: np.random.Generator, size: int, most: int) -> list[int]:
    """Draw strictly decreasing integers in [0, size), between one and `most` of them."""
    count = int(rng.integers(1, min(most, size) + 1))
    return sorted((int(k) for k in rng.choice(size, count, replace=False)), reverse=True)


@dataclass
class VPRun:
    """One random configuration of TCD or LCM, as cmjax and as the reference are told of it.

    Attributes:
        config: Keyword arguments of cmjax's config.
        reference_config: The reference's.
        options: Keyword arguments of `init`, but eta.
        reference_options: Keyword arguments of the reference's `set_timesteps`.
        path: The timesteps that the formula gives, i64[n].
        begin: The step to begin at.
        exact_table: alphas_cumprod in float64, f64[T].
    """

    config: dict[str, Any]
    reference_config: dict[str, Any]
    options: dict[str, Any]
    reference_options: dict[str, Any]
    path: Array
    begin: int
    exact_table: Array


def draw_vp(rng: np.random.Generator, *, dense: bool) -> VPRun:
    """Draw a configuration; `dense`: the reference's keyword means the dense grid (TCD), not the k-grid (LCM)."""
    T = int(rng.choice([10, 100, 200, 500, 1000, 1000, 1000, int(rng.integers(2, 1501))]))
    betas = random_betas(rng, T)
    grid = int(rng.integers(1, T + 1)) if T < 50 or rng.random() < 0.5 else 50
    config: dict[str, Any] = {"num_train_timesteps": T, "original_inference_steps": grid, **betas}
    config["prediction_type"] = str(rng.choice(["epsilon", "sample", "v_prediction"]))
    if config["prediction_type"] != "epsilon" and rng.random() < 0.3:
        config["rescale_betas_zero_snr"] = True
    if rng.random() < 0.3:  # keys without effect
        config |= {"steps_offset": 1, "set_alpha_to_one": False, "timestep_spacing": "trailing"}
    theirs = dict(config)

    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        options["strength"] = round(float(rng.uniform(0.1, 1)), 2)
    reference_options = options
    how = rng.choice(["config", "keyword", "dense", "custom"])
    if how == "custom":
        options["timesteps"] = subset(rng, T, 8)
        if int(len(options["timesteps"]) * options.get("strength", 1.0)) < 1:
            del options["strength"]
    else:
        if how == "dense":
            grid = T
        elif how == "keyword":
            grid = int(rng.integers(1, T + 1))
        if int(grid * options.get("strength", 1.0)) < 1:
            del options["strength"]
        most = int(grid * options.get("strength", 1.0))
        options["num_steps"] = int(rng.integers(1, min(most, 12) + 1))
        reference_options = {"num_inference_steps" if key == "num_steps" else key: v for key, v in options.items()}
        if how != "config":
            options["original_inference_steps"] = grid
            if how == "keyword" and dense:
                theirs["original_inference_steps"] = grid
            else:
                reference_options["original_inference_steps"] = grid
    path_options = {key: value for key, value in options.items() if key != "original_inference_steps"}
    path = replay.vp_timesteps(T, grid, **path_options)
    begin = int(rng.integers(0, len(path))) if rng.random() < 0.3 else 0
    return VPRun(config, theirs, options, reference_options, path, begin, replay.alphas_cumprod(**config))


def noised(
    sampler: str,
    reference: Any,
    state: Any,
    tables: tuple[Array, Array],
    rng: np.random.Generator,
    shape: tuple[int, ...],
    ledger: Ledger,
) -> Array:
    """Noise a random image to the state's first level, judge it, and return the reference's: where the path starts."""
    import jax.numpy as jnp
    import torch

    import cmjax

    x0, z = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    t = int(state.timesteps[0])
    times = torch.full(shape[:1], t)
    theirs = reference.add_noise(torch.from_numpy(x0), torch.from_numpy(z), times).numpy()
    exact, rounded = (np.sqrt(table[t]) * x0 + np.sqrt(1 - table[t]) * z for table in tables)
    ledger.judge(sampler, cmjax.add_noise(state, jnp.asarray(x0), jnp.asarray(z)), theirs, exact, rounded)
    return theirs
