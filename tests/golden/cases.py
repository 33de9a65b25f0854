"""Which configurations were recorded: this room names them once, for the program that records and the tests that read.

A case says what cmjax is given: `config` are the keyword arguments of the sampler's config, `init` those of its `init`.
`record.py` translates them to the reference's `set_timesteps` and `step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ADD_NOISE", "BETAS", "CASES", "KARRAS", "Case"]


@dataclass(frozen=True)
class Case:
    """One recorded path.

    Attributes:
        name: `sampler-what-is-special`.
        sampler: cm, tcd or lcm.
        config: Keyword arguments of the sampler's config.
        init: Keyword arguments of the sampler's `init`.
        reference: Where the reference must be asked in another way: its config's other values.
        begin: The first step of the path that is run (image-to-image); `cmjax.skip(state, begin)`.
        scale: Factor on the starting noise, to make clipping bite.
    """

    name: str
    sampler: str
    config: dict[str, Any] = field(default_factory=dict)
    init: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    begin: int = 0
    scale: float = 1.0


def _cm() -> Iterator[Case]:
    grids = {40: {}, 201: {"num_train_timesteps": 201}}
    for N, config in grids.items():
        for n in (1, 2, 3, 4, 10):
            yield Case(f"cm-{N}-n{n}", "cm", config, {"num_steps": n})
        yield Case(f"cm-{N}-n4-free", "cm", {**config, "clip_denoised": False}, {"num_steps": 4})
    for N, timesteps in {
        40: [22, 0],
        18: [11, 0],
        201: [106, 0],
        151: [67, 0],
        41: [40, 20, 10, 5, 0],
    }.items():
        for clip in (True, False):
            name = f"cm-{N}-at-{'-'.join(map(str, timesteps))}{'' if clip else '-free'}"
            config = {"num_train_timesteps": N, "clip_denoised": clip}
            yield Case(name, "cm", config, {"timesteps": timesteps})
    yield Case("cm-201-n10-from-8", "cm", {"num_train_timesteps": 201}, {"num_steps": 10}, begin=8)
    yield Case("cm-s-noise", "cm", {"s_noise": 1.007}, {"num_steps": 4})
    other = {"sigma_min": 0.01, "sigma_max": 20.0, "rho": 5.0, "sigma_data": 1.0, "num_train_timesteps": 100}
    yield Case("cm-other-levels", "cm", other, {"num_steps": 4})


def _vp(sampler: str) -> Iterator[Case]:
    """What TCD and LCM share: prediction types, step counts, grids, betas."""
    eta = {"eta": 0.3} if sampler == "tcd" else {}
    for kind in ("epsilon", "v_prediction", "sample"):
        for betas in ("linear", "cosine"):
            config = {"prediction_type": kind, **BETAS[betas]}
            yield Case(f"{sampler}-{kind}-{betas}", sampler, config, {"num_steps": 4, **eta})
    for kind in ("v_prediction", "sample"):
        config = {"prediction_type": kind, "rescale_betas_zero_snr": True}
        yield Case(f"{sampler}-{kind}-zero-snr", sampler, config, {"num_steps": 4, **eta})
    for strength in (0.8, 0.58, 0.5, 0.1):
        yield Case(f"{sampler}-strength-{strength}", sampler, {}, {"num_steps": 4, "strength": strength, **eta})
    yield Case(f"{sampler}-custom", sampler, {}, {"timesteps": [999, 700, 333, 20], **eta})
    yield Case(f"{sampler}-custom-to-0", sampler, {}, {"timesteps": [100, 87, 50, 1, 0], **eta})
    yield Case(f"{sampler}-from-2", sampler, {}, {"num_steps": 4, **eta}, begin=2)
    config = {"num_train_timesteps": 100, "beta_start": 1e-4, "beta_end": 0.1, "original_inference_steps": 20}
    yield Case(f"{sampler}-T100", sampler, config, {"num_steps": 5, **eta})
    trained = {"trained_betas": [0.001 + 0.0005 * (i % 37) for i in range(200)], "num_train_timesteps": 200}
    yield Case(f"{sampler}-trained-betas", sampler, trained, {"num_steps": 4, **eta})
    yield Case(f"{sampler}-grid-30", sampler, {"original_inference_steps": 30}, {"num_steps": 4, **eta})
    yield Case(f"{sampler}-grid-100", sampler, {"original_inference_steps": 100}, {"num_steps": 7, **eta})
    # The keyword builds the k-grid here; the reference's TCD does so only when its config has the value.
    keyword = {"num_steps": 4, "original_inference_steps": 30, **eta}
    reference = {"original_inference_steps": 30} if sampler == "tcd" else {}
    yield Case(f"{sampler}-keyword-30", sampler, {}, keyword, reference=reference)


def _tcd() -> Iterator[Case]:
    for kind in ("epsilon", "v_prediction", "sample"):
        for n in (1, 2, 4, 10):
            for eta in (0.0, 0.3, 0.5, 1.0):
                if n == 1 and eta != 0.3:  # one step lands at 0 whatever eta is
                    continue
                yield Case(f"tcd-{kind}-n{n}-eta{eta}", "tcd", {"prediction_type": kind}, {"num_steps": n, "eta": eta})
    yield from _vp("tcd")
    for n in (3, 4, 8):  # the dense grid: T as original_inference_steps
        init = {"num_steps": n, "original_inference_steps": 1000, "eta": 0.3}
        yield Case(f"tcd-dense-n{n}", "tcd", {}, init)
    dense = {"num_steps": 4, "original_inference_steps": 1000, "strength": 0.5, "eta": 0.3}
    yield Case("tcd-dense-strength-0.5", "tcd", {}, dense)
    yield Case("tcd-custom-strength", "tcd", {}, {"timesteps": [999, 759, 499, 259], "strength": 0.5, "eta": 0.3})
    yield Case("tcd-eta-per-step", "tcd", {}, {"num_steps": 4, "eta": [0.9, 0.07, 0.5, 0.2]})


def _lcm() -> Iterator[Case]:
    for kind in ("epsilon", "v_prediction", "sample"):
        for n in (1, 2, 4, 10):
            yield Case(f"lcm-{kind}-n{n}", "lcm", {"prediction_type": kind}, {"num_steps": n})
    yield from _vp("lcm")
    for scaling in (1.0, 0.01):
        yield Case(f"lcm-scaling-{scaling}", "lcm", {"timestep_scaling": scaling}, {"num_steps": 4})
    for reach in (1.0, 0.25):
        config = {"clip_sample": True, "clip_sample_range": reach}
        yield Case(f"lcm-clip-{reach}", "lcm", config, {"num_steps": 4}, scale=5.0)
    for ratio, most in ((0.995, 1.0), (0.9, 3.0), (0.995, 0.5), (0.5, 2.0)):
        config = {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": most}
        sample = {**config, "prediction_type": "sample"}
        yield Case(f"lcm-threshold-{ratio}-{most}", "lcm", config, {"num_steps": 4}, scale=5.0)
        yield Case(f"lcm-threshold-{ratio}-{most}-sample", "lcm", sample, {"num_steps": 4}, scale=5.0)


BETAS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"beta_schedule": "linear"},
    "linear-ddpm": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero-snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "T100": {"num_train_timesteps": 100, "beta_start": 1e-4, "beta_end": 0.1},
}
"""Configs whose alphas_cumprod tables are recorded."""

KARRAS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    f"{N}-n{n}": ({"num_train_timesteps": N}, {"num_steps": n}) for N in (18, 40, 151, 201) for n in (1, 2, 3, 4, 10, N)
} | {
    "40-at-22-0": ({}, {"timesteps": [22, 0]}),
    "1000-levels": (
        {"num_train_timesteps": 1000, "sigma_min": 0.01, "sigma_max": 14.6, "rho": 3.0},
        {"num_steps": 1000},
    ),
}
"""Config and init of the consistency-model paths whose noise levels and network times are recorded."""

ADD_NOISE: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "cm": ("cm", {}, [0, 1, 5, 9]),
    "tcd": ("tcd", {}, [999, 499, 19, 0]),
    "tcd-cosine": ("tcd", {"beta_schedule": "squaredcos_cap_v2"}, [999, 499, 19, 0]),
    "lcm-linear": ("lcm", {"beta_schedule": "linear"}, [999, 499, 19, 0]),
}
"""Sampler, config and times (cm: positions on the ten-step path) of the recorded forward noising."""

CASES: dict[str, Case] = {case.name: case for case in (*_cm(), *_tcd(), *_lcm())}
"""Every recorded path by name."""
