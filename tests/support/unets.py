"""Small UNets with random weights, and what to call them with: for tests of networks and wrappers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from shapes import shaped

from cmjax.models import UNet, UNetConfig, from_nnx

# One level and nothing in the middle: the least that is a network, and compiles quickly.
SMALLEST = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("UpBlock2D",),
}


def config(**changes):
    options = {
        "in_channels": 2,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "num_class_embeds": 5,
    }
    return UNetConfig(**(options | changes))


@functools.cache
def without_numbers(unet_config, dtype=jnp.float32):
    """The network without its numbers, which takes longer than making numbers for it."""
    return from_nnx(shaped(lambda rngs: UNet(unet_config, rngs=rngs, dtype=dtype)))


def network(dtype=jnp.float32, **changes):
    """A network with no zeros among its weights."""
    rng = np.random.default_rng(1)  # NumPy's: jax.random compiles a program for every shape
    numbers = lambda p: jnp.asarray(0.2 * rng.normal(size=p.shape), p.dtype)  # noqa: E731
    return jax.tree.map(numbers, without_numbers(config(**changes), dtype))


@jax.jit
def run(network, x, t, cond=None, key=None):
    return network(x, t, cond, key=key)


def inputs(batch=3, size=8, channels=2):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(batch, size, size, channels)), jnp.float32)
    return x, jnp.asarray(500 * rng.normal(size=batch), jnp.float32), jnp.arange(batch) % 5
