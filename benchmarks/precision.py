"""Half precision: how far the pictures are from those of float32, and what is saved.

The same keys, classes and path; the network computes in float32, bfloat16 or float16 (its weights stored in float32,
or its matrices in half precision too), the sampler always in float32. Differences are of values in [-1, 1]; a grey
level is 1 / 127.5. *flips* is the share of values that land on another grey level.

The embedded model in one, two and four steps; with `--imagenet64` also the published ImageNet 64 network in full size
with random weights, in its two steps, which says how rounding travels through a deep network (a trained one maps more
inputs to the same picture, so this is the harder case).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import conclude, interleaved, machine, parser, print_table, ratio

import cmjax

sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))
import full_size

HALVES = ("bfloat16", "float16")


def draw(model: Any, state: Any, batch: int, image: tuple[int, ...], classes: int) -> Any:
    generate = jax.jit(cmjax.generate, static_argnames="shape")
    keys, cond = jax.random.split(jax.random.key(0), batch), jnp.arange(batch) % classes
    return lambda: generate(model, state, keys, shape=(batch, *image), cond=cond)


def compare(
    name: str, load: Any, config: Any, paths: dict[str, dict[str, Any]], image: tuple[int, ...], batch: int,
    classes: int, rounds: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Draw in every precision along every path; differences from float32, and times over its time."""
    models = {"float32": load("float32", "float32")}
    for half in HALVES:
        models[half] = load(half, "float32")
        models[f"{half}, weights too"] = load(half, half)
    rows = []
    for path, options in paths.items():
        state = cmjax.cm.init(config, **options)
        programs = {kind: draw(model, state, batch, image, classes) for kind, model in models.items()}
        images = {kind: np.asarray(program()) for kind, program in programs.items()}
        if wrong := [kind for kind, found in images.items() if not np.isfinite(found).all()]:
            raise SystemExit(f"{name}, {path}: not all values are finite in {', '.join(wrong)}")
        _, seconds = interleaved(programs, rounds=rounds)
        for kind, found in images.items():
            apart = np.abs(found - images["float32"])
            grey = [cmjax.io.to_uint8(picture).astype(int) for picture in (found, images["float32"])]
            rows.append(
                {
                    "network": name,
                    "path": path,
                    "dtype": kind,
                    "largest": float(apart.max()),
                    "mean": float(apart.mean()),
                    "flips": float((grey[0] != grey[1]).mean()),
                    "over_float32": ratio(seconds[kind], seconds["float32"]),
                    "weights": sum(leaf.nbytes for leaf in jax.tree.leaves(models[kind])),
                }
            )
    return rows


def imagenet64(dtype: str, param_dtype: str) -> Any:
    """The published network with random weights; of those, matrices are stored in `param_dtype`."""
    model, _ = full_size.checkpoint("imagenet64", dtype=jnp.dtype(dtype))
    return jax.tree.map(lambda leaf: leaf.astype(param_dtype) if leaf.ndim > 1 else leaf, model)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=80)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--imagenet64", action="store_true", help="the network of 296M parameters too, batch 1")
    args = options.parse_args(arguments)
    here = machine()

    def embedded(dtype: str, param_dtype: str) -> Any:
        return cmjax.load("fashion-mnist-cm", dtype=dtype, param_dtype=param_dtype).model

    config = cmjax.load("fashion-mnist-cm", abstract=True).config
    paths = {f"{n} steps": {"num_steps": n} for n in (1, 2, 4)}
    rows = compare("fashion-mnist-cm", embedded, config, paths, (28, 28, 1), args.batch, 10, args.rounds)
    if args.imagenet64:
        grid = cmjax.cm.CMConfig(num_train_timesteps=40)
        rows += compare("ImageNet 64", imagenet64, grid, {"[22, 0]": {"timesteps": [22, 0]}}, (64, 64, 3), 1, 1000, 1)
    print_table(
        "Pictures in half precision beside float32",
        ["", "largest", "mean", "other grey level", "time", "weights, MiB"],
        [
            [
                f"{r['network']}, {r['path']}, {r['dtype']}",
                f"{r['largest']:.4f}",
                f"{r['mean']:.6f}",
                f"{r['flips']:.2%}",
                f"{r['over_float32']:.2f}",
                f"{r['weights'] / 2**20:.1f}",
            ]
            for r in rows
        ],
    )
    conclude({"program": "precision", "batch": args.batch, "rows": rows}, args.json, here)


if __name__ == "__main__":
    main()
