"""What judges pictures of pictograms: a small classifier, and measures of their pixels.

    judge.py --data pictograms.npz --out judge.safetensors [--seconds 400]

trains the classifier on a CPU, on pictures that `data.py` composes as it does for `train.py`: it never sees the
combinations that are held out. It has three heads: 113 subjects, four styles, and seven arrangements (one pictogram in
the centre, left, right, top or bottom; two; three). The background's colour needs no classifier: the median of the
outermost pixels is compared with the ten colours. The weights in the package, `emoji-classifier`, were made so.
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
from captions import COLOURS, PLACES, Tokenizer
from flax import nnx

from cmjax.evaluation import PictogramClassifier, read_pictograms, write_pictograms

__all__ = ["arrangement", "judge", "sharpness"]


def arrangement(place: Any, number: Any) -> Any:
    """Number the arrangements: the five places of one pictogram, then two, then three."""
    return place * (number == 0) + (len(PLACES) - 1 + number) * (number > 0)


def train(
    data: emoji.Data, seconds: float, *, batch: int = 32, rate: float = 1.5e-3, seed: int = 0
) -> PictogramClassifier:
    """Train from scratch; the rate falls to 0 over the seconds."""
    graph, params = nnx.split(PictogramClassifier(rngs=nnx.Rngs(seed)))
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


@nnx.jit
def _see(model: PictogramClassifier, x: jax.Array) -> Any:
    return tuple(logits.argmax(-1) for logits in model(x))


def judge(model: PictogramClassifier, pictures: np.ndarray, batch: int = 100) -> dict[str, np.ndarray]:
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
    write_pictograms(train(data, args.seconds), args.out)
    what = emoji.draw_attributes(jax.random.key(10**6), 2000)
    seen = judge(read_pictograms(args.out), np.asarray(jax.jit(emoji.pictures)(data, what, jax.random.key(10**6 + 1))))
    asked = what._asdict() | {"arrangement": arrangement(what.place, what.number)}
    print(json.dumps({name: float((guess == np.asarray(asked[name])).mean()) for name, guess in seen.items()}))


if __name__ == "__main__":
    main()
