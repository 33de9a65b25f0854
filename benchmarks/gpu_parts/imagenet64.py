"""The published ImageNet 64 network (296M parameters, random weights): ours, and the same in PyTorch, compiled.

PyTorch has a part of its own, hence a process: what it compiles cannot use up our time, nor its memory be in our way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from common import interleaved, ratio

import cmjax
from gpu_parts import Run, _tiny, part
from gpu_parts.ceilings import rate

__all__ = ["Case", "cases", "imagenet64", "network", "pytorch"]

Case = tuple[str, int]  # dtype, batch


def cases(run: Run) -> list[Case]:
    """Precisions and batches, in order of worth."""
    if run.tiny:
        return [("bfloat16", 2)]
    return [("bfloat16", 64), ("bfloat16", 1), ("bfloat16", 16), ("float32", 64), ("float32", 1), ("float32", 16)]


def kind(run: Run) -> str:
    """The network's name in `full_size`."""
    return _tiny.register() if run.tiny else "imagenet64"


def network(run: Run, dtype: str) -> tuple[Any, Any]:
    """The model on the device, its matrices stored in `dtype` as PyTorch's are, and its sampler's config."""
    from throughput import networks

    model, config = networks(kind(run), dtype)
    model = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, model)
    return jax.device_put(model, jax.devices()[0]), config


def given(model: Any, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A batch, t and labels."""
    config = model.module.config
    x = jax.random.normal(jax.random.key(0), (batch, config.sample_size, config.sample_size, config.in_channels))
    return x, jnp.float32(200.0), jnp.arange(batch) % config.num_class_embeds


class Programs:
    """The compiled programs of one case: a forward call, and pictures of two steps."""

    def __init__(self, model: Any, config: Any, case: Case, pool: ThreadPoolExecutor):
        from unet_forward import forward

        self.model, (self.dtype, self.batch), self.start = model, case, time.monotonic()
        self.x, self.t, self.cond = given(model, self.batch)
        self.state, self.key = cmjax.cm.init(config, num_steps=2), jax.random.key(0)
        generate = jax.jit(cmjax.generate, static_argnames="shape")
        call = jax.jit(forward).lower(model, self.x, self.t, self.cond)
        draw = generate.lower(model, self.state, self.key, shape=self.x.shape, cond=self.cond)
        self.compiling = pool.submit(self.compile, call), pool.submit(self.compile, draw)

    def compile(self, lowered: Any) -> tuple[Any, float]:
        return lowered.compile(), time.monotonic() - self.start

    def measure(self, run: Run) -> None:
        from unet_forward import forward, multiplications

        (call, call_seconds), (draw, draw_seconds) = (each.result() for each in self.compiling)
        programs = {
            "forward": lambda: call(self.model, self.x, self.t, self.cond),
            "two steps": lambda: draw(self.model, self.state, self.key, cond=self.cond),
        }
        where = f"{kind(run)}, batch {self.batch}, {self.dtype}"
        if not bool(jnp.isfinite(programs["two steps"]()).all()):
            raise ArithmeticError(f"{where}: pictures that are not finite")
        timing, seconds = interleaved(programs, rounds=2 if run.tiny else 9)
        flop = 2 * multiplications(jax.make_jaxpr(forward)(self.model, self.x, self.t, self.cond).jaxpr)
        tflops = flop / timing["forward"].median / 1e12
        ceiling = rate(run, f"matmul {self.dtype}", "tflops")
        over = ratio(seconds["two steps"], [2 * s for s in seconds["forward"]])
        run.row(
            where, batch=self.batch, dtype=self.dtype, forward_ms=timing["forward"].median * 1e3,
            two_steps_ms=timing["two steps"].median * 1e3, images_per_second=self.batch / timing["two steps"].median,
            tflops=tflops, of_matmul=tflops / ceiling if ceiling else None, over_forward=over,
            compile_seconds=max(call_seconds, draw_seconds), temporary_bytes=call.memory_analysis().temp_size_in_bytes,
        )  # fmt: skip
        run.target(over, 1.01, f"{where}: two steps over two forward calls", dtype=self.dtype, batch=self.batch)


def batches(run: Run) -> Iterator[tuple[str, list[list[Case]]]]:
    """Cases by precision, in groups that are compiled at once: the first alone, since it is worth most."""
    wanted = cases(run)
    for dtype in dict.fromkeys(dtype for dtype, _ in wanted):
        of = [case for case in wanted if case[0] == dtype]
        yield dtype, [of[:1], of[1:]]


@part("imagenet64", place=2, share=75)
def imagenet64(run: Run) -> None:
    """Forward calls, loops over them, images a second: the ImageNet 64 network."""
    pool = ThreadPoolExecutor(4)
    for dtype, groups in batches(run):
        if dtype == "float32" and not run.has(25, "float32"):
            return
        model, config = network(run, dtype)
        for group in groups:
            programs = [Programs(model, config, case, pool) for case in group]
            for each in programs:
                with run.attempt(f"batch {each.batch}, {dtype}"):
                    each.measure(run)


@part("pytorch", place=3, share=90, warm=("torch", "diffusers.models.unets.unet_2d", "throughput"), jax=False)
def pytorch(run: Run) -> None:
    """The same network and loop in PyTorch, compiled, with channels last."""
    from throughput import pipeline, theirs
    from unet_forward import reference

    on_gpu = bool(run.result["machine"]["driver"])
    torch, device = reference(on_gpu)
    run.result["torch"] = torch is not None
    if torch is None:
        run.row("PyTorch and diffusers are not installed, or see no card")
        return
    torch._dynamo.config.cache_size_limit = 64  # a program for each batch
    config = cmjax.cm.CMConfig(num_train_timesteps=40)
    ours = {(row["dtype"], row["batch"]): row for row in run.earlier("imagenet64").get("rows", ())}
    for dtype in dict.fromkeys(dtype for dtype, _ in cases(run)):
        unet = None
        for batch in [batch for of, batch in cases(run) if of == dtype]:
            for how in ("eager", "compiled") if (dtype, batch) == cases(run)[0] else ("compiled",):
                where = f"{kind(run)}, batch {batch}, {dtype}, {how}"
                if (run.tiny and how == "compiled") or not run.has(5 if how == "eager" else 15, where):
                    continue
                with run.attempt(where):
                    unet = unet or theirs(torch, kind(run), device, dtype)
                    called = torch.compile(unet, dynamic=False) if how == "compiled" else unet
                    size, channels = unet.config.sample_size, unet.config.in_channels
                    loop = pipeline(torch, called, config, (batch, size, size, channels), device, dtype)
                    compare(run, torch, called, loop, device, (dtype, batch, how), ours.get((dtype, batch)))


def compare(
    run: Run, torch: Any, unet: Any, loop: Any, device: str, about: tuple[str, int, str], ours: dict[str, Any] | None
) -> None:
    """Time PyTorch's forward call and loop; ours of the same run stands beside."""
    from unet_forward import waited

    dtype, batch, how = about
    config = getattr(unet, "config", None) or unet._orig_mod.config
    shape = (batch, config.in_channels, config.sample_size, config.sample_size)
    x = torch.randn(shape, device=device, dtype=getattr(torch, dtype)).to(memory_format=torch.channels_last)
    t, labels = torch.tensor(200.0, device=device), torch.arange(batch, device=device) % config.num_class_embeds
    call = waited(torch, device, lambda: unet(x, t, class_labels=labels).sample)
    start = time.monotonic()
    loop()
    first = time.monotonic() - start
    timing, _ = interleaved({"forward": call, "two steps": loop}, rounds=1 if run.tiny else 7)
    row = {
        "batch": batch, "dtype": dtype, "forward_ms": timing["forward"].median * 1e3,
        "two_steps_ms": timing["two steps"].median * 1e3, "images_per_second": batch / timing["two steps"].median,
        "first_call_seconds": first,
    }  # fmt: skip
    if ours is not None:
        row["our_images_a_second_over_these"] = ours["images_per_second"] / row["images_per_second"]
        row["our_forward_ms_over_this"] = ours["forward_ms"] / row["forward_ms"]
    where = f"{kind(run)}, batch {batch}, {dtype}, {how}"
    run.row(where, **row)
    if ours is not None and how == "compiled":
        about = {"dtype": dtype, "batch": batch}
        rule = f"{where}: our two-step images a second over these"
        run.target(row["our_images_a_second_over_these"], 1.2, rule, at_least=True, **about)
        run.target(row["our_forward_ms_over_this"], 1.0, f"{where}: our forward call over this", **about)
