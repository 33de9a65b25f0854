"""The trainer's toy: a network of a few numbers, a few pictures, a run of fourteen steps."""

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax import training

CONFIG = cmjax.cm.CMConfig()
METHOD = training.EasyConsistencyTuning(stages=(6, 4, 4))
RECIPE = training.Recipe(method=METHOD, steps=14, batch_size=8, optimizer=training.Optimizer(warmup_steps=2))
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
LABELS = np.arange(20) % 3


def network(params, x, t, cond, key=None):
    """Gain, bias, and a shift by class."""
    if cond is not None:
        x = x + params["class"][cond][:, None, None, None]
    return params["gain"] * x + params["bias"]


def model():
    """The network with its first weights."""
    params = {"gain": jnp.float32(0.1), "bias": jnp.zeros((4, 4, 1)), "class": jnp.zeros(3)}
    return jax.tree_util.Partial(network, params)


def bits(tree):
    """A tree's leaves, bit for bit."""

    def raw(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return [np.asarray(raw(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]
