"""What judges pictures of pictograms: a small classifier, and measures of their pixels.

    judge.py --data pictograms.npz --out judge.safetensors [--seconds 400]

trains the classifier on a CPU, on pictures that `data.py` composes as it does for `train.py`: it never sees the
combinations that are held out. It has three heads: 113 subjects, four styles, and seven arrangements (one pictogram in
the centre, left, right, top or bottom; two; three). The background's colour needs no classifier: the median of the
outermost pixels is compared with the ten colours.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import data as emoji
import jax
import jax.numpy as jnp
import numpy as np
import optax
from captions import COLOURS, PLACES, STYLES, SUBJECTS, Tokenizer
from flax import nnx

from cmjax.io import read_safetensors, write_safetensors
from cmjax.models.layers import Conv, GroupNorm, Linear, ResnetBlock

__all__ = ["Judge", "arrangement", "judge", "read", "sharpness"]

_ARRANGEMENTS = len(PLACES) + 2


class Judge(nnx.Module):
    """Logits of subject, style and arrangement of pictures f[B, 64, 64, 3] in [-1, 1]."""

    def __init__(self, *, rngs: nnx.Rngs):
        def block(width: int) -> ResnetBlock:
            return ResnetBlock(width, width, time_width=None, groups=8, eps=1e-5, dtype=jnp.float32, rngs=rngs)

        self.halve1 = Conv(3, 32, strides=2, rngs=rngs)
        self.halve2 = Conv(32, 64, strides=2, rngs=rngs)
        self.halve3 = Conv(64, 128, strides=2, rngs=rngs)
        self.block1 = block(128)
        self.halve4 = Conv(128, 192, strides=2, rngs=rngs)
        self.block2 = block(192)
        self.norm = GroupNorm(192, 8, eps=1e-5)
        self.subject = Linear(192, len(SUBJECTS), rngs=rngs)
        self.style = Linear(192, len(STYLES), rngs=rngs)
        self.arrangement = Linear(16 * 192, _ARRANGEMENTS, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = self.halve2(nnx.silu(self.halve1(x)))
        x = self.halve4(nnx.silu(self.block1(self.halve3(nnx.silu(x)))))
        x = nnx.silu(self.norm(self.block2(x)))
        pooled = x.mean((1, 2))
        return self.subject(pooled), self.style(pooled), self.arrangement(x.reshape(len(x), -1))


def arrangement(place: Any, number: Any) -> Any:
    """Number the arrangements: the five places of one pictogram, then two, then three."""
    return place * (number == 0) + (len(PLACES) - 1 + number) * (number > 0)


def train(data: emoji.Data, seconds: float, *, batch: int = 32, rate: float = 1.5e-3, seed: int = 0) -> Judge:
    """Train from scratch; the rate falls to 0 over the seconds."""
    graph, params = nnx.split(Judge(rngs=nnx.Rngs(seed)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))

    @jax.jit
    def step(params: Any, opt_state: Any, data: emoji.Data, key: jax.Array, rate: jax.Array) -> Any:
        what_key, paint_key = jax.random.split(key)
        what = emoji.draw_attributes(what_key, batch)
        x = emoji.pictures(data, what, paint_key)

        def loss_fn(params: Any) -> Any:
            logits = nnx.merge(graph, params)(x)
            asked = (what.subject, what.style, arrangement(what.place, what.number))
            parts = [
                optax.softmax_cross_entropy_with_integer_labels(one, label).mean()
                for one, label in zip(logits, asked, strict=True)
            ]
            return sum(parts), jnp.stack(parts)

        (_, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = jax.tree.map(lambda p, u: p - rate * (u + 0.01 * p), params, updates)
        return params, opt_state, parts

    opt_state, key = optimizer.init(params), jax.random.key(seed)
    program = step.lower(params, opt_state, data, key, np.float32(0)).compile()
    start, steps, said = time.monotonic(), 0, 0.0
    while (used := time.monotonic() - start) < seconds:
        share = used / seconds
        now = rate * min(1.0, share / 0.03) * 0.5 * (1 + np.cos(np.pi * share))
        step_key = jax.random.fold_in(key, steps)
        params, opt_state, parts = jax.block_until_ready(program(params, opt_state, data, step_key, np.float32(now)))
        steps += 1
        if used - said > 20 or steps == 1:
            said = used
            names = ("subject", "style", "arrangement")
            losses = dict(zip(names, np.round(np.asarray(parts, float), 3).tolist(), strict=True))
            print(json.dumps({"seconds": round(used), "pictures": steps * batch, **losses}), flush=True)
    return nnx.merge(graph, params)


def write(model: Judge, path: Path) -> None:
    """Write the weights in float16."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    write_safetensors({".".join(map(str, name)): np.asarray(leaf[...], np.float16) for name, leaf in flat}, path)


def read(path: Path) -> Judge:
    """Read what `write` wrote."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Judge(rngs=nnx.Rngs(0))))
    tensors = read_safetensors(path)
    flat = [
        (name, leaf.replace(jnp.asarray(tensors[".".join(map(str, name))], jnp.float32)))
        for name, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


@nnx.jit
def _see(model: Judge, x: jax.Array) -> Any:
    return tuple(logits.argmax(-1) for logits in model(x))


def judge(model: Judge, pictures: np.ndarray, batch: int = 100) -> dict[str, np.ndarray]:
    """Say what is in pictures f[N, 64, 64, 3] in [-1, 1]: subject, style, arrangement, colour, each i[N]."""
    count = len(pictures)
    x = np.clip(np.asarray(pictures, np.float32), -1, 1)
    x = np.concatenate([x, np.zeros((-count % batch, *x.shape[1:]), np.float32)])
    parts = [_see(model, jnp.asarray(x[i : i + batch])) for i in range(0, len(x), batch)]
    subject, style, where = (np.concatenate([np.asarray(part[k]) for part in parts])[:count] for k in range(3))
    return {"subject": subject, "style": style, "arrangement": where, "colour": _background(x[:count])}


def _background(x: np.ndarray) -> np.ndarray:
    """The colour that is nearest to the median of the outermost pixels, i[N]."""
    ring = np.concatenate([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], axis=1)
    seen = (np.median(ring, axis=1) + 1) * 127.5
    colours = np.array(list(COLOURS.values()), np.float32)
    return np.square(seen[:, None] - colours).sum(-1).argmin(1)


def sharpness(pictures: np.ndarray) -> dict[str, float]:
    """Measure how sharp pictures are; blur lowers all figures, noise raises them.

    Returns:
      `gradient`: mean length of the gradient of the grey picture in [-1, 1], per pixel; `edges`: the same over the
      twentieth of each picture's pixels where it is largest; `laplacian`: mean absolute Laplacian.
    """
    grey = np.clip(pictures, -1, 1).mean(-1)
    dy, dx = grey[:, 1:, :-1] - grey[:, :-1, :-1], grey[:, :-1, 1:] - grey[:, :-1, :-1]
    length = np.sqrt(dx**2 + dy**2).reshape(len(grey), -1)
    most = np.sort(length, axis=1)[:, -length.shape[1] // 20 :]
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, 2:, 1:-1] + grey[:, :-2, 1:-1] + grey[:, 1:-1, 2:] + grey[:, 1:-1, :-2]
    return {
        "gradient": float(length.mean()),
        "edges": float(most.mean()),
        "laplacian": float(np.abs(around - 4 * inner).mean()),
    }


def main() -> None:
    """Train, write, and print the accuracy on new compositions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what prepare.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the weights (.safetensors)")
    parser.add_argument("--seconds", type=float, default=400)
    args = parser.parse_args()
    data = emoji.load(args.data, Tokenizer())
    write(train(data, args.seconds), args.out)
    what = emoji.draw_attributes(jax.random.key(10**6), 2000)
    seen = judge(read(args.out), np.asarray(jax.jit(emoji.pictures)(data, what, jax.random.key(10**6 + 1))))
    asked = what._asdict() | {"arrangement": arrangement(what.place, what.number)}
    print(json.dumps({name: float((guess == np.asarray(asked[name])).mean()) for name, guess in seen.items()}))


if __name__ == "__main__":
    main()
