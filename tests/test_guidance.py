"""Guidance: this room checks that a guided model is a model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cmjax
from cmjax.guidance import classifier_free, rescaled

X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 2), np.float32))
LABELS = jnp.array([1.0, 2.0, 3.0])
calls: list[Any] = []


def net(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    calls.append((x.shape, t.shape, jax.tree.map(jnp.shape, cond)))
    shift = sum(jax.tree.leaves(jax.tree.map(lambda c: c.reshape(c.shape[0], -1).mean(1), cond)), jnp.zeros(x.shape[0]))
    return 0.5 * x + shift.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)


MODEL = jax.tree_util.Partial(net)
T = jnp.float32(10.0)


def test_the_formula_in_one_doubled_batch() -> None:
    calls.clear()
    out = classifier_free(MODEL, 3.0, jnp.float32(0.0))(X, T, LABELS)
    assert calls == [((6, 4, 2), (), (6,))]
    np.testing.assert_allclose(out, 0.5 * X + 3.0 * LABELS[:, None, None], rtol=1e-6)  # 0 + 3 (c - 0)
    np.testing.assert_allclose(
        classifier_free(MODEL, 1.0, jnp.float32(0.0))(X, T, LABELS), MODEL(X, T, LABELS), rtol=1e-6
    )
    np.testing.assert_allclose(classifier_free(MODEL, 0.0, jnp.float32(0.0))(X, T, LABELS), 0.5 * X, rtol=1e-6)


def test_one_scale_per_image_and_one_timestep_per_image() -> None:
    calls.clear()
    scales = jnp.array([0.0, 1.0, 2.0])
    out = classifier_free(MODEL, scales, jnp.float32(0.0))(X, jnp.arange(3.0), LABELS)
    assert calls[0][1] == (6,)
    np.testing.assert_allclose(out, 0.5 * X + (scales * LABELS)[:, None, None], rtol=1e-6)


def test_cond_is_any_pytree_and_null_cond_is_of_one_image_or_of_all() -> None:
    cond = {"text": jnp.ones((3, 5, 2)), "pooled": LABELS}
    for null in (
        {"text": jnp.zeros((5, 2)), "pooled": 0.0},
        {"text": jnp.zeros((1, 5, 2)), "pooled": jnp.zeros(3)},
    ):
        out = classifier_free(MODEL, 2.0, null)(X, T, cond)
        np.testing.assert_allclose(out, 0.5 * X + 2.0 * (1 + LABELS)[:, None, None], rtol=1e-6)


def test_rescaled_keeps_the_contrast_of_each_image() -> None:
    stretch = jax.tree_util.Partial(lambda x, t, cond: x * cond[:, None, None])
    conditional = stretch(X, T, LABELS)
    out = rescaled(stretch, 4.0, jnp.float32(0.5), rescale=1.0)(X, T, LABELS)
    np.testing.assert_allclose(out.std((1, 2)), conditional.std((1, 2)), rtol=1e-5)
    plain = classifier_free(stretch, 4.0, jnp.float32(0.5))(X, T, LABELS)
    np.testing.assert_allclose(rescaled(stretch, 4.0, jnp.float32(0.5), rescale=0.0)(X, T, LABELS), plain, rtol=1e-6)
    half = rescaled(stretch, 4.0, jnp.float32(0.5), rescale=0.5)(X, T, LABELS)
    np.testing.assert_allclose(half, (plain + out) / 2, rtol=1e-5)


def test_the_scale_is_a_leaf_and_the_dtype_is_kept() -> None:
    traces = []

    @jax.jit
    def guided(model: Any, x: jax.Array) -> jax.Array:
        traces.append(1)
        return model(x, T, LABELS)

    outs = [guided(classifier_free(MODEL, w, jnp.float32(0.0)), X) for w in (1.0, 2.0, 7.5)]
    assert len(traces) == 1
    assert not np.array_equal(outs[0], outs[1])
    swept = jax.vmap(lambda w: classifier_free(MODEL, w, jnp.float32(0.0))(X, T, LABELS))(jnp.array([1.0, 2.0, 7.5]))
    np.testing.assert_allclose(swept, jnp.stack(outs), rtol=1e-6)
    assert classifier_free(MODEL, 2.0, jnp.float32(0.0))(X.astype(jnp.bfloat16), T, LABELS).dtype == jnp.bfloat16


def test_it_samples() -> None:
    state = cmjax.lcm.init(cmjax.lcm.LCMConfig(), num_steps=2)
    model = classifier_free(MODEL, 2.0, jnp.float32(0.0))
    images = jax.jit(cmjax.generate, static_argnames="shape")(model, state, jax.random.key(0), (3, 4, 2), LABELS)
    x = cmjax.generate(lambda x, t, c: MODEL(x, t, 2.0 * c), state, jax.random.key(0), (3, 4, 2), LABELS)
    np.testing.assert_allclose(images, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("null", "cond", "message"),
    [
        (jnp.zeros(()), None, "cond is None: guidance needs a condition"),
        ({"a": jnp.zeros(())}, LABELS, "null_cond must be a pytree like cond"),
        (jnp.zeros(()), LABELS[:2], "cond has an array of shape (2,) for a batch of 3"),
        (jnp.zeros((7,)), jnp.ones((3, 5)), "null_cond has shape (7,); it must be (5,) or (3, 5), as cond is."),
    ],
)
def test_conditions_that_do_not_fit(null: Any, cond: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        classifier_free(MODEL, 2.0, null)(X, T, cond)
    assert str(error.value).startswith(message)


def test_an_image_without_contrast_is_guided_as_it_is() -> None:
    flat = jax.tree_util.Partial(lambda x, t, cond: jnp.zeros_like(x) + cond[:, None, None])
    model = rescaled(flat, 2.0, jnp.float32(0.0), rescale=1.0)
    np.testing.assert_allclose(model(X, T, LABELS), jnp.broadcast_to(2.0 * LABELS[:, None, None], X.shape), rtol=1e-6)


@pytest.mark.parametrize("guide", [classifier_free, rescaled])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_gradients_are_finite(guide: Any, spread: float) -> None:
    model = jax.tree_util.Partial(lambda x, t, cond: spread * x + cond[:, None, None])

    def loss(x: jax.Array, scale: jax.Array) -> jax.Array:
        return guide(model, scale, jnp.float32(0.0))(x, T, LABELS).sum()

    assert all(bool(jnp.isfinite(g).all()) for g in jax.grad(loss, (0, 1))(X, jnp.float32(3.0)))


def test_a_sharded_batch_stays_where_it_is() -> None:
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((16, 4, 2)), NamedSharding(mesh, PartitionSpec("batch")))
    labels = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("batch")))
    elementwise = jax.tree_util.Partial(lambda x, t, cond: x * cond[:, None, None])
    model = classifier_free(elementwise, 3.0, jnp.float32(0.0))
    program = jax.jit(lambda model, x, t, cond: model(x, t, cond)).lower(model, x, T, labels).compile().as_text()
    moves = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    assert not [move for move in moves if move in (program or "")]
