"""The network: one forward pass of a published UNet in full size, beside PyTorch, and how near it is to the machine.

The same network with random weights in cmjax and in diffusers on PyTorch (eager, as diffusers loads it; eager,
channels-last; `torch.compile`, channels-last), in turn, on all local cores in float32. The rate counts the plain
arithmetic of the network's convolutions and matrix products, two operations for a multiplication, whatever a program
really does, and stands beside the best that a large matrix product reached in the same run. Where the time goes is from
a trace of the compiled program. `--formulations` times each choice of `cmjax/models/layers/on_cpu.py` on the network.

On a GPU: float32 (matrix products in TF32, the default there, in both) and bfloat16, at more batches.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import gzip
import importlib.util
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from common import Timing, conclude, interleaved, machine, parser, print_table, ratio, target
from flax import nnx
from full_size import NETWORKS, checkpoint
from jax.extend.core import jaxprs_in_params

from cmjax import _cpu
from cmjax.models import layers
from cmjax.models.layers import on_cpu

EAGER, LAST, COMPILED = "PyTorch eager", "PyTorch channels-last", "PyTorch compiled"
ON_CPU = {"float32": {1: 7, 4: 5}}  # rounds by batch, by dtype
ON_GPU = {"float32": {1: 15, 16: 9, 64: 5}, "bfloat16": {1: 15, 16: 9, 64: 7, 256: 5}}

# ---- arithmetic ------------------------------------------------------------------------------------------------------


def multiplications(jaxpr: Any, platform: str | None = None) -> int:
    """Count the multiplications of convolutions and matrix products, those with padded zeros among them.

    Args:
        jaxpr: of the network's call.
        platform: whose formulations to count; None for the plain ones.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            total += math.prod(out) * math.prod(kernel[:-1])  # kernels are HWIO
        elif equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(sizes)
        elif equation.primitive.name == "attend_long":  # softmax(q k) v: two products
            q, k = (variable.aval.shape for variable in equation.invars[:2])
            total += 2 * math.prod(q) * k[2]
        elif "branches_platforms" in equation.params:
            of = [names is None or platform in names for names in equation.params["branches_platforms"]]
            total += multiplications(equation.params["branches"][of.index(True)].jaxpr, platform)
        else:
            inner = sum(multiplications(part, platform) for part in jaxprs_in_params(equation.params))
            total += inner * equation.params.get("length", 1)
    return total


def matmul_rates(size: int, dtype: str, torch: Any, device: str) -> dict[str, float]:
    """Measure the operations a second of a square matrix product, the best of a few."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)), dtype)
    multiply = jax.jit(jnp.matmul)
    programs: dict[str, Callable[[], Any]] = {"jax": lambda: multiply(a, a)}
    if torch is not None:
        b = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
        programs["torch"] = waited(torch, device, lambda: b @ b)
    timing, _ = interleaved(programs, rounds=9, min_seconds=0.1)
    return {name: 2 * size**3 / timing[name]["best"] for name in programs}


# ---- the programs ----------------------------------------------------------------------------------------------------


def forward(model: Any, x: jax.Array, t: jax.Array, cond: jax.Array | None) -> jax.Array:
    return model(x, t, cond)


def inputs(network: str, batch: int, dtype: str = "float32") -> tuple[np.ndarray, Any, np.ndarray | None]:
    """Return x in channels-last order, t, and labels where the network has classes."""
    config = NETWORKS[network].config
    rng = np.random.default_rng(batch)
    x = rng.standard_normal((batch, config.sample_size, config.sample_size, config.in_channels), np.float32)
    return x.astype(jnp.dtype(dtype)), np.float32(200.0), np.arange(batch) % 1000 if config.num_class_embeds else None


def waited(torch: Any, device: str, program: Callable[[], Any]) -> Callable[[], Any]:
    """Let a program of PyTorch return nothing, and only when it is done."""

    def call() -> None:
        with torch.no_grad():
            program()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def torch_networks(torch: Any, network: str, device: str, dtype: str, compiled: bool) -> dict[str, Any]:
    """Make the reference networks: weights are its own, sizes are the same. Channels-last in one copy."""
    from diffusers import UNet2DModel

    config = {k: v for k, v in NETWORKS[network].config.to_dict().items() if k != "num_train_timesteps"}

    def make() -> Any:
        unet = UNet2DModel.from_config(config).eval().to(device)
        return unet if dtype == "float32" else unet.to(getattr(torch, dtype))

    last = make().to(memory_format=torch.channels_last)
    return {EAGER: make(), LAST: last} | ({COMPILED: torch.compile(last, dynamic=False)} if compiled else {})


def torch_program(torch: Any, unet: Any, name: str, device: str, dtype: str, arrays: Any) -> Callable[[], Any]:
    x, t, labels = arrays
    sample = torch.from_numpy(x.astype(np.float32).transpose(0, 3, 1, 2)).to(device, getattr(torch, dtype))
    sample = sample.contiguous(memory_format=torch.contiguous_format if name == EAGER else torch.channels_last)
    time, classes = torch.tensor(float(t), device=device), None
    if labels is not None:
        classes = torch.from_numpy(labels).to(device)
    return waited(torch, device, lambda: unet(sample, time, class_labels=classes).sample)


# ---- where the time goes ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def labelled() -> Iterator[None]:
    """Label the operations of a network by what they belong to, while it is traced; the program stays the same."""

    def under(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with jax.named_scope(f"part={label}"):
                return function(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name, label in (
            (nnx.Conv, "__call__", "convolutions"),
            (layers.Conv, "doubled", "convolutions"),
            (layers.GroupNorm, "__call__", "norms"),
            (layers.PixelAttention, "__call__", "attention, projections"),
            (layers.attention, "attend", "attention, softmax(q k) v"),
        ):
            stack.enter_context(mock.patch.object(owner, name, under(label, getattr(owner, name))))
        yield


def shares(
    compiled: Any, call: Callable[[], Any], unnamed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, float]:
    """Trace a few calls: the share of each part of the network in the time of all operations, summed over threads.

    An operation that the compiler fused belongs to the part of its result; it may hold an activation or a sum of its
    neighbours. "the rest" are activations, sums, embeddings; operations without a name are the compiler's own, unless
    the type of their result says more: `unnamed` maps regular expressions to parts.
    """
    parts, outer = {}, set()
    for line in compiled.as_text().splitlines():
        if not (found := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(", line)):
            continue
        if found[3] in ("while", "call", "conditional"):  # their bodies are counted
            outer.add(found[1])
        if found[3].startswith("all-reduce"):  # named by all that it sums
            parts[found[1]] = "sums over devices, with the wait for the slowest"
            continue
        if name := re.search(r'op_name="([^"]*)"', line):
            labels = re.findall(r"part=([^/\")]*)", name[1])
            backward = ", backward" if "transpose(" in name[1] else ""
            parts[found[1]] = (labels[-1] if labels else "the rest") + backward
        elif known := [part for shape, part in unnamed.items() if re.match(shape, found[2])]:
            parts[found[1]] = known[0]
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(2):
                jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    seconds: dict[str, float] = collections.Counter()
    for event in events:
        operation = event.get("args", {}).get("hlo_op") if event.get("ph") == "X" else None
        if operation is not None and operation not in outer:
            seconds[parts.get(operation, "no name")] += event["dur"]
    total = sum(seconds.values())
    return {part: value / total for part, value in sorted(seconds.items(), key=lambda item: -item[1])}


# ---- the figures -----------------------------------------------------------------------------------------------------


def compare(
    network: str, batch: int, dtype: str, rounds: int, model: Any, torch: Any, device: str, references: dict[str, Any]
) -> dict[str, Any]:
    """Time one batch: ours and the references in turn; and describe our compiled program."""
    arrays = inputs(network, batch, dtype)
    given = [None if a is None else jnp.asarray(a) for a in arrays]
    start = time.perf_counter()
    with labelled():
        compiled = jax.jit(forward).lower(model, *given).compile()
    row: dict[str, Any] = {"batch": batch, "dtype": dtype, "compile_seconds": time.perf_counter() - start}
    programs: dict[str, Callable[[], Any]] = {"cmjax": lambda: compiled(model, *given)}
    for name, unet in references.items():
        programs[name] = torch_program(torch, unet, name, device, dtype, arrays)
        if name == COMPILED:
            start = time.perf_counter()
            programs[name]()
            row["torch_compile_seconds"] = time.perf_counter() - start
    assert bool(jnp.isfinite(programs["cmjax"]()).all()), "the output of the network must be finite"
    row["times"], seconds = interleaved(programs, rounds=rounds)
    row["ratios"] = {name: ratio(seconds["cmjax"], seconds[name]) for name in references}
    jaxpr = jax.make_jaxpr(forward)(model, *given).jaxpr
    row["flop"] = 2 * multiplications(jaxpr)
    row["flop_done"] = 2 * multiplications(jaxpr, jax.default_backend())
    row["rates"] = {name: row["flop"] / timing.median for name, timing in row["times"].items()}
    memory = compiled.memory_analysis()
    row["temporary_bytes"] = None if memory is None else memory.temp_size_in_bytes
    row["shares"] = shares(compiled, programs["cmjax"])
    return row


def formulations(network: str, batch: int, rounds: int, model: Any) -> dict[str, Timing]:
    """Time the whole network with each choice of formulations."""
    never = float("inf")
    chosen = {"_KERNEL_PER_PIXEL": on_cpu._KERNEL_PER_PIXEL, "_CHANNELS": on_cpu._CHANNELS}
    choices = {
        "as chosen": {},
        "one product, no filtering": {"_CHANNELS": never},
        "filtering, no one product": {"_KERNEL_PER_PIXEL": never},
        "XLA's own": {},
    }
    given = [None if a is None else jnp.asarray(a) for a in inputs(network, batch)]
    programs = {}
    for name, changes in choices.items():
        own = mock.patch.object(_cpu, "WORKAROUNDS", name != "XLA's own")
        with own, mock.patch.multiple(on_cpu, **{**chosen, **changes}):
            compiled = jax.jit(lambda *args: forward(*args)).lower(model, *given).compile()
        programs[name] = functools.partial(compiled, model, *given)
    return interleaved(programs, rounds=rounds)[0]


def describe(row: dict[str, Any], peak: float) -> None:
    """Print the tables of one batch."""
    title = f"batch {row['batch']}, {row['dtype']}: {row['flop'] / 1e9:.0f} GFLOP, of which we do "
    title += f"{row['flop_done'] / 1e9:.0f}; compiled in {row['compile_seconds']:.1f} s"
    if "torch_compile_seconds" in row:
        title += f", by PyTorch in {row['torch_compile_seconds']:.1f} s"
    if row["temporary_bytes"] is not None:
        title += f"; {row['temporary_bytes'] / 2**20:.0f} MiB while it runs"
    lines = []
    for name, timing in row["times"].items():
        rate, quotient = row["rates"][name], row["ratios"].get(name)
        images = f"{row['batch'] / timing.median:.3g}"
        compared = "" if quotient is None else f"{quotient:.3f}"
        lines.append([name, f"{timing.median:.4f}", images, f"{rate / 1e9:.0f}", f"{rate / peak:.0%}", compared])
    print_table(title, ["", "s", "images/s", "GFLOP/s", "of the peak", "ours over it"], lines)
    print_table("Where our time goes", ["", "share"], [[part, f"{share:.1%}"] for part, share in row["shares"].items()])


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--network", choices=NETWORKS, default="imagenet64")
    options.add_argument("--batches", type=int, nargs="+", help="default: 1 and 4; on a GPU 1, 16, 64 and 256")
    options.add_argument("--rounds", type=int, help="for every batch; default: fewer for the larger ones")
    options.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    options.add_argument("--formulations", action="store_true", help="time the formulations of convolutions (CPU)")
    args = options.parse_args(arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    here, on_gpu = machine(), jax.default_backend() == "gpu"
    torch, device = reference(on_gpu)
    plan = ON_GPU if on_gpu else ON_CPU
    rows, rates, targets = [], {}, []
    for dtype, default in plan.items():
        rates[dtype] = matmul_rates(8192 if on_gpu else 2048, dtype, torch, device)
        peak = max(rates[dtype].values())
        print_table(
            f"A large matrix product, {dtype}",
            ["", "GFLOP/s"],
            [[k, f"{v / 1e9:.0f}"] for k, v in rates[dtype].items()],
        )
        model = checkpoint(args.network, dtype=jnp.dtype(dtype)).model
        references = torch_networks(torch, args.network, device, dtype, args.compiled) if torch is not None else {}
        for batch in args.batches or default:
            rounds = args.rounds or default.get(batch, min(default.values()))
            row = compare(args.network, batch, dtype, rounds, model, torch, device, references)
            row["share_of_peak"] = {name: rate / peak for name, rate in row["rates"].items()}
            describe(row, peak)
            rows.append(row)
            for name, kind in ((EAGER, "eager"), (LAST, "eager, channels-last"), (COMPILED, "compiled")):
                if name in row["ratios"] and name != LAST:
                    rule = f"{args.network}, batch {batch}, {dtype}: forward pass over PyTorch's, {kind}"
                    targets.append(target(row["ratios"][name], 1.0, rule))
        del model, references
    result: dict[str, Any] = {
        "program": "unet_forward",
        "network": args.network,
        "parameters": NETWORKS[args.network].parameters,
        "matmul_precision": "TF32 for float32" if on_gpu else "float32",
        "matmul_flop_per_second": rates,
        "forward": rows,
    }
    if args.formulations:
        result["formulations"] = []
        model = checkpoint(args.network).model
        for batch in args.batches or ON_CPU["float32"]:
            timing = formulations(args.network, batch, args.rounds or ON_CPU["float32"].get(batch, 5), model)
            result["formulations"].append({"batch": batch, "times": timing})
            lines = [[name, f"{t.median:.3f}"] for name, t in timing.items()]
            print_table(f"Formulations of convolutions, batch {batch}", ["", "s"], lines)
    conclude({**result, "targets": targets}, args.json, here)


def reference(on_gpu: bool) -> tuple[Any, str]:
    """Set PyTorch up, and say where it runs; None where it or diffusers is missing, or it sees no GPU and JAX does."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "diffusers")):
        print("torch and diffusers are not installed: cmjax alone is measured")
        return None, "cpu"
    import torch

    if on_gpu and not torch.cuda.is_available():
        print("this torch sees no GPU: cmjax alone is measured")
        return None, "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return torch, "cuda" if on_gpu else "cpu"


if __name__ == "__main__":
    main()
