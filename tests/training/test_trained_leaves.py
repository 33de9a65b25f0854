"""Not every leaf is a parameter: statistics, keys and counters ride along, and are the same bits after training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cmjax
from cmjax import training
from cmjax.models import combine, from_function, from_linen, from_nnx, partition

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1), np.uint8)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond=None):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))
        return nn.Dense(1)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(1, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, t, cond=None):
        return self.last(self.dropout(self.norm(self.first(x))))


def linen():
    return from_linen(Linen(), Linen().init(jax.random.key(0), jnp.ones((1, 2, 2, 1)), jnp.zeros(())))


def with_nnx():
    return from_nnx(Nnx(nnx.Rngs(0)))


def bits(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


@pytest.mark.parametrize(
    ("make", "accumulate"),
    [
        (linen, 1),
        (with_nnx, 2),
        pytest.param(linen, 2, marks=pytest.mark.slow),
        pytest.param(with_nnx, 1, marks=pytest.mark.slow),
    ],
)
def test_only_parameters_are_trained(make, accumulate, tmp_path):
    recipe = training.Recipe(steps=3, batch_size=4, accumulate=accumulate, method=training.Denoising())
    state = training.train(make(), cmjax.cm.CMConfig(), IMAGES, recipe=recipe, out=tmp_path, checkpoint_every=2)
    again = training.train(
        make(), cmjax.cm.CMConfig(), IMAGES, recipe=recipe, out=tmp_path, checkpoint_every=2, resume=True
    )
    before = make().leaves()
    for model in (state.model, state.ema, again.model):
        for name, leaf in model.leaves().items():
            is_parameter = name.split(".")[-1] in ("kernel", "bias", "scale")
            assert is_parameter == (not np.array_equal(bits(leaf), bits(before[name]))), name
    kept = {name for name in before if not name.endswith(("kernel", "bias", "scale"))}
    assert len(kept) >= 2 and any("mean" in name for name in kept)
    moments = jax.tree.leaves(state.opt_state)
    assert sum(leaf.shape == (3,) for leaf in moments) == 2 * 3  # both moments of two biases and a scale: no statistics


def test_the_caller_says_what_is_trained():
    variables = Linen().init(jax.random.key(0), jnp.ones((1, 2, 2, 1)), jnp.zeros(()))
    everything = from_linen(Linen(), variables, trained=("params", "batch_stats"))
    assert all(everything.is_trained) and sum(linen().is_trained) == len(everything.is_trained) - 2
    only = from_nnx(Nnx(nnx.Rngs(0)), trained=nnx.All(nnx.Param, nnx.PathContains("last")))
    assert sum(only.is_trained) == 2
    assert jax.tree.structure(partition(only)[0]) != jax.tree.structure(only)
    assert only._spec != with_nnx()._spec


def test_two_parts_make_the_model():
    network = with_nnx()
    trained, rest = partition(network)
    assert len(jax.tree.leaves(trained)) == sum(network.is_trained) == 6
    again = combine(trained, rest)
    assert jax.tree.structure(again) == jax.tree.structure(network)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(network), strict=True))
    assert "(Nnx, 16 parameters)" in repr(network)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="the model must have weights to train"):
        training.train(from_function(lambda x, t, cond: x), cmjax.cm.CMConfig(), IMAGES)


def test_labels_may_have_a_last_axis_of_length_1():
    recipe = training.Recipe(steps=2, batch_size=4, method=training.Denoising())
    model = from_function(lambda w, x, t, cond: w * x + cond[:, None, None, None], params=jnp.zeros(()))
    labels = np.arange(8)
    states = [
        training.train(model, cmjax.cm.CMConfig(), IMAGES, given, recipe=recipe) for given in (labels, labels[:, None])
    ]
    np.testing.assert_array_equal(*(jax.tree.leaves(state.model) for state in states))
