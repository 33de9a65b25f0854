"""LoRAs: merging one into Stable Diffusion XL beside diffusers, and what one attached beside the weights costs.

`merge`: a file of rank 64 over all 788 modules that few-step LoRAs change, random numbers in float16, read and added to
weights in float16. cmjax and diffusers (PEFT's layers, `fuse_lora`) do it one after the other, each in a process of its
own, once: what a user sees, compilation included. Peaks of memory are above that of the process with its weights.

`attach`: the network of Stable Diffusion 1.5 with such factors beside its weights, over the plain network; eleven
scales, one an image or under `vmap`, over one batch of eleven. In turn, in one process; ratios are of processor time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import conclude, interleaved, machine, parser, print_table, target

import cmjax

__all__ = ["TARGETS", "factors", "random"]

TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
MODULES = {"sdxl": 788}
SCALES = 11
OURS, THEIRS = "cmjax", "diffusers"


def _blocks(seed: int) -> Callable[[tuple[int, ...], float, Any], np.ndarray]:
    """Random numbers, the same million again and again: times do not depend on them."""
    block = np.random.default_rng(seed).standard_normal(1 << 20, np.float32)

    def draw(shape: tuple[int, ...], size: float, dtype: Any) -> np.ndarray:
        return np.resize((size * block).astype(dtype), shape)

    return draw


def random(network: Any) -> Any:
    """A network with random weights for an abstract one."""
    draw = _blocks(0)
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape, 0.02, leaf.dtype)), network)


def factors(network: Any, rank: int) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a file for a network, in PEFT's names and layout."""
    from cmjax.models.lora import kernels, pixel_layers

    draw, of_pixels = _blocks(1), pixel_layers(network)
    for name, shape in kernels(network).items():
        if name.endswith(TARGETS):
            window = shape[:-2] if len(shape) == 4 else ((1, 1) if name in of_pixels else ())
            ones = (1,) * len(window)
            yield f"unet.{name}.lora_A.weight", draw((rank, shape[-2], *window), 0.02, np.float16)
            yield f"unet.{name}.lora_B.weight", draw((shape[-1], rank, *ones), 0.02, np.float16)


# ---- merging, in a process of its own --------------------------------------------------------------------------------


def _memory(word: str) -> int:
    """VmRSS, the memory of this process now, or VmHWM, the most since `_forget`; in bytes."""
    return 1024 * int(re.findall(rf"{word}:\s*(\d+)", Path("/proc/self/status").read_text())[0])


def _forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def merge(kind: str, model: str, file: Path) -> None:
    """Merge the file's LoRA, and print what was found as a line of JSON."""
    load, fuse, check = (_ours if kind == OURS else _theirs)(model, file)
    before = _memory("VmRSS")
    _forget()
    seconds, cpu = [], time.process_time()
    for part in (load, fuse):
        start = time.perf_counter()
        part()
        seconds.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    peak = _memory("VmHWM")
    print(
        json.dumps(
            {
                "seconds": {"read": seconds[0], "merge": seconds[1], "both": sum(seconds), "both, cpu": cpu},
                "weights_bytes": before,
                "peak_over_weights_bytes": peak - before,
                "checked": check(),
            }
        )
    )


Parts = tuple[Callable[[], Any], Callable[[], Any], Callable[[], float]]


def _checked(base: np.ndarray, down: np.ndarray, up: np.ndarray) -> np.ndarray:
    wide = (value.astype(np.float32) for value in (up.reshape(len(up), -1), down.reshape(len(down), -1)))
    return base.astype(np.float32) + np.matmul(*wide).reshape(base.shape)


NAME = "mid_block.resnets.0.conv1"


def _ours(model: str, file: Path) -> Parts:
    import full_size_texts

    network = random(full_size_texts.abstract(model, dtype="float32", param_dtype="float16").unet)
    base = np.asarray(network.leaves()[f"{NAME}.kernel"]).transpose(3, 2, 0, 1).copy()
    found: dict[str, Any] = {"network": network}
    del network

    def load() -> None:
        found["lora"] = cmjax.lora.read(file)

    def fuse() -> None:
        found["network"] = cmjax.lora.merge(found.pop("network"), found["lora"], donate=True)
        jax.block_until_ready(found["network"])

    def check() -> float:
        form = found["lora"].factors[f"unet.{NAME}"].form
        expected = _checked(base, np.asarray(form.down).transpose(3, 2, 0, 1), np.asarray(form.up).T)
        merged = np.asarray(found["network"].leaves()[f"{NAME}.kernel"], np.float32).transpose(3, 2, 0, 1)
        return float(np.abs(merged - expected).max())

    return load, fuse, check


def _theirs(model: str, file: Path) -> Parts:
    import diffusers
    import full_size_texts
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(full_size_texts.MODELS[model].unet.to_dict())
    unet, draw = unet.half().to_empty(device="cpu").eval(), _blocks(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(torch.from_numpy(draw(tuple(parameter.shape), 0.02, np.float16)))
    kernel = lambda: unet.get_submodule(NAME).weight.detach().numpy()  # noqa: E731
    base = kernel().copy()

    def load() -> None:
        unet.load_lora_adapter(load_file(file), prefix="unet")

    def fuse() -> None:
        unet.fuse_lora()
        unet.unload_lora()

    def check() -> float:
        tensors = load_file(file)
        down, up = (tensors[f"unet.{NAME}.lora_{side}.weight"].numpy() for side in "AB")
        return float(np.abs(kernel().astype(np.float32) - _checked(base, down, up)).max())

    return load, fuse, check


def measure_merge(model: str, rank: int) -> tuple[dict[str, Any], list[Any]]:
    """Merge with each framework in a process of its own."""
    import full_size_texts
    from safetensors.numpy import save_file

    kinds = [OURS, THEIRS] if all(map(importlib.util.find_spec, ("torch", "diffusers", "peft"))) else [OURS]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        network = full_size_texts.abstract(model, param_dtype="float16").unet
        tensors = {name: np.ascontiguousarray(value) for name, value in factors(network, rank)}
        assert len(tensors) == 2 * MODULES.get(model, len(tensors) // 2)
        save_file(tensors, file, metadata={"format": "pt"})
        modules, size = len(tensors) // 2, file.stat().st_size
        del tensors
        for kind in kinds:
            command = [sys.executable, __file__, "--child", kind, "--model", model, "--file", str(file)]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                raise SystemExit(f"the process of {kind} failed:\n{ran.stderr[-6000:]}")
            found[kind] = json.loads(ran.stdout.strip().splitlines()[-1])
            print(f"{kind}: {found[kind]}", flush=True)
    rows = [
        [f"{part}, s", *(f"{found[kind]['seconds'][part]:.2f}" for kind in kinds)] for part in found[OURS]["seconds"]
    ]
    rows.append(["peak over weights, GB", *(f"{found[kind]['peak_over_weights_bytes'] / 1e9:.2f}" for kind in kinds)])
    print_table(f"{model}, {modules} modules, rank {rank}: merge", ["", *kinds], rows)
    targets = []
    if THEIRS in kinds:
        for part in ("merge", "both", "both, cpu"):
            over = found[OURS]["seconds"][part] / found[THEIRS]["seconds"][part]
            targets.append(target(over, 1.0, f"{model}, {part}: our time over {THEIRS}"))
        over = found[OURS]["peak_over_weights_bytes"] / found[THEIRS]["peak_over_weights_bytes"]
        targets.append(target(over, 1.0, f"{model}, merge: our memory beside the weights over {THEIRS}"))
    largest = 4 * max(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(network))
    rest = (found[OURS]["peak_over_weights_bytes"] - size) / largest
    targets.append(
        target(rest, 3.0, f"{model}, merge: memory beside weights and factors, in largest kernels of float32")
    )
    return {"modules": modules, "file_bytes": size, "found": found}, targets


# ---- attaching -------------------------------------------------------------------------------------------------------


def _lora(network: Any, rank: int, dtype: Any = jnp.float32) -> cmjax.lora.LoRA:
    """A LoRA for a network, without a file."""
    from cmjax.models.lora import Factors, Product, kernels

    draw, made = _blocks(1), {}
    for name, shape in kernels(network).items():
        if name.endswith(TARGETS):
            down, up = (draw(one, 0.02, dtype) for one in ((*shape[:-1], rank), (rank, shape[-1])))
            made[f"unet.{name}"] = Factors(Product(jnp.asarray(down), jnp.asarray(up)), jnp.float32(rank))
    return cmjax.lora.LoRA(made)


def measure_attach(model: str, rank: int, side: int, small: int, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    """Time networks with and without a LoRA, in turn."""
    import full_size_texts

    full = full_size_texts.MODELS[model]
    network = random(full_size_texts.abstract(model).unet)
    lora = _lora(network, rank)
    context = jnp.ones((1, 77, full.unet.cross_attention_dim))
    cond = lambda batch: cmjax.text_to_image.TextCond(jnp.repeat(context, batch, 0))  # noqa: E731
    x = lambda batch, side: jax.random.normal(jax.random.key(0), (batch, side, side, full.unet.in_channels))  # noqa: E731
    t, scales = jnp.float32(500.0), jnp.linspace(0.0, 1.0, SCALES)

    @jax.jit
    def call(network: Any, x: Any, cond: Any) -> Any:
        return network(x, t, cond)

    @jax.jit
    def sweep(network: Any, lora: Any, scales: Any, x: Any, cond: Any) -> Any:
        return jax.vmap(lambda scale: cmjax.lora.attach(network, lora, scale)(x, t, cond))(scales)

    attached = cmjax.lora.attach(network, lora, 0.5)
    each = cmjax.lora.attach(network, lora, scales)
    one, many, some = x(1, side), x(SCALES, small), x(1, small)
    cond1, cond11 = cond(1), cond(SCALES)
    times, _ = interleaved(
        {
            "plain": lambda: call(network, one, cond1),
            "attached": lambda: call(attached, one, cond1),
        },
        rounds=rounds,
    )
    batch, _ = interleaved(
        {
            "batch": lambda: call(network, many, cond11),
            f"{SCALES} scales, one an image": lambda: call(each, many, cond11),
            f"{SCALES} scales under vmap": lambda: sweep(network, lora, scales, some, cond1),
        },
        rounds=max(1, rounds // 2),
    )
    times |= batch
    rows = [[name, timing["median"], timing["cpu"]] for name, timing in times.items()]
    print_table(f"{model}, rank {rank}: a call of the network, seconds", ["", "median", "cpu"], rows)

    def over(name: str, base: str, most: float, size: int) -> dict[str, Any]:
        rule = f"{model}, {name} over {base}, {size} x {size}, processor time"
        return target(times[name]["cpu"] / times[base]["cpu"], most, rule)

    targets = [over("attached", "plain", 1.15, side), *(over(name, "batch", 1.2, small) for name in list(batch)[1:])]
    return {"latents": [side, small], "rounds": rounds, "times": times}, targets


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--only", choices=("merge", "attach"), help="this part only")
    options.add_argument("--tiny", action="store_true", help="tiny networks, one round: does it run?")
    options.add_argument("--rank", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--child", choices=(OURS, THEIRS), help="merge with this one, here")
    options.add_argument("--model", help="for --child")
    options.add_argument("--file", type=Path, help="for --child")
    args = options.parse_args(arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    if args.child:
        merge(args.child, args.model, args.file)
        return
    here, result, targets = machine(), {}, []
    rank, rounds = (2, 1) if args.tiny else (args.rank, args.rounds)
    if args.only != "attach":
        result["merge"], found = measure_merge("tiny-xl" if args.tiny else "sdxl", rank)
        targets += found
    if args.only != "merge":
        name, side, small = ("tiny", 8, 8) if args.tiny else ("sd15", 64, 32)
        result["attach"], found = measure_attach(name, rank, side, small, rounds)
        targets += found
    conclude({"program": "lora", "rank": rank, **result, "targets": targets}, args.json, here)


if __name__ == "__main__":
    main()
