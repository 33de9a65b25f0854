"""Training steps of a TCD-LoRA: Stable Diffusion 1.5 at 512 and XL at 1024 pixels, beside diffusers and PEFT."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
from common import interleaved

from gpu_parts import Run, part
from gpu_parts.ceilings import rate

__all__ = ["cases", "lora_steps"]

DTYPE, RANK = "bfloat16", 64


def cases(run: Run) -> list[tuple[str, int, int, bool]]:
    """Model, side of its latents, batch, and whether blocks are computed again."""
    if run.tiny:
        return [("tiny", 8, 1, False), ("tiny-xl", 8, 1, True)]
    return [("sd15", 64, 8, False), ("sdxl", 128, 1, False), ("sdxl", 128, 4, True)]


@part("lora_training", place=4.5, share=90, warm=("torch", "diffusers", "peft"))
def lora_steps(run: Run) -> None:
    """A training step of a TCD-LoRA of Stable Diffusion 1.5 and XL, beside diffusers' and PEFT's."""
    import lora_training as program
    from unet_forward import reference

    torch, device = reference(jax.default_backend() == "gpu")
    torch = torch if torch is not None and importlib.util.find_spec("peft") else None
    run.result["torch"] = torch is not None
    rank, ours = 4 if run.tiny else RANK, {}

    def timed(where: str, made: tuple[Callable[[], float], Callable[[], dict[str, Any]]], batch: int) -> float:
        step, said = made
        start = time.monotonic()
        step()
        first = time.monotonic() - start
        seconds = interleaved({"step": step}, rounds=1 if run.tiny else 7)[0]["step"].median
        figures = {"ms": seconds * 1e3, "pictures_per_second": batch / seconds, "first_step_seconds": first, **said()}
        if "operations" in figures:
            ceiling = rate(run, f"matmul {DTYPE}", "tflops")
            figures["tflops"] = figures["operations"] / seconds / 1e12
            figures["of_matmul"] = figures["tflops"] / ceiling if ceiling else None
        run.row(where, batch=batch, dtype=DTYPE, **figures)
        return seconds

    for model, side, batch, remat in cases(run):
        where = f"{model}, batch {batch}, {DTYPE}{', remat' if remat else ''}"
        if run.has(90 if model == "sdxl" else 45, where):
            with run.attempt(where):
                made = program.ours(program.network(model, 1), rank, side, batch, remat=remat, dtype=DTYPE)
                ours[model, batch] = timed(where, made, batch)
    for model, side, batch, _ in cases(run) if torch is not None else ():
        where = f"{model}, batch {batch}, {DTYPE}, diffusers and PEFT"
        if (model, batch) in ours and run.has(30, where):
            with run.attempt(where):
                made = program.theirs(program.network(model, 1), rank, side, batch, dtype=DTYPE, device=device)
                over = ours[model, batch] / timed(where, made, batch)
                if not run.tiny:
                    run.target(over, 1.0, f"{where}: our step over this", batch=batch)
