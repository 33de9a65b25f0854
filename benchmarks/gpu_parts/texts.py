"""Texts to pictures: Stable Diffusion 1.5 at 512 and XL at 1024 pixels (random weights), and the same in PyTorch.

Four steps of TCD in bfloat16, from tokens to pictures. PyTorch has a part of its own, hence a process.
"""

from __future__ import annotations

import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from common import interleaved, ratio

from gpu_parts import Run, part
from gpu_parts.ceilings import rate

__all__ = ["Case", "cases", "texts", "texts_pytorch"]

Case = tuple[str, int]  # model, batch
DTYPE, STEPS = "bfloat16", 4


def cases(run: Run) -> list[Case]:
    """Models and batches, in order of worth."""
    if run.tiny:
        return [("tiny", 2)]
    return [(name, batch) for batch in (8, 1, 32) for name in ("sd15", "sdxl")]


class Programs:
    """The compiled programs of one case, compiled for a model without weights."""

    def __init__(self, name: str, batch: int, pool: ThreadPoolExecutor):
        import full_size_texts
        import text_to_image

        self.name, self.batch, self.start = name, batch, time.monotonic()
        tokens, shape = text_to_image.inputs(name, batch)
        pipe = self.spared(full_size_texts.abstract(name, dtype=DTYPE, param_dtype=DTYPE))
        self.functions = text_to_image.programs(pipe, tokens, shape)
        self.compiling = {
            key: pool.submit(self.compile, function.lower(*arguments))
            for key, (function, arguments) in self.functions.items()
        }

    def spared(self, pipe: Any) -> Any:
        """Decode large batches of large pictures one by one: 32 of 1024 pixels do not fit."""
        one_by_one = self.batch > 8 and self.name == "sdxl"
        return pipe.replace(autoencoder=pipe.autoencoder.replace(one_by_one=one_by_one))

    def compile(self, lowered: Any) -> tuple[Any, float]:
        return lowered.compile(), time.monotonic() - self.start

    def measure(self, run: Run, pipe: Any) -> None:
        from unet_forward import multiplications

        done = {key: each.result() for key, each in self.compiling.items()}
        pipe = self.spared(pipe)
        calls = {
            key: lambda key=key, compiled=compiled: compiled(pipe, *self.functions[key][1][1:])
            for key, (compiled, _) in done.items()
        }
        where = f"{self.name}, batch {self.batch}, {DTYPE}"
        if not bool(jnp.isfinite(calls["picture"]()).all()):
            raise ArithmeticError(f"{where}: pictures that are not finite")
        timing, seconds = interleaved(calls, rounds=2 if run.tiny else 7)
        ceiling = rate(run, f"matmul {DTYPE}", "tflops")
        figures: dict[str, Any] = {}
        for key in ("network", "decoder"):
            function, arguments = self.functions[key]
            tflops = 2 * multiplications(jax.make_jaxpr(function)(*arguments).jaxpr) / timing[key].median / 1e12
            figures |= {f"{key}_tflops": tflops, f"{key}_of_matmul": tflops / ceiling if ceiling else None}
        parts = [
            encoder + STEPS * network + decoder
            for encoder, network, decoder in zip(
                *(seconds[key] for key in ("text encoder", "network", "decoder")), strict=True
            )
        ]
        over = ratio(seconds["picture"], parts)
        figures |= {f"{key}_ms": each.median * 1e3 for key, each in timing.items()}
        figures |= {"compile_seconds": max(seconds for _, seconds in done.values())}
        figures |= {"temporary_bytes": done["picture"][0].memory_analysis().temp_size_in_bytes}
        figures |= {"pictures_per_second": self.batch / timing["picture"].median, "over_parts": over}
        run.row(where, model=self.name, batch=self.batch, **figures)
        run.target(over, 1.03, f"{where}: pictures over the parts that they are made of", batch=self.batch)


@part("texts", place=0.4, share=120)
def texts(run: Run) -> None:
    """Stable Diffusion 1.5 and XL, four steps: network, decoder and whole pictures."""
    import full_size_texts

    pool = ThreadPoolExecutor(4)
    pipes: dict[str, Any] = {}
    for name, batch in cases(run):
        where = f"{name}, batch {batch}"
        if not run.has(45 if name == "sdxl" else 25, where):
            continue
        with run.attempt(where):
            programs = Programs(name, batch, pool)
            if name not in pipes:
                made = full_size_texts.random(name, dtype=DTYPE, param_dtype=DTYPE)
                pipes[name] = jax.device_put(made, jax.devices()[0])
            programs.measure(run, pipes[name])


@part("texts_pytorch", place=0.7, share=90, warm=("torch", "diffusers", "transformers"), jax=False)
def texts_pytorch(run: Run) -> None:
    """The same in PyTorch, compiled, with channels last."""
    from unet_forward import reference

    torch, device = reference(bool(run.result["machine"]["driver"]))
    run.result["torch"] = torch is not None
    if torch is None or not importlib.util.find_spec("transformers"):
        run.row("PyTorch, diffusers or transformers is not installed, or sees no card")
        return
    import text_to_image

    torch._dynamo.config.cache_size_limit = 64  # a program for each batch
    ours = {(row["model"], row["batch"]): row for row in run.earlier("texts").get("rows", ())}
    made: dict[str, Any] = {}
    for name, batch in cases(run):
        where = f"{name}, batch {batch}, {DTYPE}, PyTorch{'' if run.tiny else ' compiled'}"
        if not run.has(60 if name == "sdxl" else 40, where):
            continue
        with run.attempt(where):
            if name not in made:
                made[name] = text_to_image.Torch(name, device, DTYPE, compiled=not run.tiny)
            compare(run, made[name], (name, batch), where, ours.get((name, batch)))


def compare(run: Run, reference: Any, case: Case, where: str, ours: dict[str, Any] | None) -> None:
    """Time PyTorch's parts; ours of the same run stands beside."""
    import text_to_image

    name, batch = case
    calls = reference.programs(*text_to_image.inputs(name, batch))
    start = time.monotonic()
    calls["picture"]()
    first = time.monotonic() - start
    timing, _ = interleaved(calls, rounds=1 if run.tiny else 5)
    row = {f"{key}_ms": each.median * 1e3 for key, each in timing.items()}
    over = {}
    if ours is not None:
        over = {f"our_{key}_over_this": ours[f"{key}_ms"] / row[f"{key}_ms"] for key in timing}
    rates = {"pictures_per_second": batch / timing["picture"].median}
    run.row(where, model=name, batch=batch, **row, **rates, **over, first_call_seconds=first)
    if over and not run.tiny:
        for key in ("network", "decoder", "picture"):
            run.target(over[f"our_{key}_over_this"], 1.0, f"{where}: our {key} over this", batch=batch)
