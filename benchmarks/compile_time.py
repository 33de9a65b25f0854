"""How long programs of texts take to compile: Stable Diffusion 1.5 and XL at full width, for this machine's processor.

No weight is read: programs are compiled for shapes. Each program has a process of its own, once with an empty
persistent compile cache (*cold*) and once with what that left (*warm*):

- *model*: the abstract model. *Trace*, *lower*, *compile*: JAX's three steps; *read*: the third from the cache.
- *memory*: the largest resident set of the cold process, over what it held before it compiled.
- *operations*: of the StableHLO program, for this processor, for CUDA and for TPU; functions that are called twice
  count once. Compilers of other devices were not run.
- *picture*: from tokens to pictures in four steps of TCD; *padded*: the same path padded to eight steps, one program
  for all numbers of steps up to there.

`--blocks` compares how a row of equal transformer blocks can enter the program: *plain*, one after another, as it is in
cmjax; *shared*, one function that is called for each block; *kept*, the same, which XLA is told to leave a function;
*scan*, one loop over weights that the program stacks. Four blocks as in XL's middle are also run, with random weights.

Wall times suffer from other work; processor times (`cpu`, summed over threads) hardly do. With `--work`, a run that was
interrupted goes on where it was.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import conclude, interleaved, machine, parser, print_table, ratio, target

import cmjax

MODELS, PARTS = ("sd15", "sdxl"), ("text encoder", "network", "decoder", "picture", "padded")
BLOCKS = ("plain", "shared", "kept", "scan")
STEPS, MOST, NUMBERS = 4, 8, (1, 4, 8)
PLATFORMS = ("cpu", "cuda", "tpu")


class Clock:
    """Seconds on the wall and of the processor since the last look."""

    def __init__(self):
        self.last = time.perf_counter(), time.process_time()

    def __call__(self) -> dict[str, float]:
        now = time.perf_counter(), time.process_time()
        wall, cpu = (round(b - a, 3) for a, b in zip(self.last, now, strict=True))
        self.last = now
        return {"wall": wall, "cpu": cpu}


# ---- the programs ----------------------------------------------------------------------------------------------------


def program(name: str, part: str, pixels: int, steps: int = STEPS, dtype: str = "float32") -> tuple[Any, Any]:
    """A function to jit and its abstract arguments, batch 1."""
    import full_size_texts

    from cmjax.text_to_image import Prompt, TextToImage, draw_prompt

    pipe = _pipe(name, dtype)
    tokens = tuple(jax.ShapeDtypeStruct((1, 77), jnp.int32) for _ in pipe.text_encoders)
    shape = pipe.latent_shape(1, (pixels, pixels))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    if part == "text encoder":
        return TextToImage.encode, (pipe, tokens)
    if part == "network":
        cond = full_size_texts.given(name, 1)
        return lambda pipe, x, cond: pipe.model(x, jnp.int32(999), cond), (pipe, x, cond)
    if part == "decoder":
        return lambda pipe, x: pipe.autoencoder.decode(x), (pipe, x)
    state = cmjax.tcd.init(pipe.config, num_steps=steps, eta=0.3)
    state = cmjax.pad(state, MOST) if part == "padded" else state

    def picture(pipe: Any, state: Any, key: Any, prompt: Any) -> Any:
        return draw_prompt(pipe, state, key, shape, prompt)

    return picture, (pipe, state, jax.random.key(0), Prompt(tokens))


@functools.cache
def _pipe(name: str, dtype: str) -> Any:
    import full_size_texts

    return full_size_texts.abstract(name, dtype=dtype, param_dtype=dtype)


def operations(text: str) -> int:
    """Operations of a StableHLO program."""
    return len(re.findall(r"^\s+(?:%\S+ = |stablehlo\.|func\.call)", text, re.MULTILINE))


def measure(name: str, part: str, pixels: int, blocks: str, *, warm: bool = False) -> dict[str, Any]:
    """Trace, lower and compile one program in this process, whose compile cache is `warm` or not."""
    if blocks != "plain":
        enter(blocks)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.zeros(())))  # wakes the compiler
    clock = Clock()
    function, arguments = program(name, part, pixels)
    found: dict[str, Any] = {"model": clock()}
    traced = jax.jit(function).trace(*arguments)
    found["trace"] = clock()
    lowered = traced.lower()
    found["lower"] = clock()
    found["operations"] = {"cpu": operations(lowered.as_text())}
    before, clock = _peak(), Clock()
    compiled = lowered.compile()
    found |= {"compile": clock(), "memory": _peak() - before}
    analysis = compiled.memory_analysis()
    found["temporary_bytes"] = analysis.temp_size_in_bytes if analysis is not None else None
    return found


def lowered_elsewhere(name: str, pixels: int) -> dict[str, Any]:
    """Lower the picture in bfloat16 for devices that are not here; count the programs of several numbers of steps."""
    counts = {}
    for platform in PLATFORMS[1:]:
        function, arguments = program(name, "picture", pixels, dtype="bfloat16")
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
        counts[platform] = operations(lowered.as_text())
    programs = {}
    for part in ("picture", "padded"):
        texts = set()
        for steps in NUMBERS:
            function, arguments = program(name, part, pixels, steps)
            texts.add(jax.jit(function).lower(*arguments).as_text())
        programs[part] = len(texts)
    return {"operations": counts, "programs_of_1_4_8_steps": programs}


def _peak() -> int:
    """Bytes of the largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- equal blocks ----------------------------------------------------------------------------------------------------


def enter(blocks: str) -> None:
    """Let all rows of equal transformer blocks enter programs in another way, in this process."""
    from cmjax.models.layers import transformer

    def call(self: Any, x: Any, context: Any) -> Any:
        return self._added(x, walk(blocks, self.transformer_blocks, self._tokens(x), context))

    transformer.Transformer2D.__call__ = call


def walk(blocks: str, row: Any, y: Any, context: Any) -> Any:
    """Send y through a row of blocks."""
    from flax import nnx
    from jax.experimental.xla_metadata import set_xla_metadata

    if blocks == "plain":
        for block in row:
            y = block(y, context)
        return y
    parts = [nnx.split(block) for block in row]
    definition = parts[0][0]
    assert all(other == definition for other, _ in parts)
    if blocks == "scan" and len(parts) > 2:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state for _, state in parts))
        return jax.lax.scan(lambda y, state: (_block(definition, state, y, context), None), y, stacked)[0]
    for _, state in parts:
        if blocks == "kept":
            with set_xla_metadata(inlineable="false"):
                y = _block(definition, state, y, context)
        else:
            y = _block(definition, state, y, context)
    return y


@functools.partial(jax.jit, static_argnums=0)
def _block(definition: Any, state: Any, y: Any, context: Any) -> Any:
    from flax import nnx

    return nnx.merge(definition, state)(y, context)


def run_row(width: int, many: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Run a row of blocks of XL's middle in each of the ways."""
    from flax import nnx

    from cmjax.models.layers.transformer import TransformerBlock

    options = {"heads": width // 64, "head_dim": 64, "context_width": 2048, "dtype": jnp.float32}
    definition, first = nnx.split(TransformerBlock(width, **options, rngs=nnx.Rngs(0)))
    states = [jax.tree.map(lambda leaf, i=i: leaf * (1 + 0.01 * i), first) for i in range(many)]
    definition, state = nnx.split(nnx.List([nnx.merge(definition, state) for state in states]))
    y = jax.random.normal(jax.random.key(0), (1, tokens, width))
    context = jax.random.normal(jax.random.key(1), (1, 77, 2048))
    calls: dict[str, Callable[[], Any]] = {}
    outputs = {}
    for blocks in BLOCKS:
        function = jax.jit(functools.partial(_row, blocks, definition)).lower(state, y, context).compile()
        calls[blocks] = functools.partial(function, state, y, context)
        outputs[blocks] = calls[blocks]()
    spread = jnp.std(outputs["plain"])
    timings, seconds = interleaved(calls, rounds=rounds)
    return {
        "blocks": many, "width": width, "tokens": tokens, "timings": timings,
        "over_plain": {name: ratio(seconds[name], seconds["plain"]) for name in BLOCKS[1:]},
        "cpu_over_plain": {name: timings[name]["cpu"] / timings["plain"]["cpu"] for name in BLOCKS[1:]},
        "largest_difference": {
            name: float(jnp.abs(outputs[name] - outputs["plain"]).max() / spread) for name in BLOCKS[1:]
        },
    }  # fmt: skip


def _row(blocks: str, definition: Any, state: Any, y: Any, context: Any) -> Any:
    from flax import nnx

    return walk(blocks, nnx.merge(definition, state), y, context)


# ---- all of it -------------------------------------------------------------------------------------------------------


class Processes:
    """Runs tasks in fresh processes, and keeps what they found in a folder.

    Args:
        folder: of the figures; those that are there are not taken again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, kind: str, cache: str | None = None, **task: Any) -> Any:
        """Return what a task found. A cache is a compile cache in the folder, named, which a second task can find."""
        text = json.dumps({"kind": kind, **task})
        name = re.sub(r"[^a-z0-9]+", "-", f"{text} {cache or ''} {task.get('warm', '')}").strip("-")
        kept = self.folder / f"{name}.json"
        if kept.exists():
            return json.loads(kept.read_text())
        environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION_CACHE")}
        if cache is not None:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.folder / cache)
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        call = [sys.executable, __file__, "--task", text]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"a measured process failed:\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        kept.write_text(json.dumps(found))
        print(f"{text}: {found.get('compile', '')}", file=sys.stderr, flush=True)
        return found


def _task(task: dict[str, Any]) -> Any:
    kind = task.pop("kind")
    return {"measure": measure, "elsewhere": lowered_elsewhere, "row": run_row}[kind](**task)


def equal_blocks(run: Processes, name: str, pixels: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Compile a network with each of the ways of equal blocks, and run a row of blocks."""
    task = {"name": name, "part": "network", "pixels": pixels}
    return {
        "model": name,
        "network": {blocks: run("measure", blocks=blocks, **task) for blocks in BLOCKS},
        "row": run("row", width=1280, many=4, tokens=tokens, rounds=rounds),
    }


def programs(run: Processes, name: str, parts: Sequence[str], pixels: int) -> dict[str, Any]:
    """Measure programs of a model, cold and warm."""
    found: dict[str, Any] = {}
    for part in parts:
        task = {"name": name, "part": part, "pixels": pixels, "blocks": "plain", "cache": f"{name} {part}"}
        cold, warm = (run("measure", warm=warm, **task) for warm in (False, True))
        cold["warm"] = {"trace": warm["trace"], "lower": warm["lower"], "read": warm["compile"]}
        found[part] = cold
    return found | run("elsewhere", name=name, pixels=pixels)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=list(MODELS), help="of full_size_texts: sd15, sd21, sdxl, tiny")
    options.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    options.add_argument("--pixels", type=int, default=256, help="a side of the pictures")
    options.add_argument("--blocks", nargs="?", const="sdxl", metavar="MODEL", help="compare rows of equal blocks too")
    options.add_argument("--tokens", type=int, default=64, help="of the row of blocks that is run")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--work", type=Path, help="keep the figures of each process in this folder")
    options.add_argument("--task", help=None)
    args = options.parse_args(arguments)
    if args.task:
        print(json.dumps(_task(json.loads(args.task))))
        return
    here = machine()
    result: dict[str, Any] = {"program": "compile_time", "pixels": args.pixels, "steps": STEPS, "padded_to": MOST}
    with tempfile.TemporaryDirectory() as temporary:
        run = Processes(args.work or Path(temporary))
        if args.blocks:
            result["equal_blocks"] = equal_blocks(run, args.blocks, args.pixels, args.tokens, args.rounds)
        result["models"] = {name: programs(run, name, args.parts, args.pixels) for name in args.models}
    for name, found in result["models"].items():
        rows = []
        for part in args.parts:
            one = found[part]
            warm = one["warm"]
            cells = [one[step]["cpu"] for step in ("model", "trace", "lower", "compile")] + [one["compile"]["wall"]]
            cells += [warm["read"]["cpu"], sum(step["cpu"] for step in warm.values())]
            rows.append([part, *(f"{cell:.2f}" for cell in cells), f"{one['memory'] / 2**20:.0f}",
                         f"{one['operations']['cpu']:,}"])  # fmt: skip
        header = ["", "model", "trace", "lower", "compile", "(wall)", "read", "warm, all", "MiB", "operations"]
        print_table(f"{name}, {args.pixels} pixels: seconds of the processor", header, rows)
    if args.blocks:
        rows, row = [], result["equal_blocks"]["row"]
        for way, one in result["equal_blocks"]["network"].items():
            cells = [f"{one[step]['cpu']:.2f}" for step in ("trace", "lower", "compile")]
            cells += [f"{one['operations']['cpu']:,}", f"{one['temporary_bytes'] / 2**20:.0f}"]
            rows.append([way, *cells, f"{row['cpu_over_plain'].get(way, 1.0):.2f}"])
        header = ["", "trace", "lower", "compile", "operations", "temporary MiB", "a row, time over plain"]
        print_table(f"{args.blocks}'s network, ways of equal blocks: seconds of the processor", header, rows)
    result["targets"] = [
        target(found["programs_of_1_4_8_steps"]["padded"], 1, f"programs of {name} for 1, 4 and 8 steps, padded")
        for name, found in result["models"].items()
    ]
    conclude(result, args.json, here)


if __name__ == "__main__":
    main()
