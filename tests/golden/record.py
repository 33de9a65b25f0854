"""Record the reference implementation: `python tests/golden/record.py` writes the arrays beside it.

Needs torch and diffusers (the extra `parity`). The recordings in the tree came from diffusers 0.42.1 on torch 2.13 for
the CPU. Running this again gives the same bytes on the same versions: the inputs are read from `inputs.npz` when it
exists, and the reference's own generator is replaced by noise that is stored with them. `--check` records into memory
and compares with what is stored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

if __name__ == "__main__":  # run as a program: `golden` is the folder this file lies in
    sys.path.insert(0, str(Path(__file__).parents[1]))

from golden import ADD_NOISE, BETAS, CASES, FOLDER, KARRAS, Case

__all__ = ["main", "record_all"]

SHAPE = (2, 4, 4, 3)
MOST_STEPS = 10
Arrays = dict[str, np.ndarray[Any, Any]]


def scheduler_of(sampler: str, config: dict[str, Any]) -> Any:
    """Make the reference's scheduler."""
    import diffusers

    names = {"cm": "CMStochasticIterativeScheduler", "tcd": "TCDScheduler", "lcm": "LCMScheduler"}
    return getattr(diffusers, names[sampler])(**config)


def set_path(scheduler: Any, case: Case) -> None:
    """Translate `init` to the reference's `set_timesteps`."""
    init = {key: value for key, value in case.init.items() if key != "eta"}
    if "num_steps" in init:
        init["num_inference_steps"] = init.pop("num_steps")
    if "original_inference_steps" in case.reference:
        del init["original_inference_steps"]  # the value is in the reference's config instead
    scheduler.set_timesteps(**init)


@contextmanager
def injected_noise(z: Any) -> Iterator[None]:
    """Let the schedulers draw `z` instead of random numbers."""
    modules = ("scheduling_consistency_models", "scheduling_tcd", "scheduling_lcm")
    with ExitStack() as patches:
        for name in modules:
            patches.enter_context(mock.patch(f"diffusers.schedulers.{name}.randn_tensor", return_value=z))
        yield


def record_path(case: Case, inputs: Arrays) -> Arrays:
    """Run one case and keep every step."""
    import torch

    scheduler = scheduler_of(case.sampler, {**case.config, **case.reference})
    set_path(scheduler, case)
    scheduler.set_begin_index(case.begin)
    times = scheduler.timesteps[case.begin :]
    first = float(scheduler.sigmas[case.begin]) if case.sampler == "cm" else 1.0
    x = torch.from_numpy(inputs["x"][0]) * first * case.scale
    eta = case.init.get("eta", 0.3)
    kept: dict[str, list[Any]] = {"x": [], "second": [], "x_in": []}
    for k, t in enumerate(times):
        m, z = torch.from_numpy(inputs["m"][k]), torch.from_numpy(inputs["z"][k])
        kept["x_in"].append(scheduler.scale_model_input(x, t).numpy())
        options = {"eta": eta[k] if isinstance(eta, list) else eta} if case.sampler == "tcd" else {}
        with injected_noise(z):
            out = scheduler.step(m, t, x, return_dict=False, **options)
        x = out[0]
        kept["x"].append(x.numpy())
        if case.sampler != "cm":
            kept["second"].append(out[1].numpy())
    if case.sampler != "cm":
        del kept["x_in"]
    else:
        del kept["second"]
    arrays = {f"{case.name}/{key}": np.stack(value) for key, value in kept.items()}
    return {**arrays, f"{case.name}/t": times.numpy()}


def record_inputs() -> Arrays:
    """Draw the shared inputs once; later runs read them back."""
    if (FOLDER / "inputs.npz").exists():
        with np.load(FOLDER / "inputs.npz") as file:
            return {key: file[key] for key in file.files}
    rng = np.random.default_rng(0)
    draw = lambda count: rng.standard_normal((count, *SHAPE)).astype(np.float32)  # noqa: E731
    return {"x": draw(1), "m": draw(MOST_STEPS), "z": draw(MOST_STEPS)}


def record_tables() -> Arrays:
    """Keep the reference's tables: float32 rates, float32 noise levels, float64 network times."""
    arrays: Arrays = {}
    for name, config in BETAS.items():
        arrays[f"alphas_cumprod/{name}"] = scheduler_of("tcd", config).alphas_cumprod.numpy()
    for name, (config, init) in KARRAS.items():
        scheduler = scheduler_of("cm", config)
        set_path(scheduler, Case(name, "cm", config, init))
        arrays[f"sigmas/{name}"] = scheduler.sigmas.numpy()
        arrays[f"timesteps/{name}"] = scheduler.timesteps.numpy()
    return arrays


def record_landings() -> Arrays:
    """Watch which table entry the reference's own step reads for every eta and timestep."""
    import torch

    class Watched:
        """A table of ones half that remembers what was asked."""

        def __init__(self) -> None:
            self.asked: list[int] = []

        def __getitem__(self, index: Any) -> Any:
            self.asked.append(int(index))
            return torch.tensor(0.5)

    one = torch.zeros(1)
    scheduler = scheduler_of("tcd", {"num_train_timesteps": 1001})
    scheduler.set_timesteps(timesteps=list(range(1000, -1, -1)))
    landings = np.empty((101, 1000), np.int16)
    with injected_noise(one):
        for row in range(101):
            scheduler.set_begin_index(0)
            scheduler._step_index = None
            for t in range(1000, 0, -1):
                scheduler.alphas_cumprod = watched = Watched()
                scheduler.step(one, t, one, eta=row / 100)
                asked_t, asked_next, asked_s = watched.asked
                assert (asked_t, asked_next) == (t, t - 1)
                landings[row, t - 1] = asked_s
    return {"landings": landings}


def record_add_noise(inputs: Arrays) -> Arrays:
    """Noise a clean image to several times."""
    import torch

    x0, z = torch.from_numpy(inputs["m"][0]), torch.from_numpy(inputs["z"][0])
    arrays: Arrays = {}
    for name, (sampler, config, times) in ADD_NOISE.items():
        scheduler = scheduler_of(sampler, config)
        scheduler.set_timesteps(10)
        noised = []
        for t in times:
            at = scheduler.timesteps[t : t + 1] if sampler == "cm" else torch.tensor([t])
            noised.append(scheduler.add_noise(x0, z, at.repeat(len(x0))).numpy())
        arrays[f"{name}/x"] = np.stack(noised)
    return arrays


def record_draws() -> Arrays:
    """Draw what the reference's generator gives its test loops at seed 0: z f32[2, 4, 3, 8, 8]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {"z": np.stack([torch.randn((4, 3, 8, 8), generator=generator).numpy() for _ in range(2)])}


def record_all() -> dict[str, Arrays]:
    """Record everything: file name to arrays."""
    import warnings

    from diffusers.utils import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    inputs = record_inputs()
    paths: Arrays = {}
    for case in CASES.values():
        paths |= record_path(case, inputs)
    return {
        "inputs": inputs,
        "paths": paths,
        "tables": record_tables(),
        "landings": record_landings(),
        "add_noise": record_add_noise(inputs),
        "draws": record_draws(),
    }


def main() -> int:
    """Write or check the recordings: exit status 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the stored arrays, write nothing")
    check = parser.parse_args().check
    differ = 0
    for name, arrays in record_all().items():
        file = FOLDER / f"{name}.npz"
        if check:
            with np.load(file) as stored:
                same = set(stored.files) == set(arrays) and all(
                    np.array_equal(stored[key], arrays[key], equal_nan=True) for key in arrays
                )
            differ += not same
            print(f"{file.name}: {'equal' if same else 'DIFFERS'}, {len(arrays)} arrays")
        else:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            print(f"{file.name}: {len(arrays)} arrays, {file.stat().st_size} bytes")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
