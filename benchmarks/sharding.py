"""What a network sends between devices that share it, counted from compiled programs: nothing on this page is timed.

The network of Stable Diffusion XL in its published size, bfloat16, without weights in memory, is compiled for four
devices (simulated on the CPU, or chips of a TPU), divided in three ways:

- by data: each device has all weights and its pictures;
- by model: `cmjax.models.tensor_sharding`, all devices share each picture;
- by both: two by two.

All collectives of the compiled program are listed with the bytes of the arrays that a device gives to them, and what a
device sends, by the algorithm that sends least (a sum of S bytes over n devices: 2 (n - 1) / n S). Those within a loop
count as often as it runs. The CPU's compiler computes bfloat16 in float32 and sends it so; TPUs do not: their
bytes are those of bfloat16.

`--topology v5e:2x2` compiles for chips of a TPU, where their compiler is installed (`pip install libtpu`, in the
version that jax wants); no chip is needed. It takes many minutes, and says what the program holds on each chip.
"""

from __future__ import annotations

import os

os.environ["CMJAX_CPU_WORKAROUNDS"] = "0"  # the program as accelerators have it

import collections
import contextlib
import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import conclude, machine, parser, print_table
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cmjax.models import tensor_sharding

DEVICES = 4
LAYOUTS = {"data": (4, 1), "both": (2, 2), "model": (1, 4)}


def chips(topology: str | None) -> list[Any]:
    """The devices to compile for."""
    if topology is None:
        return jax.devices()[:DEVICES]
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)[:DEVICES]


def abstract(name: str, depth: list[int] | None) -> Any:
    """A network without weights; with fewer transformer blocks a level, where `depth` says so."""
    import full_size_texts

    full = full_size_texts.MODELS[name]
    if depth is not None:
        unet = dataclasses.replace(full.unet, transformer_layers_per_block=tuple(depth))
        full_size_texts.MODELS[name] = full._replace(unet=unet, parameters=None)
    network = full_size_texts.abstract(name, dtype="bfloat16", param_dtype="bfloat16").unet
    full_size_texts.MODELS[name] = full
    return network


def compiled(network: Any, cond: Any, devices: list[Any], layout: str, side: int, *, told: bool) -> tuple[Any, int]:
    """Compile one call for devices, and say the bytes of the weights that one of them has."""
    mesh = Mesh(np.array(devices).reshape(LAYOUTS[layout]), ("batch", "model"), axis_types=(AxisType.Auto,) * 2)
    split, batch = NamedSharding(mesh, P("batch")), cond.context.shape[0]

    def placed(leaf: Any, where: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    network = jax.tree.map(placed, network, tensor_sharding(network, mesh))
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(network)
    )
    x = jax.ShapeDtypeStruct((batch, side, side, network.config.in_channels), jnp.float32, sharding=split)
    t = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    cond = jax.tree.map(lambda leaf: placed(leaf, split), cond)
    with jax.set_mesh(mesh) if told else contextlib.nullcontext():
        call = jax.jit(lambda network, x, t, cond: network(x, t, cond), out_shardings=split)
        lowered = call.trace(network, x, t, cond).lower(lowering_platforms=(devices[0].platform,))
        return lowered.compile(), held


def count(name: str, batch: int, layout: str, args: Any, *, told: bool = True) -> dict[str, Any]:
    """Count for one division."""
    import full_size_texts
    from collectives import collectives

    network, devices = abstract(name, args.depth), chips(args.topology)
    side = network.config.sample_size
    start = time.perf_counter()
    program, held = compiled(network, full_size_texts.given(name, batch), devices, layout, side, told=told)
    seconds = time.perf_counter() - start
    widened = 2 if devices[0].platform == "cpu" else 1  # bfloat16 in float32
    kinds: dict[tuple[str, str, int], dict[str, float]] = collections.defaultdict(
        lambda: {"count": 0, "bytes": 0, "sent": 0}
    )
    for one in collectives(program.as_text(), DEVICES):
        found = kinds[one.kind, one.shapes, one.devices]
        found["count"] += one.times
        found["bytes"] += one.times * one.bytes // widened
        found["sent"] += one.times * one.wire / widened
    rows = [
        {"kind": kind, "array": shapes, "devices": devices, **found}
        for (kind, shapes, devices), found in sorted(kinds.items(), key=lambda item: -item[1]["bytes"])
    ]
    memory = program.memory_analysis()
    return {
        "network": name, "batch": batch, "layout": layout, "topology": args.topology or "simulated on the CPU",
        "depth": args.depth, "within_set_mesh": told,
        "weight_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(network)),
        "weight_bytes_of_a_device": held, "sent_by_a_device": sum(row["sent"] for row in rows),
        "collectives": rows, "temporary_bytes": memory.temp_size_in_bytes, "compile_seconds": round(seconds),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--networks", nargs="+", default=["sdxl"], help="of tests/support/full_size_texts.py")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    options.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    options.add_argument("--depth", type=int, nargs="+", help="transformer blocks of each level, where fewer will do")
    options.add_argument(
        "--topology", help="of a TPU with four chips or more, such as v5e:2x2; none: simulated devices"
    )
    options.add_argument("--untold", action="store_true", help="by model also without jax.set_mesh")
    options.add_argument("--tiny", action="store_true", help="a tiny network: does it run?")
    args = options.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    here = machine()
    networks = ["tiny-xl"] if args.tiny else args.networks
    found = [
        count(name, batch, layout, args)
        for name in networks
        for layout in args.layouts
        for batch in args.batches
        if batch % LAYOUTS[layout][0] == 0
    ]
    if args.untold:
        found += [count(name, args.batches[0], "model", args, told=False) for name in networks]
    cells = []
    for one in found:
        kinds: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0])
        for row in one["collectives"]:
            kinds[row["kind"]][0] += row["count"]
            kinds[row["kind"]][1] += row["bytes"]
        said = ", ".join(f"{n:.0f} {kind} of {size / 1e9:.2f} GB" for kind, (n, size) in kinds.items()) or "none"
        name = f"{one['network']}, {one['layout']}, batch {one['batch']}"
        name += "" if one["within_set_mesh"] else ", not within set_mesh"
        cells.append(
            [name, f"{one['weight_bytes_of_a_device'] / 1e9:.2f}", said, f"{one['sent_by_a_device'] / 1e9:.2f}"]
        )
    header = ["", "GB of weights a device", "collectives of a call", "GB that a device sends"]
    print_table(f"One call of the network over {DEVICES} devices, bfloat16, COUNTED", header, cells)
    conclude({"program": "sharding", "measured": False, "devices": DEVICES, "rows": found}, args.json, here)


if __name__ == "__main__":
    main()
