"""Where the time goes: kernel by kernel, for the headline network and for whatever missed its target.

A trace of a few calls is read with `jax.profiler.ProfileData`. Each kernel belongs to an instruction of the optimized
program, by its `hlo_op` where the trace says it, else by its name (a fused kernel is called as its instruction is), and
through that to a part of the network (`unet_forward.labelled`); kernels of libraries go by their own names.
"""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from common import interleaved

from gpu_parts import Run, part

__all__ = ["Instruction", "Kernel", "instructions", "kernels", "profile", "rearrangements", "table"]

SIZES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
LIBRARIES = (  # kernels without an instruction of their name
    (r"fprop|dgrad|wgrad|conv|winograd|cudnn.*engine", "convolutions"),
    (r"flash|fmha|sdpa|attention", "attention, softmax(q k) v"),
    (r"gemm|nvjet|cutlass|cublas|splitK", "matrix products"),
    (r"transpose|nhwc|nchw|copy|memcpy|MemcpyD2D", "copies and transposes"),
    (r"memset", "fills"),
)


class Instruction(NamedTuple):
    """An instruction of the optimized program."""

    opcode: str
    part: str
    bytes: int  # of its result


class Kernel(NamedTuple):
    """A kernel of a trace: its name, its instruction if the trace says it, and all its time."""

    name: str
    hlo_op: str | None
    seconds: float
    calls: int


def instructions(text: str) -> dict[str, Instruction]:
    """Read the optimized program: name -> instruction."""
    found = {}
    for line in text.splitlines():
        said = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(", line)
        if not said:
            continue
        name, kind, opcode = said.groups()
        moved = 0
        for dtype, shape in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", kind):
            count = 1
            for number in shape.split(",") if shape else ():
                count *= int(number)
            moved += SIZES.get(dtype, 0) * count
        about = re.search(r'op_name="([^"]*)"', line)
        labels = re.findall(r"part=((?:[^/\"()]|\([^()]*\))*)", about[1]) if about else []
        label = labels[-1] if labels else ("the rest" if about else "no name")
        if about and "transpose(" in about[1]:
            label += ", backward"
        found[name] = Instruction(opcode, label, moved)
    return found


def rearrangements(text: str) -> dict[str, float]:
    """Count transposes and copies that are kernels of their own, and the bytes that they read and write."""
    counts: dict[str, float] = collections.Counter()
    fused = False
    for line in text.splitlines():
        if line and not line[0].isspace():
            fused = line.startswith(("%fused", "fused", "%wrapped", "wrapped")) or "fused_computation" in line
        elif not fused and (found := instructions(line)):
            ((name, each),) = found.items()
            for word in ("transpose", "copy"):
                if each.opcode == word or (each.opcode == "fusion" and word in name):
                    counts[word] += 1
                    counts[f"{word}_megabytes"] += 2 * each.bytes / 1e6
                    break
    return dict(counts)


def kernels(folder: Path) -> list[Kernel]:
    """Read a trace: every kernel, the longest first; on a CPU, every operation."""
    seconds: dict[tuple[str, str | None], float] = collections.Counter()
    calls: dict[tuple[str, str | None], int] = collections.Counter()
    for path in folder.rglob("*.xplane.pb"):
        for name, operation, duration in _events(jax.profiler.ProfileData.from_file(str(path))):
            seconds[name, operation] += duration
            calls[name, operation] += 1
    found = [Kernel(*key, value, calls[key]) for key, value in seconds.items()]
    return sorted(found, key=lambda kernel: -kernel.seconds)


def _events(data: Any) -> Iterator[tuple[str, str | None, float]]:
    planes = list(data.planes)
    on_gpu = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in on_gpu or planes:
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")] if on_gpu else lines
        for line in streams or lines:
            for event in line.events:
                stats = {key: value for key, value in event.stats if isinstance(key, str)}
                if on_gpu or "hlo_op" in stats:
                    yield event.name, stats.get("hlo_op"), event.duration_ns / 1e9


def owner(kernel: Kernel, program: dict[str, Instruction]) -> str:
    """The part of the network that a kernel belongs to."""
    names = {re.sub(r"[.\-]", "_", name): each for name, each in program.items()}
    for name in (kernel.hlo_op or "", kernel.name):
        each = program.get(name) or names.get(re.sub(r"[.\-]", "_", name))
        if each is None:
            continue
        if each.opcode in ("transpose", "copy") or (each.opcode == "fusion" and re.search("transpose|copy", name)):
            return f"copies and transposes ({each.part})"
        if each.part != "no name":
            return each.part
    return next((part for pattern, part in LIBRARIES if re.search(pattern, kernel.name, re.I)), "no name")


def table(run: Run, where: str, compiled: Any, call: Callable[[], Any], calls: int = 3) -> None:
    """Write the share of every part, the longest kernels, and the rearrangements of one compiled program."""
    text = compiled.as_text()
    program = instructions(text)
    outer = {name for name, each in program.items() if each.opcode in ("while", "call", "conditional")}
    wall = interleaved({"call": call}, rounds=2 if run.tiny else 7)[0]["call"].median
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call())
        found = [kernel for kernel in kernels(Path(folder)) if kernel.hlo_op not in outer]
    total = sum(kernel.seconds for kernel in found)
    if not total:
        raise RuntimeError(f"{where}: the trace holds no kernel")
    parts: dict[str, float] = collections.Counter()
    for kernel in found:
        parts[owner(kernel, program)] += kernel.seconds
    shares = {name: f"{value / total:.1%}" for name, value in sorted(parts.items(), key=lambda item: -item[1])}
    run.row(f"{where}: shares of kernels' time", ms=wall * 1e3, kernels_ms=total / calls * 1e3, **shares)
    run.row(f"{where}: kernels of their own in the optimized program", **rearrangements(text))
    longest = [
        {
            "kernel": kernel.name[:160], "hlo_op": kernel.hlo_op, "part": owner(kernel, program),
            "ms": kernel.seconds / calls * 1e3, "calls": kernel.calls / calls, "share": kernel.seconds / total,
        }
        for kernel in found[:40]
    ]  # fmt: skip
    run.row(f"{where}: kernels", longest=longest)
    for each in longest[: 2 if run.tiny else 8]:
        label = f"{each['kernel'][:60]} ({each['part']})"
        run.row(f"  {label}", ms=each["ms"], calls=each["calls"], share=each["share"])


def compiled_forward(model: Any, arrays: tuple[Any, ...]) -> tuple[Any, Callable[[], Any]]:
    """Compile a network's call, its parts labelled: the program and a call of it."""
    from unet_forward import labelled

    with labelled():  # a new function each time, since JAX remembers what it has traced
        compiled = jax.jit(lambda model, *arrays: model(*arrays)).lower(model, *arrays).compile()
    return compiled, lambda: compiled(model, *arrays)


def by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, **_: Any) -> jax.Array:
    """Attention as one kernel of cuDNN's, for arrays f[B, heads, N, d]."""
    q, k, v = (jnp.swapaxes(each, 1, 2) for each in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, implementation="cudnn"), 1, 2)


# A CUDA graph would hide its kernels from the profiler.
@part("profile", place=9, share=45, xla_flags="--xla_gpu_enable_command_buffer=")
def profile(run: Run) -> None:
    """Kernels of the headline network and of what missed its target; what another formulation would take."""
    from gpu_parts.imagenet64 import cases, given, kind, network

    missed = {
        (name, line.get("dtype"), line.get("batch"))
        for name in ("imagenet64", "pytorch", "training")
        for line in run.earlier(name).get("targets", ())
        if not line["met"]
    }
    networks = [(dtype, batch) for name, dtype, batch in missed if name != "training"]
    wanted = cases(run)
    for dtype, batch in [wanted[0], *(case for case in wanted[1:] if case in networks)]:
        where = f"{kind(run)}, batch {batch}, {dtype}"
        if not run.has(15, where):
            continue
        with run.attempt(where):
            model, _ = network(run, dtype)
            arrays = given(model, batch)
            compiled, call = compiled_forward(model, arrays)
            table(run, where, compiled, call)
        if dtype == "bfloat16" and jax.default_backend() == "gpu" and run.has(15, f"{where}, attention by cuDNN"):
            from cmjax.models.layers import attention

            with run.attempt(f"{where}, attention by cuDNN"), mock.patch.object(attention, "attend", by_cudnn):
                _, variant = compiled_forward(model, arrays)
                timing, _ = interleaved({"as it is": call, "cuDNN": variant}, rounds=7)
                ms = {f"ms {name}": each.median * 1e3 for name, each in timing.items()}
                run.row(f"{where}: attention by cuDNN", **ms)
    if not run.tiny and any(name == "training" for name, *_ in missed) and run.has(15, "training"):
        import training as program

        from gpu_parts.training import METHOD, size

        with run.attempt("training"):
            step = program.Step(METHOD, program.FOLDER, size(run), "bfloat16")
            table(run, f"training, {METHOD}, batch {size(run)}, bfloat16", step.compiled, step)
