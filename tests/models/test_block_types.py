"""Laws of the skip and K blocks, without a reference: sizes, gradients, dtypes, and what the small picture does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unets
from flax import nnx
from shapes import shaped

from cmjax.models import UNet, from_nnx
from cmjax.models.layers.resample import fir_double

SKIP = {
    "in_channels": 3,
    "block_out_channels": (8, 16),
    "down_block_types": ("SkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D"),
    "mid_block_type": None,
    "norm_num_groups": None,
    "num_class_embeds": None,
}
ATTN_SKIP = SKIP | {
    "block_out_channels": (32,),
    "down_block_types": ("AttnSkipDownBlock2D",),
    "up_block_types": ("AttnSkipUpBlock2D",),
}
K = SKIP | {
    "block_out_channels": (64, 32),
    "down_block_types": ("KDownBlock2D", "KDownBlock2D"),
    "up_block_types": ("KUpBlock2D", "KUpBlock2D"),
}
KINDS = {"skip": SKIP, "skip with attention": ATTN_SKIP, "K": K}


@functools.cache
def network(kind, dtype=jnp.float32):
    return unets.network(dtype, **KINDS[kind])


def inputs(batch=2):
    x, t, _ = unets.inputs(batch=batch, channels=3)
    return x, t


def count(**options):
    abstract = shaped(lambda rngs: UNet(unets.config(**options), rngs=rngs))
    return sum(leaf.size for leaf in jax.tree.leaves(from_nnx(abstract)))


def conv(a, b, size=3):
    return a * b * size**2 + b


def residual(a, b, emb, shortcut=None):
    shortcut = a != b if shortcut is None else shortcut
    return 2 * a + conv(a, b) + (emb + 1) * b + 2 * b + conv(b, b) + (conv(a, b, 1) if shortcut else 0)


def ends(a, emb):
    """What every network has: the first and the last convolution, the last norm, and the embedding of the time."""
    return conv(3, a) + conv(a, 3) + 2 * a + (a + 1) * emb + (emb + 1) * emb


def test_skip_blocks_have_the_parameters_of_the_formula():
    a, b, emb = 8, 16, 32
    down = residual(a, a, emb) + residual(a, a, emb, shortcut=True) + conv(3, a, 1) + residual(a, b, emb)
    up = residual(2 * b, b, emb) + residual(b + a, b, emb) + residual(b, b, emb, shortcut=True) + 2 * b + conv(b, 3)
    up += residual(b + a, a, emb) + residual(2 * a, a, emb)
    assert count(**SKIP) == ends(a, emb) + down + up


def test_an_attention_on_every_block_down_and_one_on_the_way_up():
    plain = ATTN_SKIP | {"down_block_types": ("SkipDownBlock2D",), "up_block_types": ("SkipUpBlock2D",)}
    attention = 2 * 32 + 4 * 33 * 32
    for layers in (1, 2):
        extra = count(**ATTN_SKIP, layers_per_block=layers) - count(**plain, layers_per_block=layers)
        assert extra == (layers + 1) * attention


def test_k_blocks_have_the_parameters_of_the_formula():
    a, b, emb = 64, 32, 256

    def residual(a, b):  # each norm's scale and shift come from the time; the shortcut has no bias
        return 2 * (emb + 1) * (a + b) + conv(a, b) + conv(b, b) + (a * b if a != b else 0)

    assert count(**K) == ends(a, emb) + residual(a, a) + residual(a, b) + residual(2 * b, a) + residual(2 * a, a)


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_finite_and_of_the_size_of_x(kind):
    x, t = inputs()
    out = jax.device_get(unets.run(network(kind), x, t))
    assert out.shape == x.shape and out.dtype == jnp.float32
    assert np.isfinite(out).all() and np.abs(out).max() > 0


def test_all_that_paints_the_output_begins_at_zero():
    @jax.jit  # returns the last layers alone, so that no other weight is drawn
    def last_layers():
        new = UNet(unets.config(**SKIP), rngs=nnx.Rngs(0))
        return [(last.kernel[...], last.bias[...]) for last in (new.conv_out, new.up_blocks[0].skip_conv)]

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(last_layers()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["skip", "K"])
def test_the_gradient_reaches_every_parameter_and_is_finite(kind):
    x, t = inputs(batch=1)
    grads = jax.jit(jax.grad(lambda n: jnp.square(n(x, t[:1])).mean()))(network(kind))
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_computes_close_to_float32(kind):
    x, t = inputs()
    half = unets.run(network(kind, jnp.bfloat16), x.astype(jnp.bfloat16), t)
    out, exact = jax.device_get((half, unets.run(network(kind), x, t)))
    assert out.dtype == jnp.bfloat16
    assert 0 < np.abs(out.astype(np.float32) - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("kind", ["skip with attention", "K"])
def test_vmap_over_single_images_equals_the_batch(kind):
    x, t = inputs()
    one = jax.jit(jax.vmap(lambda n, x, t: n(x[None], t)[0], in_axes=(None, 0, 0)))(network(kind), x, t)
    batch = unets.run(network(kind), x, t)
    np.testing.assert_allclose(one, batch, atol=1e-5 * float(jnp.abs(batch).max()))


def test_the_output_is_the_sum_of_what_the_levels_paint():
    """With the network's own end silenced, a two-level network paints one small picture, doubled."""
    silent = nnx.clone(network("skip").module)
    silent.conv_out.kernel[...] = jnp.zeros_like(silent.conv_out.kernel[...])
    silent.conv_out.bias[...] = jnp.zeros(3)
    silent.up_blocks[0].skip_conv.kernel[...] = jnp.zeros_like(silent.up_blocks[0].skip_conv.kernel[...])
    silent.up_blocks[0].skip_conv.bias[...] = jnp.array([1.0, 2.0, 3.0])
    x, t = inputs()
    small = jnp.ones((2, 4, 4, 1)) * jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(unets.run(from_nnx(silent), x, t), fir_double(small), atol=1e-6)
