"""Draw one prompt from one seed with every sampler of variance-preserving models, in a few and in many steps.

    python benchmarks/emoji/samplers.py

writes notebooks/samplers_drawn.png: a row for each sampler, and columns for the distilled network without guidance and
for its teacher with guidance 3. Every picture starts at the same noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from evaluate import GUIDANCE, load_teacher
from PIL import Image, ImageDraw

import cmjax
from cmjax.samplers._vp import VPConfig

HERE = Path(__file__).parent
STEPS = (2, 4, 8, 25)
SAMPLERS = tuple(sampler for sampler in cmjax.samplers.ALL if issubclass(sampler.Config, VPConfig))
SIDE, LINE, LEFT = 84, 14, 118


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=HERE / "pipeline")
    parser.add_argument("--prompt", default="a large fox on a purple background, fluent style")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "notebooks" / "samplers_drawn.png")
    args = parser.parse_args()
    models = {
        "distilled network": (cmjax.text_to_image.load(args.pipeline), None),
        f"its teacher, guidance {GUIDANCE:g}": (load_teacher(args.pipeline), GUIDANCE),
    }
    key = jax.random.key(args.seed)
    rows = {}
    for sampler in SAMPLERS:
        name = sampler.__name__.rpartition(".")[2]
        calls, pictures = [], []
        for pipe, guidance in models.values():
            states = [path(sampler, pipe.config, steps) for steps in STEPS]
            calls = [state.num_steps for state in states]
            pictures += [draw(pipe, state, key, args.prompt, guidance) for state in states]
        rows[name] = (calls, pictures)
        print(name, calls, flush=True)
    sheet(list(models), rows, args.prompt).save(args.out, optimize=True)


def path(sampler: Any, config: Any, calls: int) -> Any:
    """A path of so many calls of the network, or one fewer where a sampler takes odd numbers alone."""
    state = sampler.init(config, calls)
    return state if state.num_steps == calls else sampler.init(config, (calls + 1) // 2)


@jax.jit
def call(model: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return model(x, t, cond)


def draw(pipe: Any, state: Any, key: jax.Array, prompt: str, guidance: float | None) -> np.ndarray:
    """`cmjax.text_to_image.draw`, with one compiled network for all samplers: f32[H, W, 3]."""
    cond = pipe.encode(pipe.tokenize([prompt]))
    model = cmjax.text_to_image.guided(pipe, cond, guidance)
    k_x, k_z = jax.random.split(key)
    x = cmjax.prior(state, k_x, pipe.latent_shape(1))
    for k in jax.random.split(k_z, state.num_steps):
        x_in, t = cmjax.model_input(state, x)
        state, x = cmjax.step(state, call(model, x_in, jnp.float32(t), cond), x, k)
    return np.asarray(pipe.autoencoder.decode(x)[0])


def sheet(blocks: list[str], rows: dict[str, Any], prompt: str) -> Image.Image:
    """Lay out the pictures."""
    block = len(STEPS) * (SIDE + 2) + 10
    image = Image.new("RGB", (LEFT + len(blocks) * block, 3 * LINE + len(rows) * (SIDE + 2)), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    pen.text((4, 1), prompt, fill=(0, 0, 0))
    for i, name in enumerate(blocks):
        pen.text((LEFT + i * block, LINE), name, fill=(160, 0, 0))
        for j, steps in enumerate(STEPS):
            pen.text((LEFT + i * block + j * (SIDE + 2), 2 * LINE), f"{steps} calls", fill=(0, 0, 0))
    for i, (name, (calls, pictures)) in enumerate(rows.items()):
        top = 3 * LINE + i * (SIDE + 2)
        pen.text((4, top + SIDE // 2 - LINE), name, fill=(0, 0, 0))
        if tuple(calls) != STEPS:
            pen.text((4, top + SIDE // 2), ", ".join(map(str, calls)) + " calls", fill=(110, 110, 110))
        for j, picture in enumerate(pictures):
            left = LEFT + j // len(STEPS) * block + j % len(STEPS) * (SIDE + 2)
            pixels = Image.fromarray(cmjax.io.to_uint8(picture))
            image.paste(pixels.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
    return image


if __name__ == "__main__":
    main()
