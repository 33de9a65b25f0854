"""One eta per image: this room checks that a batch draws what each of its images draws alone, bit for bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import ddim, euler_ancestral, flow, tcd

CONFIG = tcd.TCDConfig()
N, B, SHAPE = 4, 3, (4, 4, 2)
KEYS = jax.random.split(jax.random.key(0), B)
PER_STEP = np.random.default_rng(0).uniform(size=(N, B))
ETAS = {"[1, B]": np.array([[0.0, 0.3, 1.0]]), "[n, B]": PER_STEP, "half": PER_STEP.astype(np.float16)}


def model(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return 0.3 * x + t.astype(jnp.float32) / 2000.0


walk = jax.jit(lambda state, keys: cmjax.generate(model, state, keys, (len(keys), *SHAPE)))
path_of = jax.jit(lambda state, x, keys: cmjax.trajectory(model, state, x, keys))


def planned(eta: Any) -> tcd.TCDState:
    return tcd.init(CONFIG, N, eta=eta)


def alone(eta: np.ndarray, change: Any, planned: Any = planned) -> tuple[Any, Any]:
    """The paths of single images, stacked where eta differs, and the axes to `vmap` over."""
    columns = [eta[0, i] if len(eta) == 1 else eta[:, i] for i in range(B)]
    paths = [change(planned(column)) for column in columns]
    names = ("landings", "landing_alphas", "landing_sigmas", "kept", "fresh", "etas")
    names = tuple(name for name in names if hasattr(paths[0], name))
    stacked = {name: jnp.stack([getattr(path, name) for path in paths]) for name in names}
    axes = jax.tree.map(lambda _: None, paths[0]).replace(**dict.fromkeys(names, 0))
    return paths[0].replace(**stacked), axes


@pytest.mark.parametrize("eta", ETAS.values(), ids=["1B", "nB", "half"])
@pytest.mark.parametrize(
    "change",
    [lambda state: state, lambda state: cmjax.skip(state, 2), lambda state: cmjax.pad(state, 6)],
    ids=["whole", "skip", "pad"],
)
def test_a_batch_is_vmap_over_single_images(eta: np.ndarray, change: Any) -> None:
    together = walk(change(planned(eta)), KEYS)
    state, axes = alone(eta, change)
    apart = jax.jit(jax.vmap(lambda state, key: walk(state, key[None])[0], in_axes=(axes, 0)))(state, KEYS)
    np.testing.assert_array_equal(together, apart)
    assert not np.array_equal(together, walk(change(planned(0.3)), KEYS))


@pytest.mark.parametrize("sampler", [ddim, euler_ancestral, flow])
@pytest.mark.parametrize(
    "eta", [ETAS["[n, B]"], pytest.param(ETAS["[1, B]"], marks=pytest.mark.slow)], ids=["nB", "1B"]
)
def test_so_it_is_for_every_sampler_with_an_eta(sampler: Any, eta: np.ndarray) -> None:
    """Without clipping, so that none of it is hidden."""
    config = ddim.Config(clip_sample=False) if sampler is ddim else sampler.Config()

    def planned(eta: Any) -> Any:
        return sampler.init(config, N, eta=eta)

    together = walk(planned(eta), KEYS)
    state, axes = alone(eta, lambda state: state, planned)
    apart = jax.jit(jax.vmap(lambda state, key: walk(state, key[None])[0], in_axes=(axes, 0)))(state, KEYS)
    np.testing.assert_array_equal(together, apart)
    rows = np.asarray(planned(eta).etas if sampler is flow else planned(eta).kept)
    assert rows.shape == (B, N) and len(np.unique(rows[:, 0])) == B
    traced = jax.jit(planned)(jnp.asarray(eta))
    for one, other in zip(jax.tree.leaves(traced), jax.tree.leaves(planned(eta)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="eta was given for 2 images, but the batch has 3"):
        jax.eval_shape(walk, planned([[0.0, 1.0]]), KEYS)


def test_the_same_eta_for_all_is_one_eta() -> None:
    np.testing.assert_array_equal(walk(planned(np.full((1, B), 0.3)), KEYS), walk(planned(0.3), KEYS))


def test_trajectory_and_traced_etas() -> None:
    state, eta = planned(PER_STEP), jnp.asarray(PER_STEP, jnp.float32)
    x = cmjax.prior(state, KEYS, (B, *SHAPE))
    together = path_of(state, x, KEYS)
    stacked, axes = alone(PER_STEP, lambda state: state)
    one = jax.vmap(lambda state, x, key: path_of(state, x[None], key[None]), in_axes=(axes, 0, 0), out_axes=1)
    apart = jax.jit(one)(stacked, x, KEYS)
    np.testing.assert_array_equal(together.x, apart.x[:, :, 0])
    np.testing.assert_array_equal(together.x0, apart.x0[:, :, 0])
    traced = jax.jit(planned)(eta)
    np.testing.assert_array_equal(traced.landings, planned(np.asarray(eta)).landings)
    np.testing.assert_allclose(traced.fresh, planned(np.asarray(eta)).fresh, atol=1e-6)
    missing = np.isnan(jax.jit(planned)(jnp.array([[0.3, 1.5]])).landing_alphas)
    np.testing.assert_array_equal(missing, [[False] * N, [True] * N])


def test_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eta was given for 2 images, but the batch has 3: give one for each image"):
        cmjax.generate(model, planned([[0.0, 1.0]]), KEYS, (B, *SHAPE))
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        planned([[0.0, 1.5]])
