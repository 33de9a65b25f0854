"""Mean and covariance of features, batch by batch in float64, and the Frechet distance between two such pairs.

References:
  Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", eq. 6: the
  distance. Chan, Golub & LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
  eq. 2.1: moments of parts, put together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from cmjax._struct import Struct
from cmjax.io.images import write_npz

__all__ = ["Gaussian", "Moments", "frechet_distance", "read_statistics", "write_statistics"]


class Gaussian(Struct):
    """The statistics of a set that the Frechet distance uses: its mean f64[d] and its covariance f64[d, d]."""

    mean: np.ndarray
    covariance: np.ndarray


class Moments(Struct):
    """The number of vectors seen, their mean f64[d], and their scatter Σ (x - mean)(x - mean)ᵀ, f64[d, d].

    Deviations from the mean are summed, so nothing cancels, however far from zero the features lie. The batches and the
    order in which vectors come change only the rounding of float64.

    Example:
      >>> seen = Moments.none(2).update([[0.0, 0.0], [2.0, 0.0]]).update([[1.0, 3.0]])
      >>> seen.mean, seen.covariance
      (array([1., 1.]), array([[1., 0.], [0., 3.]]))
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def none(cls, dimension: int) -> Moments:
        """Start with no vectors of this dimension."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased estimate scatter / (count - 1), f64[d, d], as in `np.cov`; it needs at least two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 vectors, got {self.count}.")
        return self.scatter / (self.count - 1)

    def update(self, batch: np.ndarray) -> Moments:
        """Add vectors, f[B, d].

        Raises:
          ValueError: they have another dimension, or hold NaN or infinity.
        """
        batch = np.asarray(batch, np.float64)
        if batch.ndim != 2 or batch.shape[1] != len(self.mean):
            raise ValueError(f"batch must be f[B, {len(self.mean)}], got f{list(batch.shape)}.")
        if not np.isfinite(batch).all():
            raise ValueError(f"features must be finite, but {_not_finite(batch)} of {len(batch)} vectors are not.")
        if not len(batch):
            return self
        mean = batch.mean(axis=0)
        deviations = batch - mean
        return self.merge(Moments(len(batch), mean, deviations.T @ deviations))

    def merge(self, other: Moments) -> Moments:
        """Combine the moments of two sets.

        Raises:
          ValueError: their dimensions differ.
        """
        _check_dimensions(self, other)
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        between = np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), self.scatter + other.scatter + between)


class _MeanAndCovariance(Protocol):
    @property
    def mean(self) -> np.ndarray: ...
    @property
    def covariance(self) -> np.ndarray: ...


def frechet_distance(p: _MeanAndCovariance, q: _MeanAndCovariance) -> float:
    """Measure the distance between two sets, as Gaussians with means m and covariances C.

        |m_p - m_q|² + tr C_p + tr C_q - 2 tr (C_p C_q)^(1/2)

    The last trace is the sum of the singular values of C_p^(1/2) C_q^(1/2), with roots from the eigenvalues. This is
    symmetric, and as exact for a singular covariance as for any other, since no root is taken of a matrix that is not
    symmetric. It takes O(d³) time: a fraction of a second for 128 features, a minute on two cores for 2048.

    Warning: the distance is biased upward for small samples, by about 1 / N. Compare only distances of equal numbers of
    images, in the same extractor, to the same reference. With no more images than features, the covariance is singular
    and the distance says little. Take at least 10,000 images for Inception's 2048 features; published distances take
    50,000.

    Args:
      p: one set, as `Moments` or a `Gaussian`.
      q: the other set.

    Returns:
      The squared distance, at least 0, in squared units of the features. With Inception's features, it is the
      FID.

    Raises:
      ValueError: dimensions differ, or one set has fewer than 2 vectors.

    Example:
      >>> p, q = Gaussian(np.zeros(2), np.eye(2)), Gaussian(np.array([3.0, 0.0]), 4 * np.eye(2))
      >>> frechet_distance(p, q)  # 3² + 2 (1 - 2)²
      11.0
    """
    _check_dimensions(p, q)
    cov_p, cov_q = p.covariance, q.covariance
    (values_p, vectors_p), (values_q, vectors_q) = np.linalg.eigh(cov_p), np.linalg.eigh(cov_q)
    root_p, root_q = np.sqrt(np.maximum(values_p, 0)), np.sqrt(np.maximum(values_q, 0))
    shared = np.linalg.svd(root_p[:, None] * (vectors_p.T @ vectors_q) * root_q, compute_uv=False).sum()
    apart = np.square(p.mean - q.mean).sum()
    return max(0.0, float(apart + np.trace(cov_p) + np.trace(cov_q) - 2 * shared))


def read_statistics(path: str | Path) -> Gaussian:
    """Read a reference's mean and covariance: an .npz file with `mu` f[d] and `sigma` f[d, d].

    The common FID programs store the statistics of published data sets in this form. The file does not name the network
    of the features: a distance is meaningful only in that network, with its preprocessing.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, holds something else, or its numbers are not a mean and a covariance.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of statistics {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
    except Exception as error:  # zipfile, zlib and numpy have many words for one thing
        raise ValueError(f"{path} is not an .npz file with arrays mu f[d] and sigma f[d, d]: {error}.") from error
    if mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise ValueError(
            f"{path} must hold mu f[d] and sigma f[d, d], got {list(mean.shape)} and {list(covariance.shape)}."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"mu and sigma in {path} must be finite.")
    largest = np.abs(covariance).max(initial=0)
    if np.abs(covariance - covariance.T).max(initial=0) > 1e-5 * largest or np.diag(covariance).min(initial=0) < 0:
        raise ValueError(f"sigma in {path} is not a covariance: it must be symmetric, with no negative variance.")
    return Gaussian(mean, (covariance + covariance.T) / 2)


def write_statistics(path: str | Path, moments: Moments) -> None:
    """Write a mean and a covariance for `read_statistics` and the common FID programs, and `count` for information.

    Raises:
      OSError: it cannot be written.
      ValueError: fewer than 2 vectors have been seen.
    """
    write_npz(path, mu=moments.mean, sigma=moments.covariance, count=np.array(moments.count))


def _check_dimensions(p: Gaussian | Moments | _MeanAndCovariance, q: Gaussian | Moments | _MeanAndCovariance) -> None:
    if len(p.mean) != len(q.mean):
        raise ValueError(f"both must be of features of one dimension, got {len(p.mean)} and {len(q.mean)}.")


def _not_finite(batch: np.ndarray) -> int:
    return int((~np.isfinite(batch).all(axis=1)).sum())
