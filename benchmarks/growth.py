"""How cost grows: time and memory over batch, picture size, steps, devices and LoRAs, beside the lines to follow.

The embedded text-to-image model draws by `cmjax.text_to_image.draw`, one compiled call. *Seconds* are medians of calls
in turn; *memory* is what the compiled program takes beside weights, inputs and pictures (`temp_size_in_bytes`), which
no other work of the machine disturbs. Lines:

- batch: both proportional to it, once the batch fills the machine;
- size: both to the pixels (attention takes more, and only at the lowest resolution);
- steps: seconds proportional, memory constant, and one program for all (a padded path);
- devices: where they share the cores of one CPU, seconds constant; the memory of each falls as its part of the batch;
- LoRAs: seconds and memory rise by their own matrix products.

`--curves FILE.png` draws them. The largest pictures are compiled, not drawn: they have memory, and no seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # before JAX begins; other platforms have what they have

import numpy as np
from common import conclude, interleaved, machine, parser, print_table, target
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import cmjax
from cmjax._mesh import batch_mesh

RANK, ROOM = 16, 50
NAMES = {"batch": "pictures", "size": "pixels a side", "steps": "steps", "devices": "devices", "loras": "LoRAs"}

Drawn = tuple[Callable[[], Any], int]  # a call, and the bytes that its program takes


def drawn(pipe: Any, state: Any, batch: int, size: int = 64, devices: int = 1) -> Drawn:
    """Compile the call that draws a batch."""
    mesh = batch_mesh(batch, jax.local_devices()[:devices])
    everywhere, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
    pipe, state = jax.device_put((pipe, state), everywhere)
    tokens = tuple(np.repeat(part, batch, 0) for part in pipe.tokenize(["a red apple"]))
    keys = jax.random.split(jax.random.key(0), batch)
    keys, tokens = jax.device_put((keys, tokens), divided)

    def draw(pipe: Any, state: Any, keys: jax.Array, tokens: Any) -> jax.Array:
        return cmjax.text_to_image.draw(pipe, state, keys, pipe.encode(tokens), size=(size, size))

    spread = jax.shard_map(
        draw, mesh=mesh, in_specs=(P(), P(), P("batch"), P("batch")), out_specs=P("batch"), check_vma=False
    )
    compiled = jax.jit(spread).lower(pipe, state, keys, tokens).compile()
    return lambda: compiled(pipe, state, keys, tokens), compiled.memory_analysis().temp_size_in_bytes


def with_loras(pipe: Any, count: int) -> Any:
    """Attach LoRAs that change something."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        lora = cmjax.lora.new(pipe, RANK)
        shaken = jax.tree.map(lambda leaf: leaf + 1e-3 * rng.normal(size=leaf.shape).astype(np.float32), lora)
        pipe = cmjax.lora.attach(pipe, shaken)
    return pipe


def measure(
    axis: str, programs: dict[int, Drawn], rounds: int, compiled_only: Mapping[int, Drawn] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Time the programs of one axis in turn."""
    timing, _ = interleaved({str(n): call for n, (call, _) in programs.items()}, rounds=rounds)
    rows = [
        {"axis": axis, "at": n, "seconds": timing[str(n)].median, "timing": timing[str(n)], "memory": memory}
        for n, (_, memory) in programs.items()
    ]
    rows += [{"axis": axis, "at": n, "seconds": None, "memory": memory} for n, (_, memory) in compiled_only.items()]
    print_table(
        f"Over {NAMES[axis]}: seconds a call, MiB of temporary arrays",
        [axis, "seconds", "MiB"],
        [[row["at"], "" if row["seconds"] is None else row["seconds"], f"{row['memory'] / 2**20:.1f}"] for row in rows],
    )
    return rows


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hold the upper end of each curve to its line; where there is one point alone, there is none."""

    def points(axis: str, what: str = "memory") -> list[dict[str, Any]]:
        return [row for row in rows if row["axis"] == axis and row[what] is not None]

    def last(axis: str, what: str) -> tuple[float, float, float, float]:
        one, two = points(axis, what)[-2:]
        return one["at"], two["at"], two[what] / one[what], two["at"] / one["at"]

    measured = {axis for axis in NAMES if len(points(axis)) > 1}
    found = []
    for axis, power in (("batch", 1), ("size", 2)):
        for what, slack in (("seconds", 1.15), ("memory", 1.1)):
            if len(points(axis, what)) < 2:
                continue
            low, high, grew, by = last(axis, what)
            rule = f"{what} from {low} to {high} {NAMES[axis]}, over the line"
            found.append(target(grew / by**power, slack, rule))
    if "steps" in measured:
        low, high, grew, by = last("steps", "seconds")
        found.append(target(grew / by, 1.05, f"seconds from {low} to {high} steps, over the line"))
        low, high, grew, _ = last("steps", "memory")
        found.append(target(grew, 1.01, f"memory from {low} to {high} steps, over constant"))
    if "devices" in measured:
        low, high, grew, by = last("devices", "memory")
        found.append(target(grew * by, 1.25, f"memory of each from {low} to {high} devices, over the line"))
    if "loras" in measured:
        bare, *_, most = points("loras")
        rule = f"seconds with {most['at']} LoRAs of rank {RANK} over {bare['at']}"
        found.append(target(most["seconds"] / bare["seconds"], 1.5, rule))
    return found


def curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the curves, and the line through the first point of each."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(NAMES), figsize=(3 * len(NAMES), 5), sharex="col", layout="constrained")
    lines = {"batch": (1, 1), "size": (2, 2), "steps": (1, 0), "devices": (0, -1), "loras": (0, 0)}
    for column, axis in enumerate(NAMES):
        for row, what, scale in ((0, "seconds", 1.0), (1, "memory", 2.0**20)):
            own = [point for point in rows if point["axis"] == axis and point[what] is not None]
            at = np.array([point["at"] for point in own], float)
            values, panel = np.array([one[what] for one in own]) / scale, axes[row, column]
            panel.plot(at, values, "o-", color="#2a6f97", label="measured")
            if axis != "loras":
                power = lines[axis][row]
                panel.plot(at, values[-1] * (at / at[-1]) ** power, "--", color="#999999", label="line")
                panel.loglog(base=2)
                panel.minorticks_off()
            panel.set_xticks(at, [f"{value:g}" for value in at])
        axes[0, column].set_title(f"over {NAMES[axis]}")
    axes[0, 0].set_ylabel("seconds a call")
    axes[1, 0].set_ylabel("MiB of temporary arrays")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=80)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    options.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    options.add_argument("--compiled-sizes", type=int, nargs="*", default=[512, 1024, 2048], help="compiled, not drawn")
    options.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 25, 50])
    options.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    options.add_argument("--loras", type=int, nargs="+", default=[0, 1, 2, 4])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--curves", type=Path, help="also draw the curves here, a .png file")
    args = options.parse_args(arguments)
    started = machine()
    pipe = cmjax.text_to_image.load("emoji")

    def state(num_steps: int) -> Any:
        return cmjax.tcd.init(pipe.config, num_steps=num_steps)

    def padded(num_steps: int, call: Callable[..., Any], given: tuple[Any, ...]) -> Callable[[], Any]:
        path = cmjax.pad(state(num_steps), ROOM)
        return lambda: call(pipe, path, *given)

    rows = measure("batch", {n: drawn(pipe, state(2), n) for n in args.batches}, args.rounds)
    large = {n: drawn(pipe, state(2), 1, n) for n in args.compiled_sizes}
    rows += measure("size", {n: drawn(pipe, state(2), 1, n) for n in args.sizes}, args.rounds, large)
    any_steps = jax.jit(cmjax.text_to_image.draw)
    given = jax.random.key(0), pipe.encode(pipe.tokenize(["a red apple"]))
    known = {n: drawn(pipe, state(n), 1)[1] for n in args.steps}
    rows += measure("steps", {n: (padded(n, any_steps, given), known[n]) for n in args.steps}, args.rounds)
    programs = any_steps._cache_size()
    there = [n for n in args.devices if n <= len(jax.local_devices())]
    rows += measure("devices", {n: drawn(pipe, state(2), 32, devices=n) for n in there}, args.rounds)
    rows += measure("loras", {n: drawn(with_loras(pipe, n), state(2), 4) for n in args.loras}, args.rounds)

    targets = [*verdicts(rows), target(programs, 1, "programs for all numbers of steps")]
    conclude({"benchmark": "growth", "model": "emoji", "rows": rows, "targets": targets}, args.json, started)
    if args.curves:
        curves(rows, args.curves)


if __name__ == "__main__":
    main()
