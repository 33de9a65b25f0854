"""On paper: what a text-to-image model costs on TPUs that are not here. No time on this page was measured.

Stable Diffusion 1.5 (512 pixels) and XL (1024), bfloat16, without weights in memory: the whole of `draw_prompt` (text
encoders, four steps of TCD without guidance, decoder) is lowered for a TPU, and its program is read (`lowered.py`):

- operations of convolutions, matrix products and attention, and the same where the channels of each product are filled
  up to the tiles of 128 of a matrix unit;
- bytes in and out of each of these and of every sum, as if nothing stayed on the chip between them;
- how often Pallas' kernel for attention runs, and which attention is computed otherwise;
- transposes, by the order of axes;
- temporaries: the most bytes that the traced program holds at one moment, if every array is stored.

Operations are counted in the traced program too, by `unet_forward.multiplications`. The two counts of a network and of
a decoder must be equal; of text encoders, lowering leaves out what nothing reads (the last layer of XL's first). Loops
count as often as they run, and Pallas' kernel by formula.

Beside them stand the public ceilings of chips (`estimate.py`): for each part the larger of its operations over the peak
and its bytes over the bandwidth. It is no bound: a compiler that keeps arrays on the chip moves fewer bytes, and real
programs reach a part of either ceiling.

`--topology v5e:2x2` compiles a row of blocks (a residual block, two transformer blocks and a residual block) for each
level of XL that attends, with the compiler for TPUs where it is installed (`pip install libtpu`, in the version that
jax wants), and lists the copies and transposes of the compiled program. No chip is needed. `--whole` also compiles the
whole program, and says what it holds on one chip; this takes many minutes.
"""

from __future__ import annotations

import os

os.environ["CMJAX_CPU_WORKAROUNDS"] = "0"  # the program as accelerators have it

import collections
import contextlib
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import lowered
import training_memory
from common import conclude, machine, parser, print_table
from estimate import CHIPS
from flax import nnx
from unet_forward import multiplications

import cmjax
from cmjax.models import from_nnx, layers
from cmjax.models.clip import transformer as clip
from cmjax.models.layers import attention
from cmjax.models.layers.long_attention import is_long

STEPS, TOKENS = 4, 77
LEVELS = ((64, 640, 10), (32, 1280, 20))  # of Stable Diffusion XL: pixels a side, channels, heads


def programs(name: str, batch: int) -> dict[str, tuple[int, Any, tuple[Any, ...]]]:
    """The parts and the whole: how often each runs, a function, and the shapes that it takes."""
    import full_size_texts

    pipe = full_size_texts.abstract(name, dtype="bfloat16", param_dtype="bfloat16")
    spec = jax.ShapeDtypeStruct
    tokens = tuple(spec((batch, TOKENS), jnp.int32) for _ in pipe.text_encoders)
    state = jax.eval_shape(lambda: cmjax.tcd.init(pipe.config, STEPS, eta=0.3))
    key, shape = jax.eval_shape(lambda: jax.random.key(0)), pipe.latent_shape(batch)
    latents, cond = spec(shape, jnp.float32), full_size_texts.given(name, batch, "bfloat16")
    prompt = cmjax.text_to_image.Prompt(tokens)

    def whole(pipe: Any, state: Any, key: Any, prompt: Any) -> Any:
        return cmjax.text_to_image.draw_prompt(pipe, state, key, shape, prompt)

    return {
        "text encoders": (1, lambda pipe, tokens: pipe.encode(tokens), (pipe, tokens)),
        "network": (STEPS, lambda net, x, t, cond: net(x, t, cond), (pipe.unet, latents, spec((), jnp.float32), cond)),
        "decoder": (1, lambda coder, z: coder.decode(z), (pipe.autoencoder, latents)),
        "whole": (1, whole, (pipe, state, key, prompt)),
    }


@contextlib.contextmanager
def listening() -> Iterator[collections.Counter]:
    """List the attention of what is traced: heads, queries, keys, width of a head."""
    heard: collections.Counter = collections.Counter()
    attend = attention.attend

    def listen(q: Any, k: Any, v: Any, **options: Any) -> Any:
        heard[q.shape[1], q.shape[2], k.shape[2], q.shape[3]] += 1
        return attend(q, k, v, **options)

    with mock.patch.object(attention, "attend", listen), mock.patch.object(clip, "attend", listen):
        yield heard


def read(function: Any, given: tuple[Any, ...], *, encodes: bool) -> dict[str, Any]:
    """Lower a program and read it."""
    with listening() as heard:
        module, jaxpr = lowered.lower(function, *given)
    found = lowered.count(module)
    traced = 2 * multiplications(jaxpr, "tpu")
    assert found.flop == traced or (encodes and found.flop < traced), (found.flop, traced)
    return {
        "flop": found.flop, "traced_flop": traced, "padded_flop": found.padded, "bytes": found.bytes,
        "held_at_once": lowered.live_bytes(jaxpr), "largest_array": training_memory.largest(jaxpr),
        "argument_bytes": training_memory.size(given), "kernel_calls": dict(found.kernels),
        "transposes": dict(found.transposes), "loops": found.loops,
        "attention": [
            {"heads": heads, "queries": queries, "keys": keys, "width": width, "times_in_the_program": times,
             "long": is_long(queries, keys)}
            for (heads, queries, keys, width), times in sorted(heard.items(), reverse=True)
        ],
    }  # fmt: skip


def for_chip(topology: str, function: Any, given: tuple[Any, ...]) -> Any:
    """Compile a program for one chip of a TPU."""
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    (chip, *_) = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    one = SingleDeviceSharding(chip)
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), given)
    return jax.jit(function).trace(*given).lower(lowering_platforms=("tpu",)).compile()


class Blocks(nnx.Module):
    """A residual block, two transformer blocks, a residual block."""

    def __init__(self, channels: int, heads: int, rngs: Any):
        options: Any = {"groups": 32, "dtype": jnp.bfloat16, "rngs": rngs}
        self.first = layers.ResnetBlock(channels, channels, time_width=1280, eps=1e-5, **options)
        self.pixels = layers.Transformer2D(channels, heads=heads, context_width=2048, blocks=2, linear=True, **options)
        self.last = layers.ResnetBlock(channels, channels, time_width=1280, eps=1e-5, **options)

    def __call__(self, x: Any, emb: Any, context: Any) -> Any:
        return self.last(self.pixels(self.first(x, emb), context), emb)


def blocks(topology: str, side: int, channels: int, heads: int) -> dict[str, Any]:
    """Compile blocks that follow each other, and list the copies and transposes that stand between their operations."""
    spec, no_keys = jax.ShapeDtypeStruct, SimpleNamespace(params=lambda: None)  # only the shapes are made
    net = from_nnx(nnx.eval_shape(lambda: Blocks(channels, heads, no_keys)))
    net = jax.tree.map(lambda leaf: spec(leaf.shape, jnp.bfloat16 if leaf.ndim > 1 else jnp.float32), net)
    given = (net, spec((1, side, side, channels), jnp.bfloat16), spec((1, 1280), jnp.float32))
    given += (spec((1, TOKENS, 2048), jnp.bfloat16),)
    program = for_chip(topology, lambda net, x, emb, context: net(x, emb, context), given)
    entry = program.as_text().split("\nENTRY ")[1]
    moved: collections.Counter = collections.Counter()
    for shape, kind, rest in re.findall(r"= (\w+\[[\d,]*\])\S* (copy|transpose)\((.*)", entry):
        of = re.search(r'op_name="([^"]*)"', rest)
        name = of[1] if of else ""
        source = "a weight" if name.endswith("kernel") else name.rsplit("/", 1)[-1] or "a number"
        moved[f"{kind} of {shape}, {source}"] += 1
    return {
        "topology": topology, "side": side, "channels": channels, "heads": heads, "moved": dict(moved),
        "temporary": program.memory_analysis().temp_size_in_bytes,
    }  # fmt: skip


def held(topology: str, function: Any, given: tuple[Any, ...]) -> dict[str, Any]:
    """What the compiler for TPUs says that a program holds on one chip."""
    memory = for_chip(topology, function, given).memory_analysis()
    found = {"arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes}
    return {"topology": topology, **found}


def at_the_ceilings(parts: dict[str, dict[str, Any]], batch: int, peak: float, bandwidth: float) -> dict[str, Any]:
    """Seconds of each part, and pictures a second of all, where either operations or bytes are the limit."""
    memory = {part: one["bytes"] / bandwidth for part, one in parts.items()}
    found: dict[str, Any] = {}
    for kind, word in (("flop", "pictures_per_second"), ("padded_flop", "pictures_per_second_with_padded_products")):
        seconds = {part: max(one[kind] / peak, memory[part]) for part, one in parts.items()}
        found[word] = batch / sum(one["times"] * seconds[part] for part, one in parts.items())
        if kind == "flop":
            found["seconds"] = seconds
            found["bound"] = {p: "memory" if seconds[p] == memory[p] else "arithmetic" for p in parts}
    return found


def estimate(name: str, batch: int, topology: str | None) -> dict[str, Any]:
    """Read the parts and the whole of a model, and put them beside the chips."""
    made = programs(name, batch)
    parts = {
        part: {"times": times} | read(function, given, encodes=part in ("text encoders", "whole"))
        for part, (times, function, given) in made.items()
    }
    whole = parts.pop("whole")
    chips = {chip: at_the_ceilings(parts, batch, *limits) for chip, limits in CHIPS.items()}
    row = {"model": name, "batch": batch, "steps": STEPS, "whole": whole, "parts": parts, "chips": chips}
    if topology:
        row["compiled"] = held(topology, *made["whole"][1:])
    return row


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=["sd15", "sdxl"], help="of tests/support/full_size_texts.py")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    options.add_argument("--topology", help="of a TPU, such as v5e:2x2: compile blocks for one of its chips")
    options.add_argument("--whole", action="store_true", help="with --topology: compile the whole too")
    options.add_argument("--tiny", action="store_true", help="a tiny model: does it run?")
    args = options.parse_args(arguments)
    here = machine()
    models = ["tiny-xl"] if args.tiny else args.models
    rows = [estimate(name, batch, args.topology if args.whole else None) for name in models for batch in args.batches]
    cells = []
    for row in rows:
        for part, one in {**row["parts"], "whole": row["whole"]}.items():
            found = row["chips"].values()
            if part == "whole":
                chips = [f"{chip['pictures_per_second']:.2f} pictures/s" for chip in found]
            else:
                chips = [f"{1e3 * chip['seconds'][part]:.1f} ms ({chip['bound'][part]})" for chip in found]
            names = ("flop", "padded_flop", "bytes", "argument_bytes", "held_at_once")
            said = (f"{one[name] / 1e9:,.1f}" for name in names)
            cells.append([f"{row['model']}, batch {row['batch']}, {part}", *said, *chips])
    header = ["", "GFLOP", "padded", "GB", "weights, GB", "held, GB", *CHIPS]
    print_table(f"{STEPS} steps in bfloat16, ON PAPER", header, cells)
    seen = {row["model"]: row for row in rows}
    lines = [
        [f"{name}, {part}", one["heads"], one["queries"], one["keys"], one["width"], one["times_in_the_program"],
         "kernel" if one["long"] and row["parts"][part]["kernel_calls"] else "all logits at once"]
        for name, row in seen.items()
        for part in row["parts"]
        for one in row["parts"][part]["attention"]
    ]  # fmt: skip
    print_table("Attention", ["", "heads", "queries", "keys", "width", "times", ""], lines)
    lines = [[name, str(row["whole"]["transposes"])] for name, row in seen.items()]
    print_table("Transposes of a whole drawing, by the order of axes", ["", "times"], lines)
    compiled = [blocks(args.topology, *level) for level in LEVELS] if args.topology else []
    for one in compiled:
        lines = [[name, times] for name, times in one["moved"].items()]
        title = (
            f"Compiled for {one['topology']}: four blocks of {one['channels']} channels, {one['side']} pixels a side"
        )
        print_table(title, ["", "times"], lines)
    conclude({"program": "estimate_texts", "measured": False, "rows": rows, "blocks": compiled}, args.json, here)


if __name__ == "__main__":
    main()
