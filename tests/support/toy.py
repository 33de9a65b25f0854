"""The trainer's toy: a network of a few numbers, a few pictures, a run of fourteen steps."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import cmjax
from cmjax import training
from cmjax.models import from_nnx

CONFIG = cmjax.cm.CMConfig()
METHOD = training.EasyConsistencyTuning(stages=(6, 4, 4))
RECIPE = training.Recipe(method=METHOD, steps=14, batch_size=8, optimizer=training.Optimizer(warmup_steps=2))
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
LABELS = np.arange(20) % 3
SAMPLED = {name: kind for name, kind in training.METHODS.items() if kind is not training.Autoencoding}  # of a ModelFn


def network(params, x, t, cond, key=None, s=None):
    """Gain, bias, and a shift by class."""
    if cond is not None:
        x = x + params["class"][cond][:, None, None, None]
    return params["gain"] * x + params["bias"]


def model():
    """The network with its first weights."""
    params = {"gain": jnp.float32(0.1), "bias": jnp.zeros((4, 4, 1)), "class": jnp.zeros(3)}
    return jax.tree_util.Partial(network, params)


class Halves(nnx.Module):
    """An autoencoder of a few numbers: latents have half the sides of pictures."""

    def __init__(self):
        self.gain, self.bias = nnx.Param(jnp.float32(0.5)), nnx.Param(jnp.zeros((4, 4, 1)))

    def encode(self, x):
        mean = self.gain * x[:, ::2, ::2]
        return mean, jnp.full_like(mean, -4.0) + self.gain

    def decode(self, z):
        return z.repeat(2, 1).repeat(2, 2) + self.bias


def autoencoder():
    """The autoencoder as a network."""
    return from_nnx(Halves())


def bits(tree):
    """A tree's leaves, bit for bit."""

    def raw(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return [np.asarray(raw(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]
