"""On paper: what a two-step sampler costs on accelerators that are not here. No time on this page was measured.

The network is lowered for a TPU from whatever machine this is (`jax.export`), and its program is read: the arithmetic
of convolutions and matrix products, and the bytes that go in and out of every convolution, matrix product and sum (the
weights among them), as if nothing stayed on the chip between them. Beside them stand the public ceilings of chips (from
memory of their makers' pages): operations over the peak, and those bytes over the bandwidth; the larger of the two is
given, and which it is. It is no bound: a compiler that keeps arrays on the chip moves fewer bytes, and real programs
reach a part of either ceiling.

    gcloud compute tpus tpu-vm create NAME --zone ZONE --accelerator-type v5litepod-1 --version v2-alpha-tpuv5-lite
    gcloud compute tpus tpu-vm ssh NAME --zone ZONE
    pip install 'jax[tpu]' . && python benchmarks/throughput.py --dtypes float32 bfloat16 --json throughput-tpu.json
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from common import conclude, machine, parser, print_table
from unet_forward import multiplications

import cmjax

# Peak in bfloat16, operations a second, and memory bandwidth, bytes a second, as their makers publish them.
CHIPS = {
    "TPU v5e": (197e12, 819e9),
    "TPU v5p": (459e12, 2765e9),
    "TPU v6e": (918e12, 1640e9),
    "H100 SXM": (989e12, 3350e9),
}
SIZES = {"f64": 8, "f32": 4, "i32": 4, "ui32": 4, "bf16": 2, "f16": 2, "i8": 1, "ui8": 1, "i1": 1}
HEAVY = re.compile(r"= stablehlo\.(convolution|dot_general|reduce)\b.*?: \(([^)]*)\) -> (\S+)")


def bytes_of(kind: str) -> int:
    """Bytes of a `tensor<2x3xf32>`."""
    *sizes, dtype = re.fullmatch(r"tensor<(.*)>", kind.strip())[1].split("x")
    return math.prod(map(int, sizes)) * SIZES[dtype]


def traffic(text: str) -> int:
    """Bytes in and out of every convolution, matrix product and reduction of one call of the network."""
    return sum(sum(map(bytes_of, found[2].split(", "))) + bytes_of(found[3]) for found in HEAVY.finditer(text))


def estimate(name: str, batch: int, steps: int = 2) -> dict[str, Any]:
    """Lower a network for a TPU, in bfloat16, and read its program."""
    if name == "embedded":
        model, _ = cmjax.load("fashion-mnist-cm", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, abstract=True)
    else:
        from full_size import checkpoint

        model, _ = checkpoint("imagenet64", dtype=jnp.bfloat16)
        model = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if leaf.ndim > 1 else leaf.dtype), model
        )
    network = model.config
    shape = (batch, network.sample_size, network.sample_size, network.in_channels)
    given = (model, jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.float32))
    given += (jax.ShapeDtypeStruct((batch,), jnp.int32),)

    def forward(model: Any, x: Any, t: Any, cond: Any) -> Any:
        return model(x, t, cond)

    exported = jax.export.export(jax.jit(forward), platforms=["tpu"])(*given)
    flop = 2 * multiplications(jax.make_jaxpr(forward)(*given).jaxpr, "tpu")
    moved = traffic(exported.mlir_module())
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model))
    chips = {}
    for chip, (peak, bandwidth) in CHIPS.items():
        arithmetic, memory = steps * flop / peak, steps * moved / bandwidth
        chips[chip] = {
            "seconds_at_the_ceilings": max(arithmetic, memory),
            "bound": "arithmetic" if arithmetic > memory else "memory",
            "images_per_second_at_the_ceilings": batch / max(arithmetic, memory),
        }
    return {
        "network": name, "batch": batch, "steps": steps, "flop_a_call": flop, "bytes_a_call": moved,
        "weight_bytes": weights, "chips": chips,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    options.add_argument("--imagenet64", action="store_true", help="the published network too")
    args = options.parse_args(arguments)
    here = machine()
    names = ["embedded", *(["imagenet64"] if args.imagenet64 else [])]
    rows = [estimate(name, batch) for name in names for batch in args.batches]
    print_table(
        "Two steps in bfloat16, ON PAPER: images a second at the ceilings, if all bytes move, and which ceiling",
        ["", "GFLOP a call", "MB a call", *CHIPS],
        [
            [
                f"{r['network']}, batch {r['batch']}",
                f"{r['flop_a_call'] / 1e9:.1f}",
                f"{r['bytes_a_call'] / 1e6:.0f}",
                *(f"{c['images_per_second_at_the_ceilings']:,.0f} ({c['bound']})" for c in r["chips"].values()),
            ]
            for r in rows
        ],
    )
    conclude({"program": "estimate", "measured": False, "rows": rows}, args.json, here)


if __name__ == "__main__":
    main()
