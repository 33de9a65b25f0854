"""Are the edits of use? Held-out pictures with a part missing, restored by a model and by simple means side by side.

Run ``python benchmarks/editing_quality.py --data fashion_mnist.npz``: the first pictures of each class of the test set,
classes in turn. The model is told the class, so every simple means that can use the class is given it too.

==========  ==========================================================================================================
hole        The middle 12 x 12 pixels are unknown (`editing.inpaint`). RMS error in the hole, the range being [-1, 1].
upscale     Known are the means of 4 x 4 blocks: 7 x 7 -> 28 x 28 (`editing.super_resolution`). PSNR in dB, peak to peak
            2, the mean over pictures.
denoise     One call of the model at the noise level (``cm.init(config, sigmas=[s])``). PSNR in dB.
agreement   Share of the whole pictures in which the classifier of `sample_quality` sees the class that they are of.
==========  ==========================================================================================================

Everything is clipped to [-1, 1] before it is measured. The simple means, all from the 60,000 training images:

==============  ======================================================================================================
known mean      The hole is filled with the mean of the picture's known pixels.
class mean      ... with the mean picture of the class.
nearest         ... with the pixels of the training image that is nearest on the known pixels; also in the class.
linear          The mean of what is unknown given what is known, were the images of the class Gaussian: of all estimates
                that are linear in what is known, the one of least squared error.
gaussian        A Gaussian filter, of the width that is best for 1,000 training images at this noise level.
==============  ======================================================================================================

One sample of what may have been there has, at best, twice the squared error of the mean of all that may have been there
(3 dB, or a factor of 1.41 in RMS), and is sharp where that is blurred. So a second table, of fewer pictures, has the
mean of several variants, and more paths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from common import conclude, machine, parser, print_table
from fashion_mnist_classifier import CLASS_NAMES, classify, to_unit_range
from PIL import Image
from scipy.ndimage import gaussian_filter

import cmjax
from cmjax import editing
from cmjax.evaluation import CLASSIFIER, Classifier, read_classifier

SIDE, FACTOR, BATCH = 28, 4, 100
HOLE = np.zeros((SIDE, SIDE, 1), bool)
HOLE[8:20, 8:20] = True
WIDTHS = np.arange(0.3, 1.5, 0.1)  # of Gaussian filters, in pixels

Figures = dict[str, float]


class Pictures(NamedTuple):
    """Images f32[N, 28, 28, 1] in [-1, 1] and their classes i32[N]."""

    images: np.ndarray
    labels: np.ndarray

    def first(self, n: int) -> Pictures:
        """The first n, which are as many of each class."""
        return Pictures(self.images[:n], self.labels[:n])


def read(path: Path, num: int) -> tuple[Pictures, Pictures]:
    """Read all training images, and the first num / 10 held-out images of each class, classes in turn."""
    with np.load(path) as file:
        train = Pictures(to_unit_range(file["train_images"]), file["train_labels"].astype(np.int32))
        labels = file["test_labels"].astype(np.int32)
        members = [np.flatnonzero(labels == c)[: num // len(CLASS_NAMES)] for c in range(len(CLASS_NAMES))]
        order = np.stack(members, axis=1).ravel()
        return train, Pictures(to_unit_range(file["test_images"][order]), labels[order])


# ---- figures ---------------------------------------------------------------------------------------------------------


def error_in_hole(found: np.ndarray, true: np.ndarray) -> float:
    """Root of the mean squared error over the pixels of all holes."""
    return float(np.sqrt(np.mean((np.clip(found, -1, 1) - true)[:, HOLE] ** 2)))


def psnr(found: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, the mean over pictures; the range is 2."""
    return float(np.mean(10 * np.log10(4 / np.mean((np.clip(found, -1, 1) - true) ** 2, axis=(1, 2, 3)))))


def agreement(judge: Classifier, found: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures in which the judge sees their class."""
    return float((classify(judge, found)[1].argmax(-1) == labels).mean())


# ---- simple means ----------------------------------------------------------------------------------------------------


def nearest_fills(train: Pictures, held: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Fill holes from the nearest training image on the known pixels: of all, and of the same class."""
    known = ~HOLE.ravel()
    candidates = train.images.reshape(-1, known.size)[:, known]
    lengths, choices = (candidates**2).sum(1), []
    for i in range(0, len(held.labels), BATCH):
        part, labels = held.images[i : i + BATCH].reshape(-1, known.size)[:, known], held.labels[i : i + BATCH]
        distances = lengths - 2 * part @ candidates.T
        within = np.where(labels[:, None] == train.labels, distances, np.inf)
        choices.append((distances.argmin(1), within.argmin(1)))
    of_all, in_class = (np.concatenate(index) for index in zip(*choices, strict=True))
    return _fill(held.images, train.images[of_all]), _fill(held.images, train.images[in_class])


def _fill(images: np.ndarray, fill: np.ndarray) -> np.ndarray:
    return np.where(HOLE, fill, images)


Gaussians = list[tuple[np.ndarray, np.ndarray]]


def class_gaussians(train: Pictures) -> Gaussians:
    """Mean f64[784] and covariance f64[784, 784] of every class."""
    groups = [train.images[train.labels == c].reshape(-1, SIDE * SIDE) for c in range(len(CLASS_NAMES))]
    return [(group.mean(0, np.float64), np.cov(group, rowvar=False)) for group in groups]


def linear_estimate(
    classes: Gaussians, labels: np.ndarray, measure: np.ndarray, found: np.ndarray, std: float
) -> np.ndarray:
    """Mean of x given y = A x + s z, were each class Gaussian: m + C Aᵀ (A C Aᵀ + s²)⁻¹ (y - A m).

    `measure` is A, f[M, 784], `found` is y, f[N, M], `std` is s.
    """
    estimate = np.empty((len(labels), SIDE * SIDE), np.float32)
    for c, (mean, cov) in enumerate(classes):
        shared = measure @ cov
        noise = (std**2 + 1e-4) * np.eye(len(measure))  # a little more than there is: some pixels never change
        weights = np.linalg.solve(shared @ measure.T + noise, shared)
        estimate[labels == c] = mean + (found[labels == c] - measure @ mean) @ weights
    return estimate.reshape(-1, SIDE, SIDE, 1)


def bicubic(low: np.ndarray) -> np.ndarray:
    """Enlarge f32[N, h, w, 1] as Pillow does."""
    size = (low.shape[2] * FACTOR, low.shape[1] * FACTOR)
    large = [Image.fromarray(picture[..., 0]).resize(size, Image.Resampling.BICUBIC) for picture in low]
    return np.stack([np.asarray(picture) for picture in large])[..., None]


def filtered(noisy: np.ndarray, width: float) -> np.ndarray:
    """A Gaussian filter of each picture."""
    return gaussian_filter(noisy, (0, width, width, 0), mode="nearest")


def best_width(train: Pictures, std: float, seed: int) -> float:
    """The width with the best PSNR on 1,000 training images."""
    true = train.images[:1000]
    noisy = true + std * np.random.default_rng(seed).standard_normal(true.shape, np.float32)
    return float(max(WIDTHS, key=lambda width: psnr(filtered(noisy, width), true)))


# ---- the model -------------------------------------------------------------------------------------------------------


ON_ALL = ("4 steps", "10 steps, 3 ... 0.3")  # of `paths`, the ones that all pictures are restored by


def paths(config: Any) -> dict[str, Any]:
    """The paths that are compared: of the model's grid, and between levels where it sees what is known."""
    size = config.num_train_timesteps
    return {
        "4 steps": cmjax.cm.init(config, num_steps=4),
        f"{size} steps, the grid": cmjax.cm.init(config, num_steps=size),
        "10 steps, 3 ... 0.3": cmjax.cm.init(config, sigmas=np.geomspace(3.0, 0.3, 10).tolist()),
        "20 steps, 3 ... 0.3": cmjax.cm.init(config, sigmas=np.geomspace(3.0, 0.3, 20).tolist()),
    }


@jax.jit
def restore(model: Any, state: Any, edit: Any, labels: jax.Array, k_x: jax.Array, k_z: jax.Array) -> jax.Array:
    """Start from what the edit knows, noised to the first level, and walk the path with the edit."""
    x = cmjax.add_noise(state, editing.known(edit, (len(labels), SIDE, SIDE, 1)), k_x)
    return cmjax.sample(model, state, x, k_z, labels, edit=edit)


def in_batches(program: Callable[..., jax.Array], count: int, *arrays: Any) -> np.ndarray:
    """Call a compiled program on batches of one size; the arrays may be pytrees, and the last batch is filled up."""
    index = np.arange(count + -count % BATCH) % count
    parts = []
    for i in range(0, len(index), BATCH):
        pick = index[i : i + BATCH]
        parts.append(np.asarray(program(*jax.tree.map(lambda leaf, pick=pick: leaf[pick], arrays))))
    return np.concatenate(parts)[:count]


def restored(
    model: Any, state: Any, edit_of: Callable[[Any], Any], measured: np.ndarray, labels: np.ndarray, key: Any
) -> np.ndarray:
    """Restore pictures from what was measured, a key for each."""
    k_x, k_z = jax.random.split(key, (2, len(labels)))

    def program(measured: Any, labels: Any, k_x: Any, k_z: Any) -> jax.Array:
        return restore(model, state, edit_of(measured), labels, k_x, k_z)

    return in_batches(program, len(labels), measured, labels, k_x, k_z)


@jax.jit
def denoise(model: Any, state: Any, noisy: jax.Array, labels: jax.Array) -> jax.Array:
    """One call; the key is not used, as the only step is the last."""
    return cmjax.sample(model, state, noisy, jax.random.key(0), labels)


# ---- the tables ------------------------------------------------------------------------------------------------------

TASKS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[Any], Any]]] = {
    "hole": (lambda images: images, lambda photo: editing.inpaint(photo, HOLE)),
    "upscale": (
        lambda images: np.asarray(editing.block_mean(images, FACTOR)),
        lambda low: editing.super_resolution(low, FACTOR),
    ),
}


def simple_means(task: str, train: Pictures, classes: Gaussians, held: Pictures) -> dict[str, np.ndarray]:
    """The pictures of every simple means for one task."""
    images, pixels = held.images, np.eye(SIDE * SIDE)
    if task == "hole":
        known = pixels[~HOLE.ravel()]
        means = np.stack([train.images[train.labels == c].mean(0) for c in range(len(CLASS_NAMES))])
        of_all, in_class = nearest_fills(train, held)
        linear = linear_estimate(classes, held.labels, known, images.reshape(-1, SIDE * SIDE) @ known.T, 0.0)
        return {
            "true pictures": images,
            "known mean": _fill(images, images[:, ~HOLE].mean(1)[:, None, None, None]),
            "class mean": _fill(images, means[held.labels]),
            "nearest": of_all,
            "nearest in class": in_class,
            "linear in class": _fill(images, linear),
        }
    low = np.asarray(editing.block_mean(images, FACTOR))
    blocks = np.asarray(editing.block_mean(pixels.reshape(-1, SIDE, SIDE, 1), FACTOR)).reshape(SIDE * SIDE, -1).T
    return {
        "true pictures": images,
        "blocks": low.repeat(FACTOR, 1).repeat(FACTOR, 2),
        "bicubic": bicubic(low),
        "linear in class": linear_estimate(classes, held.labels, blocks, low.reshape(len(low), -1), 0.0),
    }


def measure(task: str, judge: Classifier, found: np.ndarray, held: Pictures) -> Figures:
    """The figures of one row of a task's table."""
    same = np.array_equal(found, held.images)
    figures = {"agreement": round(agreement(judge, found, held.labels), 4)}
    if task == "hole":
        figures["rms"] = round(error_in_hole(found, held.images), 4)
    elif not same:
        figures["psnr"] = round(psnr(found, held.images), 3)
    return figures


def restoration(
    task: str, model: Any, config: Any, simple: dict[str, np.ndarray], held: Pictures, judge: Classifier, args: Any
) -> tuple[dict[str, Figures], dict[str, Figures]]:
    """Two tables of one task: all pictures, and the first few with more paths and the mean of several variants."""
    measurement, edit_of = TASKS[task]
    few, key, every = held.first(args.few), jax.random.key(args.seed), paths(config)

    def run(path: str, pictures: Pictures, key: Any) -> np.ndarray:
        return restored(model, every[path], edit_of, measurement(pictures.images), pictures.labels, key)

    large = simple | {f"model, {path}": run(path, held, key) for path in ON_ALL}
    small = {name: found[: args.few] for name, found in large.items()}
    small |= {f"model, {path}": run(path, few, key) for path in every if path not in ON_ALL}
    variants = [run(ON_ALL[-1], few, jax.random.fold_in(key, i)) for i in range(args.variants)]
    small[f"mean of {args.variants}, {ON_ALL[-1]}"] = np.mean(variants, axis=0)
    return (
        {name: measure(task, judge, found, held) for name, found in large.items()},
        {name: measure(task, judge, found, few) for name, found in small.items()},
    )


def denoising(
    model: Any, config: Any, train: Pictures, classes: Gaussians, held: Pictures, std: float, seed: int
) -> Figures:
    """PSNR of the noisy pictures, of simple means, and of one call of the model, for one noise level."""
    noise = np.random.default_rng(seed).standard_normal(held.images.shape, np.float32)
    noisy, width = held.images + std * noise, best_width(train, std, seed + 1)
    flat, state = noisy.reshape(len(noisy), -1), cmjax.cm.init(config, sigmas=[std])
    found = {
        "noisy": noisy,
        "gaussian": filtered(noisy, width),
        "linear in class": linear_estimate(classes, held.labels, np.eye(SIDE * SIDE), flat, std),
        "model": in_batches(partial(denoise, model, state), len(noisy), noisy, held.labels),
    }
    figures = {name: round(psnr(pictures, held.images), 3) for name, pictures in found.items()}
    return figures | {"width": round(width, 1)}


def report(title: str, rows: dict[str, Figures]) -> None:
    columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    cells = [[name, *(f"{f[c]:.3f}" if c in f else "" for c in columns)] for name, f in rows.items()]
    print_table(title, ["", *columns], cells)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="fashion-mnist-cm", help="a name or folder that cmjax.load reads")
    options.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as .npz")
    options.add_argument("--classifier", type=Path, default=CLASSIFIER)
    options.add_argument("--num", type=int, default=1000, help="held-out pictures, a multiple of 10")
    options.add_argument("--few", type=int, default=200, help="pictures of the second table")
    options.add_argument("--variants", type=int, default=8)
    options.add_argument("--levels", type=float, nargs="+", default=[0.1, 0.3, 0.5, 1.0], help="of noise to remove")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args(arguments)

    here = machine()
    judge, (train, held) = read_classifier(args.classifier), read(args.data, args.num)
    classes, (model, config) = class_gaussians(train), cmjax.load(args.model)
    args.few = min(args.few, args.num)
    tables: dict[str, Any] = {}
    for task in TASKS:
        simple = simple_means(task, train, classes, held)
        large, small = restoration(task, model, config, simple, held, judge, args)
        report(f"{task}: {args.num} held-out pictures", large)
        report(f"{task}: the first {args.few} of them", small)
        tables[task], tables[f"{task}, few"] = large, small
    tables["denoise"] = {
        f"{std:g}": denoising(model, config, train, classes, held, std, args.seed) for std in args.levels
    }
    report(f"denoise: {args.num} held-out pictures, PSNR by noise level", tables["denoise"])
    result = {"program": "editing_quality", "seed": args.seed, "num": args.num, "few": args.few, **tables}
    conclude(result, args.json, here)


if __name__ == "__main__":
    main()
