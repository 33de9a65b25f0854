"""The published models in full size: what sampling adds to the network, what memory they take, and the first image.

Weights are random: times and memory do not depend on them. *Loop*: the published two-step path (`cmjax.generate`, noise
drawn in it) over twice one forward call, in turn. *Memory* and *first image*: fresh processes that load one folder in
the published layout, cmjax and diffusers in turn.

Memory is the largest resident set from the start of a process to its end, in phases. *Compile first* compiles for the
abstract model and then loads, as `cmjax sample` does and the guide on published models describes. *Load first* is the
other order, in which memory holds the weights and XLA's compilation at once. Cold is with an empty persistent compile
cache, warm with the cache that cold left.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import Timing, conclude, interleaved, machine, parser, print_table, ratio, target
from full_size import NETWORKS, checkpoint, write_folder

import cmjax

# Each child says when it has loaded and when it is done, with the largest resident set since the last time it said so.
SAY = """
import json, os, re, sys, time
folder, batch, size, classes = sys.argv[1], *map(int, sys.argv[2:5])
timesteps = json.loads(sys.argv[5])
def status(name):
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(name + r":\\s*(\\d+)", file.read())[1])
def say(event, **figures):
    figures |= {"peak": status("VmHWM"), "time": time.time()}
    print(json.dumps({"event": event, **figures}), flush=True)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
"""

CMJAX_FORWARD = """
import jax, cmjax
say("imports")
def load(abstract=False):
    model, config = cmjax.load(folder, abstract=abstract)
    if not abstract:
        jax.block_until_ready(model)
        say("loading")
    return model
def compile(model):
    compiled = jax.jit(lambda *args: args[0](*args[1:])).lower(model, x, 200.0, cond).compile()
    say("compiling", temporary=compiled.memory_analysis().temp_size_in_bytes)
    return compiled
x = jax.numpy.ones((batch, size, size, 3))
cond = jax.numpy.zeros(batch, "int32") if classes else None
%s
jax.block_until_ready(compiled(model, x, 200.0, cond))
say("calling", weights=sum(leaf.nbytes for leaf in jax.tree.leaves(model)))
"""

FORWARD = {
    "cmjax": CMJAX_FORWARD % "compiled = compile(load(abstract=True)); model = load()",
    "cmjax, load first": CMJAX_FORWARD % "model = load(); compiled = compile(model)",
    "diffusers": """
import torch
from diffusers import UNet2DModel
torch.set_num_threads(len(os.sched_getaffinity(0)))
say("imports")
unet = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
say("loading")
x = torch.ones(batch, 3, size, size)
cond = torch.zeros(batch, dtype=torch.long) if classes else None
with torch.no_grad():
    unet(x, torch.tensor(200.0), class_labels=cond).sample
say("calling", weights=sum(p.nbytes for p in unet.parameters()))
""",
}

FIRST_IMAGE = {
    "cmjax": """
import jax, cmjax
abstract, config = cmjax.load(folder, abstract=True)
state = cmjax.cm.init(config, timesteps=timesteps)
key, shape = jax.random.key(0), (batch, size, size, 3)
cond = jax.numpy.zeros(batch, "int32") if classes else None
generate = jax.jit(cmjax.generate, static_argnames="shape").lower(abstract, state, key, shape, cond=cond).compile()
model, config = cmjax.load(folder)
jax.block_until_ready(generate(model, state, key, cond=cond))
say("done")
""",
    "diffusers": """
import torch
from diffusers import ConsistencyModelPipeline
torch.set_num_threads(len(os.sched_getaffinity(0)))
pipeline = ConsistencyModelPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
pipeline(batch_size=batch, num_inference_steps=None, timesteps=timesteps, class_labels=0 if classes else None,
         generator=torch.Generator().manual_seed(0), output_type="np")
say("done")
""",
}


def loop(network: str, batches: list[int], rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time the published two-step path against two forward calls."""
    model, config = checkpoint(network)
    forward = jax.jit(lambda model, x, t, cond: model(x, t, cond))
    generate = jax.jit(cmjax.generate, static_argnames="shape")
    state = cmjax.cm.init(config, timesteps=NETWORKS[network].published.timesteps)
    rows, targets, key = [], [], jax.random.key(0)
    for batch in batches:
        shape, cond = _inputs(network, batch)
        x, t = jax.random.normal(key, shape), jnp.float32(200.0)
        timing, seconds = interleaved(
            {
                "forward": lambda x=x, t=t, cond=cond: forward(model, x, t, cond),
                "two steps": lambda shape=shape, cond=cond: generate(model, state, key, shape=shape, cond=cond),
            },
            rounds=rounds,
        )
        quotient = ratio(seconds["two steps"], [2 * s for s in seconds["forward"]])
        rows.append({"batch": batch, "ratio": quotient, **timing})
        targets.append(target(quotient, 1.02, f"{network}, batch {batch}: two steps over two forward calls"))
    return rows, targets


def _inputs(network: str, batch: int) -> tuple[tuple[int, ...], jax.Array | None]:
    config = NETWORKS[network].config
    cond = jnp.arange(batch) % config.num_class_embeds if config.num_class_embeds else None
    return (batch, config.sample_size, config.sample_size, config.in_channels), cond


def fresh(program: str, network: str, folder: Path, batch: int, environment: dict[str, str]) -> dict[str, Any]:
    """Run a child; returns what it said at the end of each phase, and when, in seconds since its start."""
    config, timesteps = NETWORKS[network].config, NETWORKS[network].published.timesteps
    arguments = [str(folder), str(batch), str(config.sample_size), str(config.num_class_embeds or 0)]
    command = [sys.executable, "-c", SAY + program, *arguments, json.dumps(timesteps)]
    start = time.time()
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(f"a measured process failed:\n{child.stderr}")
    events = {said.pop("event"): said for said in map(json.loads, child.stdout.splitlines())}
    for said in events.values():
        said["seconds"] = said.pop("time") - start
    return events


def compile_cache(base: dict[str, str], folder: str) -> dict[str, str]:
    """Return the environment with JAX's persistent compile cache in a folder, and everything kept there."""
    return base | {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def in_turn(base: dict[str, str], kinds: list[str], cache: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Name the processes to run, in order, with kind and environment: the second finds the programs of the first."""
    cached = compile_cache(base, cache)
    runs = {f"{kind}, {state}": (kind, cached) for kind in kinds if kind != "diffusers" for state in ("cold", "warm")}
    return runs | ({"diffusers": ("diffusers", base)} if "diffusers" in kinds else {})


def memory(network: str, folder: Path, batch: int, kinds: list[str], base: dict[str, str]) -> dict[str, Any]:
    """Load and call once in fresh processes; the peaks, and what they are made of."""
    result: dict[str, Any] = {"batch": batch}
    for order in ([kind] for kind in (*kinds, "cmjax, load first")):  # each with a compile cache of its own
        with tempfile.TemporaryDirectory() as cache:
            for name, (kind, environment) in in_turn(base, order, cache).items():
                result[name] = _parts(fresh(FORWARD[kind], network, folder, batch, environment))
    return result


def _parts(events: dict[str, Any]) -> dict[str, int]:
    parts = {"peak": max(said["peak"] for said in events.values())}
    parts |= {f"in {phase}": said["peak"] for phase, said in events.items()}
    return (
        parts
        | {"weights": events["calling"]["weights"]}
        | ({"temporary": events["compiling"]["temporary"]} if "compiling" in events else {})
    )


def first_image(network: str, folder: Path, kinds: list[str], base: dict[str, str], rounds: int) -> dict[str, Timing]:
    """Time from the start of a process to its first two-step image: a cold and a warm compile cache, and diffusers."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name, (kind, environment) in in_turn(base, kinds, cache).items():
                measured = fresh(FIRST_IMAGE[kind], network, folder, 1, environment)
                seconds.setdefault(name, []).append(measured["done"]["seconds"])
    return {name: Timing.of(values) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--network", choices=NETWORKS, default="imagenet64")
    options.add_argument("--folder", type=Path, help="of such a network; default: one is made and removed")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    options.add_argument("--rounds", type=int, default=5, help="of the loop")
    options.add_argument("--process-rounds", type=int, default=3, help="of the first image")
    args = options.parse_args(arguments)
    here = machine()
    jax.config.update("jax_enable_compilation_cache", False)
    base = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    kinds = ["cmjax"]
    if jax.default_backend() != "cpu":
        print("the reference runs on the CPU here: cmjax alone is measured")
    elif not all(importlib.util.find_spec(name) for name in ("torch", "diffusers")):
        print("torch and diffusers are not installed: cmjax alone is measured")
    else:
        kinds.append("diffusers")
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or write_folder(Path(made) / "network", args.network)
        images = first_image(args.network, folder, kinds, base, args.process_rounds)
        on_linux = Path("/proc/self/clear_refs").exists()
        memories = [memory(args.network, folder, batch, kinds, base) for batch in args.batches if on_linux]
    rows, targets = loop(args.network, args.batches, args.rounds)
    report(rows, memories, images)
    for found in memories:
        for cache in ("cold", "warm") if "diffusers" in found else ():
            quotient = found[f"cmjax, {cache}"]["peak"] / found["diffusers"]["peak"]
            rule = f"{args.network}, batch {found['batch']}: memory to load and call once, {cache} compile cache"
            targets.append(target(quotient, 1.15, f"{rule}, over diffusers"))
    result = {"program": "published_models", "network": args.network, "loop": rows, "memory": memories}
    conclude({**result, "first_image": images, "targets": targets}, args.json, here)


def report(rows: list[dict[str, Any]], memories: list[dict[str, Any]], images: dict[str, Timing]) -> None:
    print_table(
        "The published two-step path, seconds (medians)",
        ["", "two steps", "forward", "ratio"],
        [
            [
                f"batch {row['batch']}",
                f"{row['two steps'].median:.3f}",
                f"{row['forward'].median:.3f}",
                f"{row['ratio']:.4f}",
            ]
            for row in rows
        ],
    )
    for found in memories:
        names = list(found["cmjax, cold"])
        kinds = [kind for kind in found if kind != "batch"]
        print_table(
            f"Memory to load and call once, batch {found['batch']}, MiB",
            ["", *kinds],
            [[name, *(f"{found[k][name] / 2**20:.0f}" if name in found[k] else "" for k in kinds)] for name in names],
        )
    print_table(
        "From the start of a process to its first two-step image, seconds (medians)",
        ["", "s"],
        [[name, f"{timing.median:.1f}"] for name, timing in images.items()],
    )


if __name__ == "__main__":
    main()
