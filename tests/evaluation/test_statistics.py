"""Moments are those of NumPy however they are put together; the Frechet distance is that of Gaussians."""

import numpy as np
import pytest

from cmjax.evaluation.statistics import Gaussian, Moments, frechet_distance, read_statistics, write_statistics

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(200, 6)) @ RNG.normal(size=(6, 6)) + 3.0


def moments(vectors, *cuts):
    seen = Moments.none(vectors.shape[1])
    for part in np.split(vectors, cuts):
        seen = seen.update(part)
    return seen


def covariance(seed, d=6, rank=6):
    root = np.random.default_rng(seed).normal(size=(d, rank))
    return root @ root.T


def assert_same(a, b, tolerance=1e-13):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=tolerance)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=0, atol=tolerance * np.abs(b.scatter).max())


@pytest.mark.parametrize("cuts", [(), (1,), (0, 0, 100), (1, 2, 3, 150), range(1, 200)])
def test_moments_are_those_of_numpy_however_the_vectors_are_batched(cuts):
    seen = moments(VECTORS, *cuts)
    assert seen.count == 200
    np.testing.assert_allclose(seen.mean, VECTORS.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(seen.covariance, np.cov(VECTORS, rowvar=False), rtol=1e-12, atol=1e-12)


def test_merging_is_symmetric_and_associative():
    a, b, c = (moments(part) for part in np.split(VECTORS, (7, 90)))
    assert_same(a.merge(b).merge(c), moments(VECTORS))
    assert_same(c.merge(b.merge(a)), moments(VECTORS))
    assert_same(a.merge(Moments.none(6)), a)
    assert_same(Moments.none(6).merge(a), a)
    assert Moments.none(6).merge(Moments.none(6)).count == 0


def test_a_large_mean_costs_no_digits():
    """The sum of squares would lose all: 1e16 against 1."""
    far = RNG.integers(-3, 4, size=(300, 2)).astype(np.float64)
    seen = moments(far + 1e8, *range(10, 300, 10))
    np.testing.assert_allclose(seen.covariance, np.cov(far, rowvar=False), rtol=1e-6)


def test_float32_features_are_summed_in_float64():
    vectors = (VECTORS * 100).astype(np.float32)
    np.testing.assert_allclose(moments(vectors, 50).mean, vectors.astype(np.float64).mean(axis=0), rtol=1e-14)


def test_the_distance_of_gaussians_on_the_axes():
    p = Gaussian(np.array([1.0, 2.0, 0.0]), np.diag([1.0, 4.0, 0.0]))
    q = Gaussian(np.array([0.0, 2.0, 2.0]), np.diag([9.0, 4.0, 2.25]))
    assert frechet_distance(p, q) == pytest.approx(1 + 4 + (1 - 3) ** 2 + 0 + 1.5**2, abs=1e-12)


def test_the_distance_of_covariances_that_do_not_commute():
    """In two dimensions tr C^(1/2) = sqrt(tr C + 2 sqrt(det C))."""
    p, q = Gaussian(np.zeros(2), covariance(1, 2, 2)), Gaussian(np.zeros(2), covariance(2, 2, 2))
    product = p.covariance @ q.covariance
    shared = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(p.covariance) + np.trace(q.covariance) - 2 * shared
    assert frechet_distance(p, q) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(q, p) == pytest.approx(expected, rel=1e-12)


def test_it_is_the_trace_of_the_root_of_the_product():
    p, q = Gaussian(np.ones(6), covariance(3)), Gaussian(np.zeros(6), covariance(4))
    roots = np.sqrt(np.linalg.eigvals(p.covariance @ q.covariance).real).sum()
    expected = 6 + np.trace(p.covariance) + np.trace(q.covariance) - 2 * roots
    assert frechet_distance(p, q) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_equal_gaussians_are_at_no_distance_and_a_shift_is_its_squared_norm(rank):
    cov = covariance(5, rank=rank)
    shift = np.arange(6.0)
    p, q = Gaussian(np.zeros(6), cov), Gaussian(shift, cov)
    assert frechet_distance(p, p) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(p, q) == pytest.approx(shift @ shift, rel=1e-12)


def test_singular_covariances_in_spaces_of_their_own():
    """Nothing is shared, so the distance is the sum of the traces."""
    p, q = Gaussian(np.zeros(4), np.diag([3.0, 2, 0, 0])), Gaussian(np.zeros(4), np.diag([0, 0, 5.0, 0]))
    assert frechet_distance(p, q) == pytest.approx(10, abs=1e-12)


def test_it_does_not_change_under_rotation():
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    other = RNG.normal(size=(80, 6))
    turned = frechet_distance(moments(VECTORS @ rotation), moments(other @ rotation))
    assert turned == pytest.approx(frechet_distance(moments(VECTORS), moments(other)), rel=1e-12)


def test_fewer_vectors_than_dimensions():
    few, shift = RNG.normal(size=(5, 40)), np.full(40, 0.5)
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(moments(few), moments(few + shift)) == pytest.approx(10, rel=1e-12)


def test_the_distance_of_small_sets_is_too_large():
    """What the docstring warns of: sets of one distribution come nearer as about 1 / N."""
    draw = np.random.default_rng(1).normal
    near, far = (frechet_distance(moments(draw(size=(n, 16))), moments(draw(size=(n, 16)))) for n in (4000, 400))
    assert 5 < far / near < 20


def test_statistics_are_read_as_they_were_written(tmp_path):
    seen = moments(VECTORS)
    write_statistics(tmp_path / "stats.npz", seen)
    read = read_statistics(tmp_path / "stats.npz")
    np.testing.assert_array_equal(read.mean, seen.mean)
    np.testing.assert_allclose(read.covariance, seen.covariance, rtol=1e-15)
    assert frechet_distance(read, seen) == pytest.approx(0, abs=1e-12)
    with np.load(tmp_path / "stats.npz") as file:
        assert sorted(file) == ["count", "mu", "sigma"]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"batch must be f\[B, 6\], got f\[3, 5\]"):
        Moments.none(6).update(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="1 of 3 vectors are not"):
        Moments.none(2).update(np.array([[0, 0], [0, np.nan], [1, 1]]))
    with pytest.raises(ValueError, match="needs at least 2 vectors, got 1"):
        frechet_distance(moments(VECTORS[:1]), moments(VECTORS))
    with pytest.raises(ValueError, match="one dimension, got 6 and 2"):
        frechet_distance(moments(VECTORS), Gaussian(np.zeros(2), np.eye(2)))
    with pytest.raises(FileNotFoundError, match="there is no file of statistics"):
        read_statistics(tmp_path / "no.npz")
    for arrays, message in (
        ({"mu": np.zeros(2)}, "is not an .npz file with arrays mu"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"got \[2\] and \[3, 3\]"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "must be finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [0, 1]])}, "must be symmetric"),
        ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "is not an .npz file with arrays mu"),  # would be unpickled
    ):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            read_statistics(tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"is not an \.npz file"):
        read_statistics(tmp_path / "bad.npz")
