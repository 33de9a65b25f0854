"""A step of TCD-LoRA training of Stable Diffusion 1.5, beside the same recipe in PyTorch with diffusers and PEFT.

The network of Stable Diffusion 1.5 in its published size with random weights, in float32, and a LoRA of rank 64 beside
the layers that the published LoRAs of TCD change. A step is the recipe `tcd-lora`: the base, guided by a scale for each
example (one call of twice the batch), goes one step of DDIM down; from there the LoRA's target, which is the student
itself, jumps to a lower timestep without a gradient; from above the student jumps there with one; pseudo-Huber
distance, clipped gradient, AdamW of the factors, and one average of them. The base is there once on both sides: PEFT's
adapters are switched off for the teacher.

Each framework has a process of its own. Both are alive at once, and steps are taken in turn, A B A B: the one that
waits does nothing. `peak` is the largest resident set of a process, compilation included, `steps` that of the steps
after the first.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Timing, conclude, machine, parser, print_table, ratio, target

import cmjax

OURS, AGAIN, THEIRS = "cmjax", "cmjax, remat", "diffusers and PEFT"
TOKENS = 77


def resident(word: str) -> int:
    """VmRSS, the memory of this process now, or VmHWM, the most since `forget`; in bytes."""
    return 1024 * int(re.findall(rf"{word}:\s*(\d+)", Path("/proc/self/status").read_text())[0])


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def drawn(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random numbers, the same million again and again: times do not depend on them."""
    return np.resize(_block(seed), shape)


@functools.cache
def _block(seed: int) -> np.ndarray:
    return (0.02 * np.random.default_rng(seed).standard_normal(1 << 20)).astype(np.float32)


def network(model: str, narrow: int) -> Any:
    """The config of a model's network, with a part of its channels."""
    import full_size_texts

    config = full_size_texts.MODELS[model].unet
    return dataclasses.replace(config, block_out_channels=tuple(c // narrow for c in config.block_out_channels))


def pooled_width(config: Any) -> int:
    """The width of the pooled text that a network like XL's is told; 0 for others."""
    if config.addition_embed_type is None:
        return 0
    return config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim


# ---- ours ------------------------------------------------------------------------------------------------------------


def ours(
    config: Any, rank: int, side: int, batch: int, *, remat: bool, dtype: str = "float32"
) -> tuple[Callable[[], float], Callable[[], dict[str, Any]]]:
    """A training step, and what there is to say of it. The base computes and lies in `dtype`, factors in float32."""
    from shapes import shaped
    from unet_forward import multiplications

    from cmjax import recipes, training
    from cmjax.guidance import WithNull
    from cmjax.io.memory import return_freed_memory
    from cmjax.models import from_nnx, lora, partition
    from cmjax.models.lora import Factors, Product
    from cmjax.models.unet2d_condition import UNetCondition
    from cmjax.text_to_image import TextCond

    abstract = from_nnx(shaped(lambda rngs: UNetCondition(config, rngs=rngs, dtype=jnp.dtype(dtype))))
    leaves = {
        name: jnp.asarray(drawn(leaf.shape), dtype)
        if leaf.ndim > 1
        else jnp.full(leaf.shape, name.endswith("scale"), jnp.float32)
        for name, leaf in abstract.leaves().items()
    }
    base = abstract.replace(leaves)
    factors = {
        name: Factors(
            Product(jnp.asarray(drawn((*shape[:-1], rank), 1)), jnp.zeros((rank, shape[-1]))), jnp.float32(rank)
        )
        for name, shape in lora.kernels(base).items()
        if name.endswith(cmjax.lora.TARGETS)
    }
    given = {name: value for name, value in recipes.read("tcd-lora").items() if name != "lora"}
    recipe = training.Recipe().changed({**given, "batch_size": batch, "remat": remat}, "tcd-lora")
    levels = cmjax.tcd.TCDConfig(num_train_timesteps=1000)
    trained, frozen = partition(lora.attach(base, factors, jnp.float32(1.0)))
    state = training.init(trained, recipe)
    numbers, factors = sum(leaf.size for leaf in jax.tree.leaves(trained)), len(factors)
    del leaves, trained
    text = jax.random.normal(jax.random.key(1), (batch, TOKENS, config.cross_attention_dim))
    more = {}
    if pooled := pooled_width(config):
        more = {"pooled": jnp.zeros((batch, pooled)), "sizes": jnp.full((batch, 6), 8.0 * side)}
    cond = WithNull(TextCond(text, **more), TextCond(jnp.zeros_like(text), **more))
    x0 = jax.random.normal(jax.random.key(2), (batch, side, side, config.in_channels))
    rest = x0, cond, jax.random.key(0), base, frozen
    start = time.perf_counter()
    static = {"recipe": recipe, "config": levels, "teacher_config": levels}
    traced = training.train_step.trace(state, *rest, **static)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    return_freed_memory()  # as `cmjax.training.train` does after its first step
    operations = 2 * multiplications(traced.jaxpr.jaxpr, jax.default_backend())

    def step() -> float:
        nonlocal state
        state, loss = compiled(state, *rest)
        return float(loss)

    def said() -> dict[str, Any]:
        memory: Any = compiled.memory_analysis()
        return {
            "trained_numbers": numbers,
            "modules": factors,
            "compile_seconds": seconds,
            "operations": operations,
            "arguments_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
        }

    return step, said


# ---- theirs ----------------------------------------------------------------------------------------------------------


def theirs(
    config: Any,
    rank: int,
    side: int,
    batch: int,
    *,
    compiled: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> tuple[Callable[[], float], Callable[[], dict[str, Any]]]:
    """The same step in PyTorch. PEFT keeps factors in float32."""
    import diffusers
    import torch
    from peft import LoraConfig
    from training_torch import rates, wide

    from cmjax.schedules import training_grid

    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    with torch.device("meta"):
        net = diffusers.UNet2DConditionModel.from_config(config.to_dict())
    net = net.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            one = "norm" in name and name.endswith("weight")
            kind = drawn(tuple(parameter.shape)) if parameter.ndim > 1 else np.full(parameter.shape, one, np.float32)
            parameter.copy_(torch.from_numpy(kind))
    net = net.to(device, getattr(torch, dtype)).requires_grad_(False)
    if device != "cpu":
        net = net.to(memory_format=torch.channels_last)
    chosen = [
        name
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and name.endswith(cmjax.lora.TARGETS)
    ]
    net.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=chosen, init_lora_weights=True))
    factors = [parameter for parameter in net.parameters() if parameter.requires_grad]
    averages = [factor.detach().clone() for factor in factors]
    optimizer = torch.optim.AdamW(factors, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01, fused=True)
    torch.manual_seed(0)
    levels = torch.from_numpy(np.union1d([0], training_grid(1000, 50))).to(device)
    x0 = torch.randn(batch, config.in_channels, side, side, device=device)
    text = torch.randn(batch, TOKENS, config.cross_attention_dim, device=device).to(net.dtype)
    null, width = torch.zeros_like(text), pooled_width(config)

    def call(x: Any, t: Any, text: Any) -> Any:
        told = {}
        if width:
            zeros = torch.zeros(len(x), width, dtype=net.dtype, device=device)
            told["added_cond_kwargs"] = {
                "text_embeds": zeros,
                "time_ids": torch.full((len(x), 6), 8.0 * side, dtype=net.dtype, device=device),
            }
        return net(x.to(net.dtype), t, text, **told).sample.float()

    call = torch.compile(call, dynamic=False) if compiled else call

    def ddim(eps: Any, x: Any, t: Any, s: Any) -> Any:
        (alpha, sigma), (alpha_s, sigma_s) = rates(t), rates(s)
        return alpha_s * (x - sigma * eps) / alpha + sigma_s * eps

    def step() -> float:
        i = 1 + (torch.rand(batch, device=device) * (len(levels) - 1)).long()
        t, n = levels[i], levels[i - 1]
        m = levels[(torch.rand(batch, device=device) * i).long()]
        scales = wide(2 + 12 * torch.rand(batch, device=device))
        alpha, sigma = rates(t)
        x_t = alpha * x0 + sigma * torch.randn_like(x0)
        with torch.no_grad():
            net.disable_adapters()
            without, told = call(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([null, text])).chunk(2)
            net.enable_adapters()
            x_n = ddim(without + scales * (told - without), x_t, t, n)
            aim = ddim(call(x_n, n, text), x_n, n, m)
        jump = ddim(call(x_t, t, text), x_t, t, m)
        loss = (((jump - aim).square().flatten(1).sum(1) + 0.03**2).sqrt() - 0.03).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, [factor.detach() for factor in factors], 0.01)
        return float(loss.detach())

    said = {"trained_numbers": sum(factor.numel() for factor in factors), "modules": len(chosen)}
    return step, lambda: said


# ---- in turn ---------------------------------------------------------------------------------------------------------


def serve(kind: str, args: Any) -> None:
    """Be a process that takes a step for each line that comes in, and says how long it took."""
    given = network(args.model, args.narrow), args.rank, args.side, args.batch
    step, said = theirs(*given) if kind == THEIRS else ours(*given, remat=kind == AGAIN)
    first = step()
    peak = resident("VmHWM")
    print(json.dumps({**said(), "first_loss": first, "peak_bytes": peak}), flush=True)
    forget()
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        loss = step()
        row = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "loss": loss}
        print(json.dumps({**row, "steps_bytes": resident("VmHWM")}), flush=True)


def measure(kinds: list[str], rounds: int, options: list[str]) -> dict[str, dict[str, Any]]:
    """Start each kind's process, one after the other, then let them step in turn."""
    processes: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        command = [sys.executable, __file__, "--child", kind, *options]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes[kind], found[kind] = child, {**answer(child, kind), "rows": []}
        print(f"{kind}: {found[kind]}", flush=True)
    for _ in range(rounds):
        for kind, child in processes.items():
            child.stdin.write("\n")
            child.stdin.flush()
            found[kind]["rows"].append(answer(child, kind))
            print(f"{kind}: {found[kind]['rows'][-1]}", flush=True)
    for child in processes.values():
        child.stdin.close()
        child.wait()
    return found


def answer(child: Any, kind: str) -> dict[str, Any]:
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"the process of {kind} ended.")
    return json.loads(line)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="sd15", help="of tests/support/full_size_texts.py")
    options.add_argument("--rank", type=int, default=64)
    options.add_argument("--narrow", type=int, default=1, help="divide the network's channels by this")
    options.add_argument("--side", type=int, default=32, help="of the latents")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--remat", action="store_true", help="ours with recomputed blocks as well")
    options.add_argument("--tiny", action="store_true", help="a tiny network, two rounds: does it run?")
    options.add_argument("--child", choices=(OURS, AGAIN, THEIRS), help="be the process of this one")
    args = options.parse_args(arguments)
    if args.tiny:
        args.model, args.rank, args.side, args.rounds = "tiny", 4, 8, 2
    if args.child:
        serve(args.child, args)
        return
    here = machine()
    kinds = [OURS, *([AGAIN] if args.remat else [])]
    kinds += [THEIRS] if all(map(importlib.util.find_spec, ("torch", "diffusers", "peft"))) else []
    sizes = {name: getattr(args, name) for name in ("model", "narrow", "rank", "side", "batch")}
    found = measure(kinds, args.rounds, [word for name, size in sizes.items() for word in (f"--{name}", str(size))])
    counts = {(one["trained_numbers"], one["modules"]) for one in found.values()}
    if len(counts) > 1:
        raise SystemExit(f"the LoRAs differ in numbers and modules: {counts}")
    for one in found.values():
        rows = one.pop("rows")
        one["times"] = Timing.of([row["seconds"] for row in rows], [row["cpu"] for row in rows])
        one["seconds"] = [row["seconds"] for row in rows]
        one["steps_bytes"] = max(row["steps_bytes"] for row in rows)
        one["last_loss"] = rows[-1]["loss"]
    print_table(
        f"A step: {', '.join(f'{name} {size}' for name, size in sizes.items())}",
        ["", "seconds", "of cpu", "peak, GB", "later, GB"],
        [
            [kind, one["times"]["median"], statistics.median([one["times"]["cpu"]]),
             one["peak_bytes"] / 1e9, one["steps_bytes"] / 1e9]
            for kind, one in found.items()
        ],
    )  # fmt: skip
    targets = []
    if THEIRS in found:
        base = found[THEIRS]
        over = ratio(found[OURS]["seconds"], base["seconds"])
        targets.append(target(over, 1.0, f"{args.model}: a training step over that of {THEIRS}"))
        cpu = found[OURS]["times"]["cpu"] / base["times"]["cpu"]
        targets.append(target(cpu, 1.0, f"{args.model}: the same in processor time"))
        over = found[OURS]["steps_bytes"] / base["steps_bytes"]
        targets.append(target(over, 1.0, f"{args.model}: memory of later steps over that of {THEIRS}"))
    conclude({"program": "lora_training", **sizes, "found": found, "targets": targets}, args.json, here)


if __name__ == "__main__":
    main()
