"""Training steps of the embedded network: ours, and the same recipe in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
from common import interleaved

from gpu_parts import Run, _tiny, part
from gpu_parts.ceilings import rate

__all__ = ["METHOD", "size", "train_steps"]

METHOD = "ect"


def size(run: Run) -> int:
    """Images a step."""
    return 4 if run.tiny else 256


@part("training", place=5, share=35)
def train_steps(run: Run) -> None:
    """A training step of the embedded network, beside PyTorch's."""
    import training as program
    from unet_forward import reference

    batch, rounds, method = size(run), 1 if run.tiny else 9, "edm" if run.tiny else METHOD
    folder = _tiny.folder() if run.tiny else program.FOLDER
    torch, device = reference(jax.default_backend() == "gpu")
    run.result["torch"] = torch is not None
    dtypes = ("float32",) if run.tiny else ("bfloat16", "float32")
    ours: dict[str, float] = {}

    def timed(name: str, make: Callable[[], Callable[[], Any]], dtype: str) -> float:
        start = time.monotonic()
        step = make()
        step()
        first = time.monotonic() - start
        seconds = interleaved({"step": step}, rounds=rounds)[0]["step"].median
        figures: dict[str, Any] = {"ms": seconds * 1e3, "images_per_second": batch / seconds}
        figures["first_step_seconds"] = first
        if isinstance(step, program.Step):
            ceiling = rate(run, f"matmul {dtype}", "tflops")
            figures |= {"tflops": step.figures["operations"] / seconds / 1e12, **step.figures}
            figures["of_matmul"] = figures["tflops"] / ceiling if ceiling else None
        run.row(name, batch=batch, dtype=dtype, **figures)
        return seconds

    for dtype in dtypes:
        with run.attempt(f"ours, {dtype}"):
            where = f"{method}, batch {batch}, {dtype}"
            ours[dtype] = timed(where, lambda dtype=dtype: program.Step(method, folder, batch, dtype), dtype)
    if torch is None or run.tiny:
        return
    import training_torch

    for dtype, compiled in [(dtype, compiled) for compiled in (False, True) for dtype in dtypes]:
        where = f"{method}, batch {batch}, {dtype}, PyTorch{' compiled' if compiled else ''}"
        if not run.has(20 if compiled else 5, where):
            continue

        def make(dtype: str = dtype, compiled: bool = compiled) -> Callable[[], Any]:
            return training_torch.make_step(method, folder, batch, device=device, dtype=dtype, compiled=compiled)

        with run.attempt(where):
            quotient = ours[dtype] / timed(where, make, dtype)
            run.target(quotient, 1.0, f"{where}: our training step over this", dtype=dtype, batch=batch)
