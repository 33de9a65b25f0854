"""How the package's Fashion-MNIST classifier was trained: the judge that the sample-quality figures are read with.

Run ``python benchmarks/fashion_mnist_classifier.py --data fashion_mnist.npz --out classifier.safetensors``. It reads
an ``.npz`` with ``train_images`` u8[N, 28, 28], ``train_labels``, ``test_images`` and ``test_labels``, trains on two
slow CPU cores in a few minutes, prints the test accuracy of the weights as they are stored (float16, under 1 MB), and
fails if that is below 91%.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cmjax.evaluation import Classifier, ClassifierFeatures, read_classifier, write_classifier

__all__ = ["CLASS_NAMES", "classify", "main", "to_unit_range", "train_classifier"]

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
REQUIRED_ACCURACY = 0.91

_see = jax.jit(ClassifierFeatures.__call__)


def to_unit_range(images: np.ndarray) -> np.ndarray:
    """Return images as f32[N, 28, 28, 1] in [-1, 1], from u8 in 0 ... 255 or floats already in [-1, 1]."""
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 127.5 - 1
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(f"images must be u8 (0 ... 255) or floating ([-1, 1]), got {images.dtype}. Convert them first.")
    return np.clip(images.astype(np.float32), -1, 1)


def classify(model: Classifier, images: np.ndarray, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Return (features f32[N, 128], logits f32[N, 10]) of u8 or float images; one compilation, whatever N."""
    x = to_unit_range(images)
    count = len(x)
    x = np.concatenate([x, np.zeros((-count % batch, *x.shape[1:]), np.float32)])
    extractor = ClassifierFeatures.of(model)
    parts = [_see(extractor, jnp.asarray(x[i : i + batch])) for i in range(0, len(x), batch)]
    features, logits = (np.concatenate([np.asarray(part[k]) for part in parts])[:count] for k in (0, 1))
    return features, logits


def _shifted(images: jax.Array, key: jax.Array) -> jax.Array:
    """Move the batch by -1, 0 or 1 pixels each way (one move for the batch: a dynamic slice, almost free)."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    row, column = jax.random.randint(key, (2,), 0, 3)
    return jax.lax.dynamic_slice(padded, (0, row, column, 0), images.shape)


def train_classifier(
    images: np.ndarray, labels: np.ndarray, *, epochs: int = 7, batch: int = 128, seed: int = 0, log: bool = True
) -> Classifier:
    """Train from scratch with AdamW and a warm-up-cosine rate; images u8[N, 28, 28], labels u8[N]."""
    model = Classifier(rngs=nnx.Rngs(seed))
    steps_per_epoch = len(images) // batch
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 200, epochs * steps_per_epoch)
    optimizer = optax.adamw(rate, b2=0.99, weight_decay=0.02)
    graph, params = nnx.split(model)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, x_u8: jax.Array, y: jax.Array, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        x = x_u8[..., None].astype(jnp.float32) / 127.5 - 1
        k_shift, k_drop = jax.random.split(key)
        x = _shifted(x, k_shift)

        def loss_fn(params: Any) -> jax.Array:
            logits = nnx.merge(graph, params)(x, k_drop)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    shuffle, key, start = np.random.default_rng(seed), jax.random.key(seed), time.perf_counter()
    for epoch in range(epochs):
        order, losses = shuffle.permutation(len(images)), []
        for i in range(steps_per_epoch):
            pick = order[i * batch : (i + 1) * batch]
            step_key = jax.random.fold_in(key, epoch * steps_per_epoch + i)
            params, opt_state, loss = step(params, opt_state, images[pick], labels[pick].astype(np.int32), step_key)
            losses.append(loss)
        if log:
            mean = float(np.mean(jax.device_get(losses)))
            print(f"epoch {epoch + 1:2d}/{epochs}  loss {mean:.4f}  {time.perf_counter() - start:5.0f} s", flush=True)
    return nnx.merge(graph, params)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as .npz")
    parser.add_argument("--out", type=Path, required=True, help="where the weights go (.safetensors)")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args(arguments)

    start = time.perf_counter()
    with np.load(args.data) as file:
        data = {name: file[name] for name in ("train_images", "train_labels", "test_images", "test_labels")}
    model = train_classifier(data["train_images"], data["train_labels"], epochs=args.epochs, seed=args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_classifier(model, args.out)

    guess = classify(read_classifier(args.out), data["test_images"])[1].argmax(-1)
    right = guess == data["test_labels"]
    per_class = {name: round(float(right[data["test_labels"] == i].mean()), 4) for i, name in enumerate(CLASS_NAMES)}
    result = {
        "test_accuracy": round(float(right.mean()), 4),
        "test_accuracy_by_class": per_class,
        "epochs": args.epochs,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "bytes": args.out.stat().st_size,
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if right.mean() < REQUIRED_ACCURACY:
        raise SystemExit(f"test accuracy {right.mean():.4f} is below {REQUIRED_ACCURACY}: train for more --epochs.")


if __name__ == "__main__":
    main()
