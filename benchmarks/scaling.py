"""More devices, more processes: how many images a second they draw together.

*Strong*: one batch over 1, 2, 4, 8 devices. *Weak*: as many images on each. *Processes*: 1, 2 or 4 of them that
know nothing of each other, as those of `cmjax sample --distributed` once they have parted, each on its cores.

On a CPU the devices are simulated: they share the cores, so that more devices than cores show what splitting costs, not
what it gains, and one device has all the cores to itself already. The figures then say that nothing is lost (the sum of
images a second stays), which is all they can say; weak scaling compares batches of other sizes as well, and has no
target there. On GPUs or TPUs the same program measures what is gained, and holds it to 0.9 of each device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

if __name__ == "__main__" and "XLA_FLAGS" not in os.environ:
    jax.config.update("jax_num_cpu_devices", 8)  # before JAX begins; other platforms have what they have

import jax.numpy as jnp
from common import conclude, interleaved, machine, parser, print_table, ratio, target
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import cmjax
from cmjax._mesh import batch_mesh

IMAGE = (28, 28, 1)

CHILD = """
import json, os, sys, time
index, count, batch = map(int, sys.argv[1:4])
seconds, folder = float(sys.argv[4]), sys.argv[5]
if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[index::count] or [cores[index % len(cores)]])
import jax, cmjax
model, config = cmjax.load("fashion-mnist-cm")
state, labels = cmjax.cm.init(config, num_steps=2), jax.numpy.arange(batch) % 10
draw = jax.jit(cmjax.generate, static_argnames="shape")
def images(i):
    keys = jax.random.split(jax.random.key(i), batch)
    return jax.block_until_ready(draw(model, state, keys, shape=(batch, 28, 28, 1), cond=labels))
images(0)
open(f"{folder}/{index}", "w").close()
waiting = time.perf_counter()
while len(os.listdir(folder)) < count:
    time.sleep(0.01)
    if time.perf_counter() - waiting > 300:
        raise SystemExit("another process did not begin")
drawn, start = 0, time.perf_counter()
while time.perf_counter() - start < seconds:
    images(drawn + 1)
    drawn += batch
print(json.dumps({"images": drawn, "seconds": time.perf_counter() - start}))
"""


def drawer(model: Any, config: Any, batch: int, count: int) -> Any:
    """A call that draws a batch of two-step images on so many devices."""
    mesh = batch_mesh(batch, jax.local_devices()[:count])
    here, everywhere = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
    keys, cond = jax.device_put((jax.random.split(jax.random.key(0), batch), jnp.arange(batch) % 10), here)
    own, state = jax.device_put((model, cmjax.cm.init(config, num_steps=2)), everywhere)
    draw = jax.jit(cmjax.generate, static_argnames="shape")
    return lambda: draw(own, state, keys, shape=(batch, *IMAGE), cond=cond)


def devices(model: Any, config: Any, batch: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Time 1, 2, 4, ... devices: on one batch, and with as many images on each."""
    counts = [n for n in (1, 2, 4, 8) if n <= len(jax.local_devices())]
    found = {}
    for kind in ("strong", "weak"):
        sizes = {n: batch if kind == "strong" else batch // counts[-1] * n for n in counts}
        timing, seconds = interleaved({str(n): drawer(model, config, sizes[n], n) for n in counts}, rounds=rounds)
        found[kind] = [
            {
                "devices": n,
                "batch": sizes[n],
                "images_per_second": sizes[n] / timing[str(n)].median,
                "of_one": ratio([s / sizes[1] for s in seconds["1"]], [s / sizes[n] for s in seconds[str(n)]]),
                "seconds": timing[str(n)],
            }
            for n in counts
        ]
    return found


def processes(count: int, batch: int, seconds: float) -> dict[str, Any]:
    """Let so many processes draw for a while, at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, *map(str, (i, count, batch, seconds)), folder],
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]
        said = [json.loads(child.communicate()[0]) for child in children]
    return {
        "processes": count,
        "batch": batch,
        "images_per_second": sum(one["images"] / one["seconds"] for one in said),
        "each": [one["images"] / one["seconds"] for one in said],
    }


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--seconds", type=float, default=10.0, help="that processes draw for")
    args = options.parse_args(arguments)
    here = machine()
    model, config = cmjax.load("fashion-mnist-cm")
    found = devices(model, config, args.batch, args.rounds)
    for kind, rows in found.items():
        print_table(
            f"{kind} scaling, two steps (medians)",
            ["devices", "images at once", "images/s", "of one device"],
            [[r["devices"], r["batch"], f"{r['images_per_second']:.1f}", f"{r['of_one']:.2f}"] for r in rows],
        )
    together = []
    if jax.default_backend() == "cpu":  # an accelerator belongs to one process
        time.sleep(1.0)
        for _ in range(3):
            together += [processes(n, max(args.batch // n, 1), args.seconds) for n in args.processes]
        print_table(
            f"Processes, {args.seconds:g} s each, three times in turn",
            ["processes", "images at once, each", "images/s in all"],
            [[r["processes"], r["batch"], f"{r['images_per_second']:.1f}"] for r in together],
        )
    rule, simulated = "images a second of {} devices over those of one, {} scaling", jax.default_backend() == "cpu"
    verdicts = [
        target(
            row["of_one"], 0.9 if simulated else 0.9 * row["devices"], rule.format(row["devices"], kind), at_least=True
        )
        for kind, rows in found.items()
        for row in rows
        if row["devices"] > 1 and (not simulated or (kind == "strong" and row["devices"] <= here["cores"]))
    ]
    conclude({"program": "scaling", **found, "processes": together, "targets": verdicts}, args.json, here)


if __name__ == "__main__":
    main()
