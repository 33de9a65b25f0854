"""How near a CPU's programs are to what its cores can do at most, and what keeps them from it.

The ceilings are the machine's own, of one run: the operations a second of a large matrix product, one on each core at
once, and the bytes a second of a copy of arrays far larger than the caches, shared by the cores. Under them are forward
calls of the embedded network, and training steps; each core is a device, as in every command. PyTorch's calls and steps
of the same network stand beside, under its own matrix product.

    GFLOP         arithmetic of convolutions and matrix products that the program does, two for a multiplication
    MB            what it must move at least: arguments, results and temporary arrays, once
    roof          the larger of GFLOP over the rate of matrix products and MB over that of the copy, in milliseconds
    of the roof   roof over the time that it took
    products      share of the time in operations that hold a convolution or a matrix product, from a trace
                  (as much of the time would be left if all others cost nothing)
    rate in them  GFLOP over the time in these, over the rate of the matrix product
"""

from __future__ import annotations

import functools
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import training
from common import conclude, interleaved, machine, parser, print_table, ratio
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from training import FOLDER, OURS, THEIRS, Step, batch_of, network
from unet_forward import multiplications, reference

from cmjax._mesh import batch_mesh

SIZE = 1024  # of a matrix product on each core; PyTorch's is one for all cores, of the same operations
PRODUCT, THEIR_PRODUCT = "matrix product", "matrix product, PyTorch"


def on_all_cores(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Arrays whose first axis is divided among the devices."""
    count = len(jax.devices())
    place = NamedSharding(batch_mesh(count), P("batch"))
    return [jax.device_put(jax.random.normal(jax.random.key(0), (count, *shape)), place) for shape in shapes]


def copy_rate(size: int) -> float:
    """Bytes a second of a copy, read and written, on all cores at once."""
    (x,) = on_all_cores((size // 4,))
    copy = jax.jit(lambda x: x + 1)  # what it adds, costs nothing beside the memory
    timing, _ = interleaved({"copy": lambda: copy(x)}, rounds=9)
    return 2 * x.nbytes / timing["copy"].median


class Forward:
    """A compiled forward call of the embedded network, its batch divided among the cores."""

    def __init__(self, batch: int, dtype: str = "float32"):
        model = network(FOLDER, dtype)
        mesh = batch_mesh(batch)
        self.model = jax.device_put(model, NamedSharding(mesh, P()))
        images, labels = batch_of(model, batch)
        split = NamedSharding(mesh, P("batch") if batch > 1 else P())
        self.given = jax.device_put((images / 127.5 - 1, jnp.ones(batch), labels), split)
        self.compiled = jax.jit(self._call).lower(self.model, *self.given).compile()

    @staticmethod
    def _call(model: Any, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return model(x, t, labels)

    def __call__(self) -> jax.Array:
        return self.compiled(self.model, *self.given)

    def operations(self) -> int:
        return 2 * multiplications(jax.make_jaxpr(self._call)(self.model, *self.given).jaxpr, "cpu")


class TrainingStep(Step):
    """A training step that can be counted."""

    def operations(self) -> int:
        recipe, (config, teacher_config) = training.recipe_of(self.name, self.batch), training.configs(self.name)
        step = functools.partial(training.train_step, recipe=recipe, config=config, teacher_config=teacher_config)
        return 2 * multiplications(jax.make_jaxpr(step)(self.state, *self.given).jaxpr, "cpu")

    def __init__(self, name: str, batch: int):
        self.name, self.batch = name, batch
        super().__init__(name, FOLDER, batch)


def in_products(program: Any) -> float:
    """The share of the time of all operations that those with a convolution or a matrix product take, from a trace."""
    heavy, outer, computation, calls = set(), set(), "", {}
    for line in program.compiled.as_text().splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = begins[1]
        elif found := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(", line):
            if found[2] in ("while", "call", "conditional"):  # their bodies are counted
                outer.add(found[1])
            if found[2] in ("convolution", "dot"):
                heavy |= {found[1], computation}
            if called := re.search(r"calls=%?([\w.\-]+)", line):
                calls[found[1]] = called[1]
    heavy |= {name for name, inside in calls.items() if inside in heavy}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(3):
                jax.block_until_ready(program())
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    seconds = {True: 0.0, False: 0.0}
    for event in events:
        operation = event.get("args", {}).get("hlo_op") if event.get("ph") == "X" else None
        if operation is not None and operation not in outer and not operation.startswith("all-reduce"):  # it waits
            seconds[operation in heavy] += event["dur"]
    return seconds[True] / sum(seconds.values())


def their_forward(torch: Any, batch: int, *, compiled: bool) -> Callable[[], Any]:
    from throughput import theirs

    unet = theirs(torch, "embedded", "cpu", "float32")
    unet = torch.compile(unet, dynamic=False) if compiled else unet
    x = torch.randn(batch, 1, 28, 28).to(memory_format=torch.channels_last)
    t, labels = torch.ones(batch), torch.arange(batch) % 10

    def call() -> None:
        with torch.no_grad():
            unet(x, t, class_labels=labels)

    return call


def product_rates(torch: Any, rounds: int) -> dict[str, float]:
    """Operations a second of matrix products on all cores, JAX's and PyTorch's in turn with nothing else; the best."""
    (a,) = on_all_cores((SIZE, SIZE))
    product = jax.jit(lambda a: a @ a)
    programs: dict[str, Callable[[], Any]] = {PRODUCT: lambda: product(a)}
    if torch is not None:
        b = torch.randn(len(jax.devices()), SIZE, SIZE)
        programs[THEIR_PRODUCT] = lambda: b @ b
    timing, _ = interleaved(programs, rounds=rounds, min_seconds=0.2)
    return {name: len(jax.devices()) * 2 * SIZE**3 / timing[name]["best"] for name in programs}


def measure(
    name: str,
    program: Any,
    others: dict[str, Callable[[], Any]],
    rates: dict[str, float],
    copied: float,
    rounds: int,
) -> dict[str, Any]:
    """One program under the roof, in turn with what stands beside it."""
    timing, seconds = interleaved({OURS: program, **others}, rounds=rounds)
    memory = program.compiled.memory_analysis()
    devices = len(jax.tree.leaves(program.given)[0].devices())  # one, where a batch of 1 is not divided
    moved = devices * (memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes)
    operations, share = program.operations(), in_products(program)
    available = rates[PRODUCT] * devices / len(jax.devices())
    roof = max(operations / available, moved / copied)
    return {
        "program": name, "operations": operations, "bytes": moved, "devices": devices, "seconds": timing, "roof": roof,
        "of_the_roof": roof / timing[OURS].median, "in_products": share,
        "rate_in_products": operations / available / (share * timing[OURS].median),
        "over": {kind: ratio(seconds[OURS], seconds[kind]) for kind in others},
        "theirs_of_the_roof": {kind: operations / rates[THEIR_PRODUCT] / timing[kind].median for kind in others},
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64], help="of forward calls")
    options.add_argument("--methods", nargs="+", default=["edm", "ect", "tcd"], help="of training steps, batch 32")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--no-compiled", action="store_true", help="leave torch.compile out")
    options.add_argument("--quick", action="store_true", help="small and once: does it run?")
    args = options.parse_args(arguments)
    if args.quick:
        args.batches, args.methods, args.rounds = [2], ["edm"], 1
    jax.config.update("jax_enable_compilation_cache", False)
    here, (torch, _) = machine(), reference(False)
    if jax.default_backend() != "cpu":
        raise SystemExit("this program is for CPUs; benchmarks/gpu.py has the ceilings of a GPU.")
    copied, rows = copy_rate(1 << 24 if args.quick else 1 << 28), []
    rates = product_rates(torch, args.rounds)
    for batch in args.batches:
        others: dict[str, Callable[[], Any]] = {}
        if torch is not None:
            others["PyTorch"] = their_forward(torch, batch, compiled=False)
            if not (args.quick or args.no_compiled):
                others["PyTorch compiled"] = their_forward(torch, batch, compiled=True)
        rows.append(measure(f"forward call, batch {batch}", Forward(batch), others, rates, copied, args.rounds))
    batch = 4 if args.quick else 32
    for method in args.methods:
        others = {}
        if torch is not None:
            import training_torch

            others[THEIRS] = training_torch.make_step(method, FOLDER, batch)
        step = TrainingStep(method, batch)
        rows.append(measure(f"training step, {method}, batch {batch}", step, others, rates, copied, args.rounds))
    print_table(
        f"Under the roof; copy {copied / 1e9:.1f} GB/s; "
        + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()),
        ["", "GFLOP", "MB", "ms", "roof", "of the roof", "products", "rate in them",
         "over PyTorch, compiled", "theirs of the roof"],
        [
            [
                r["program"],
                f"{r['operations'] / 1e9:.2f}",
                f"{r['bytes'] / 1e6:.0f}",
                f"{r['seconds'][OURS].median * 1e3:.1f}",
                f"{r['roof'] * 1e3:.1f}",
                f"{r['of_the_roof']:.2f}",
                f"{r['in_products']:.2f}",
                f"{r['rate_in_products']:.2f}",
                ", ".join(f"{value:.2f}" for value in r["over"].values()),
                ", ".join(f"{value:.2f}" for value in r.get("theirs_of_the_roof", {}).values()),
            ]
            for r in rows
        ],
    )  # fmt: skip
    conclude({"program": "roofline", "copy_bytes_a_second": copied, "products": rates, "rows": rows}, args.json, here)


if __name__ == "__main__":
    main()
