"""The scales: how good are a model's Fashion-MNIST samples, each figure beside the value real images get.

Run ``python benchmarks/sample_quality.py --model FOLDER --data fashion_mnist.npz`` for 1,000 samples in 1, 2 and 4
steps of a model that `cmjax.load` reads, or ``--samples FILE.npz`` (``images`` u8 or float in [-1, 1], ``labels``) for
pictures from anywhere. From Python, with this folder on the path::

    reference = sample_quality.make_reference("fashion_mnist.npz")
    report = sample_quality.measure(images, labels, reference)  # {"agreement": {"samples": ..., "real": ...}, ...}

The test set is cut in two by class. Half A is *the reference*; half B gives *real candidates*: as many of each class
as there are samples, measured exactly as the samples are, so every figure has its real-to-real value.

=============  ====================================================================================================
agreement      Share of images in which the classifier sees the class that was asked for (also class by class).
sharpness      Mean |Laplacian| (four neighbours, interior pixels, images in [-1, 1]) over that of half A. Blur lowers
               it; noise raises it above 1.
diversity      Mean over classes of the mean over pixels of the standard deviation over the images of the class, over
               the same figure for half A. Blurred class means have little.
frechet        |m - m_A|^2 + tr(C + C_A - 2 (C C_A)^(1/2)) in the classifier's 128 features.
precision      Share of candidates inside the manifold of half A: a union of balls, one at each image, each reaching to
               its k-th neighbour, k = 3.
recall         Share of half A inside the manifold of the candidates. Both take as many images of half A as there are
               candidates.
=============  ====================================================================================================

References: Heusel et al. 2017 (Frechet distance), eq. 6; Kynkaanniemi et al. 2019 (precision and recall), eqs. 1 to 3.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import conclude, machine, target
from fashion_mnist_classifier import CLASS_NAMES, classify, to_unit_range

from cmjax.evaluation import CLASSIFIER, Classifier, Moments, frechet_distance, precision_recall, read_classifier

__all__ = ["Reference", "draw_samples", "main", "make_reference", "measure"]

NEIGHBOURS = 3


@dataclass(frozen=True)
class Half:
    """One set of images with all that is measured in them: images f32[N, 28, 28, 1], features f32[N, 128]."""

    images: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    guesses: np.ndarray

    def pick(self, index: np.ndarray) -> Half:
        return Half(self.images[index], self.labels[index], self.features[index], self.guesses[index])


@dataclass(frozen=True)
class Reference:
    """The judge and the two halves of the real test set, made once by `make_reference`."""

    classifier: Classifier
    half_a: Half
    half_b: Half


def _half(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> Half:
    features, logits = classify(classifier, images)
    return Half(to_unit_range(images), np.asarray(labels).astype(np.int64), features, logits.argmax(-1))


def make_reference(data: str | Path, classifier: str | Path = CLASSIFIER) -> Reference:
    """Read the test set and the classifier and measure both halves of the test set; a few seconds."""
    with np.load(data) as file:
        images, labels = file["test_images"], file["test_labels"]
    model = read_classifier(classifier)
    members = [np.flatnonzero(labels == c) for c in range(len(CLASS_NAMES))]
    a = np.concatenate([m[: len(m) // 2] for m in members])
    b = np.concatenate([m[len(m) // 2 :] for m in members])
    return Reference(model, _half(model, images[a], labels[a]), _half(model, images[b], labels[b]))


def _like(half: Half, labels: np.ndarray) -> Half:
    """The first images of the half, as many of each class as `labels` has (or all there are)."""
    index = [np.flatnonzero(half.labels == c)[: int((labels == c).sum())] for c in range(len(CLASS_NAMES))]
    return half.pick(np.concatenate(index))


def _sharpness(images: np.ndarray) -> float:
    x = images[..., 0].astype(np.float64)
    centre = x[:, 1:-1, 1:-1]
    neighbours = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return float(np.abs(neighbours - 4 * centre).mean())


def _diversity(half: Half) -> dict[int, float]:
    """Class -> mean over pixels of standard deviation over that class's images (for classes of two or more)."""
    groups = {int(c): half.images[half.labels == c].astype(np.float64) for c in np.unique(half.labels)}
    return {c: float(group.std(axis=0).mean()) for c, group in groups.items() if len(group) > 1}


def _moments(half: Half) -> Moments:
    return Moments.none(half.features.shape[1]).update(half.features)


def _figures(candidates: Half, reference: Reference) -> dict[str, Any]:
    a = reference.half_a
    same = _like(a, candidates.labels)
    spread, spread_a = _diversity(candidates), _diversity(a)
    classes = sorted(spread)
    by_class = {}
    for c in np.unique(candidates.labels):
        mine = candidates.labels == c
        by_class[CLASS_NAMES[c]] = {
            "agreement": float((candidates.guesses[mine] == c).mean()),
            "sharpness": _sharpness(candidates.images[mine]) / _sharpness(a.images[a.labels == c]),
            "diversity": spread.get(int(c), float("nan")) / spread_a[int(c)],
        }
    return {
        "agreement": float((candidates.guesses == candidates.labels).mean()),
        "sharpness": _sharpness(candidates.images) / _sharpness(same.images),
        "diversity": float(np.mean([spread[c] for c in classes]) / np.mean([spread_a[c] for c in classes])),
        "frechet": frechet_distance(_moments(candidates), _moments(a)),
        **precision_recall(same.features, candidates.features, k=NEIGHBOURS)._asdict(),
        "by_class": by_class,
    }


def measure(images: np.ndarray, labels: np.ndarray, reference: Reference) -> dict[str, Any]:
    """Measure images against real ones.

    Args:
        images: u8[N, 28, 28(, 1)] in 0 ... 255, or floating in [-1, 1]. Non-finite pixels are refused.
        labels: the class that was asked for, 0 ... 9, i[N].
        reference: what `make_reference` returned.

    Returns:
        For each figure of the module's table ``{"samples": value, "real": value}``; ``by_class`` holds agreement,
        sharpness and diversity of every class in the same way; ``worst_class`` has the lowest agreement.

    Raises:
        ValueError: when lengths differ, a label is unknown, or a pixel is not finite.
    """
    images, labels = np.asarray(images), np.asarray(labels).astype(np.int64).reshape(-1)
    if len(images) != len(labels):
        raise ValueError(f"images and labels must have one length, got {len(images)} and {len(labels)}.")
    if labels.size <= NEIGHBOURS or labels.min() < 0 or labels.max() >= len(CLASS_NAMES):
        raise ValueError(f"labels must be more than {NEIGHBOURS} numbers in 0 ... 9, got {np.unique(labels)}.")
    if not np.isfinite(images).all():
        raise ValueError("images must be finite; the samples hold NaN or infinity.")
    samples = _figures(_half(reference.classifier, images, labels), reference)
    real = _figures(_like(reference.half_b, labels), reference)
    report: dict[str, Any] = {"count": len(images)}
    for name in ("agreement", "sharpness", "diversity", "frechet", "precision", "recall"):
        report[name] = {"samples": round(samples[name], 4), "real": round(real[name], 4)}
    report["by_class"] = {
        c: {
            name: {"samples": round(value, 4), "real": round(real["by_class"][c][name], 4)}
            for name, value in figures.items()
        }
        for c, figures in samples["by_class"].items()
    }
    report["worst_class"] = min(samples["by_class"], key=lambda c: samples["by_class"][c]["agreement"])
    return report


def draw_samples(
    model: Any, config: Any, num_steps: int, *, count: int, seed: int = 0, batch: int = 100, sigmas: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images in `num_steps` steps, classes in turn, one key per image; returns (f32[N, ...], i64[N])."""
    import jax

    import cmjax

    generate = jax.jit(cmjax.generate, static_argnames="shape")
    state = cmjax.cm.init(config, sigmas=sigmas) if sigmas else cmjax.cm.init(config, num_steps=num_steps)
    total = count + -count % batch
    labels = np.arange(total) % len(CLASS_NAMES)
    keys = jax.random.split(jax.random.key(seed), total)
    parts = []
    for i in range(0, total, batch):
        cond = labels[i : i + batch].astype(np.int32)
        parts.append(np.asarray(generate(model, state, keys[i : i + batch], shape=(batch, 28, 28, 1), cond=cond)))
    return np.concatenate(parts)[:count].astype(np.float32), labels[:count]


def _table(reports: dict[str, dict[str, Any]]) -> str:
    figures = ("agreement", "sharpness", "diversity", "frechet", "precision", "recall")
    lines = [f"{'':12s}" + "".join(f"{name:>18s}" for name in figures), ""]
    for title, report in reports.items():
        cells = [f"{report[name]['samples']:.3f} ({report[name]['real']:.3f})" for name in figures]
        lines.append(f"{title:12s}" + "".join(f"{cell:>18s}" for cell in cells))
    lines.append("\nIn brackets: real images measured in the same way.")
    for figure in ("agreement", "sharpness", "diversity"):
        lines.append(f"\n{figure} by class\n{'':12s}" + "".join(f"{name[:9]:>11s}" for name in CLASS_NAMES))
        for title, report in reports.items():
            by = report["by_class"]
            cells = [f"{by[c][figure]['samples']:11.3f}" if c in by else f"{'-':>11s}" for c in CLASS_NAMES]
            lines.append(f"{title:12s}" + "".join(cells))
    return "\n".join(lines)


def _verdicts(reports: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the embedded model has to reach: agreement in one and two steps, sharpness and diversity in both."""
    limits = {
        "1 step": {"agreement": 0.80, "sharpness": 0.80, "diversity": 0.85},
        "2 steps": {"agreement": 0.85, "sharpness": 0.80, "diversity": 0.85},
    }
    return [
        target(reports[steps][figure]["samples"], limit, f"{figure}, {steps}", at_least=True)
        for steps, figures in limits.items()
        if steps in reports
        for figure, limit in figures.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a folder or a name that cmjax.load reads")
    source.add_argument("--samples", type=Path, help=".npz with images and labels")
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as .npz (its test set is used)")
    parser.add_argument("--classifier", type=Path, default=CLASSIFIER)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sigmas", type=float, nargs="+", help="one path by its noise levels, instead of --steps")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the report here")
    args = parser.parse_args(arguments)

    here = machine()
    reference = make_reference(args.data, args.classifier)
    reports: dict[str, dict[str, Any]] = {}
    if args.samples:
        with np.load(args.samples) as file:
            reports["samples"] = measure(file["images"], file["labels"], reference)
    else:
        import cmjax

        model, config = cmjax.load(args.model)
        for n in [len(args.sigmas)] if args.sigmas else args.steps:
            images, labels = draw_samples(model, config, n, count=args.num, seed=args.seed, sigmas=args.sigmas)
            reports[f"{n} step{'s' * (n > 1)}"] = measure(images, labels, reference)
    accuracy = np.concatenate([h.guesses == h.labels for h in (reference.half_a, reference.half_b)]).mean()
    result = {
        "program": "sample_quality",
        "classifier_test_accuracy": round(float(accuracy), 4),
        "seed": args.seed,
        "sigmas": args.sigmas,
        "reports": reports,
        "targets": _verdicts(reports),
    }
    print(_table(reports))
    print(f"\nThe classifier's accuracy on the whole test set: {accuracy:.4f}")
    conclude(result, args.json, here)


if __name__ == "__main__":
    main()
