import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax.models.layers import (
    Attention,
    GroupNorm,
    Linear,
    PixelLinear,
    ResnetBlock,
    Upsample2D,
    attend,
    avg_pool,
    dropout,
    dropout_keys,
    positional,
    upsample_nearest,
)


def exact_group_norm(x, groups, eps):
    """In float64, as the paper writes it."""
    b, h, w, c = x.shape
    y = np.asarray(x, np.float64).reshape(b, h * w, groups, c // groups)
    mean, variance = y.mean((1, 3), keepdims=True), y.var((1, 3), keepdims=True)
    return ((y - mean) / np.sqrt(variance + eps)).reshape(x.shape)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_exact_however_large_the_mean(groups, offset):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 6)).astype(np.float32) + np.float32(offset)
    out = GroupNorm(6, groups, eps=1e-5)(jnp.asarray(x))
    rounding = 2e-6 * (1 + offset)  # of x itself: half a unit in the last place, over a standard deviation of 1
    np.testing.assert_allclose(out, exact_group_norm(x, groups, 1e-5), atol=rounding)


def test_group_norm_survives_a_first_row_unlike_the_rest():
    x = np.full((1, 8, 8, 4), 1e3, np.float32)
    x[:, 0] = 0.0
    out = np.asarray(GroupNorm(4, 2, eps=1e-6)(jnp.asarray(x)))
    np.testing.assert_allclose(out, exact_group_norm(x, 2, 1e-6), rtol=1e-5)


def test_group_norm_of_a_constant_is_its_bias():
    norm = GroupNorm(4, 2, eps=1e-6)
    norm.bias[...] = jnp.arange(4.0)
    np.testing.assert_array_equal(norm(jnp.full((1, 2, 2, 4), 7.0))[0, 0, 0], [0, 1, 2, 3])


def test_group_norm_gradient_is_that_of_the_plain_formula():
    def plain(x):
        y = x.reshape(2, 16, 2, 3)
        y = (y - y.mean((1, 3), keepdims=True)) / jnp.sqrt(y.var((1, 3), keepdims=True) + 1e-5)
        return jnp.sin(y.reshape(x.shape)).sum()

    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 6)) + 3
    ours = jax.grad(lambda x: jnp.sin(GroupNorm(6, 2, eps=1e-5)(x)).sum())(x)
    np.testing.assert_allclose(ours, jax.grad(plain)(x), atol=1e-5)


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="channels = 6 of a group norm must be a multiple of its groups = 4"):
        GroupNorm(6, 4, eps=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 1, 1), (1, 7, 3)])
def test_upsampling_equals_repeated_pixels_and_a_3x3_convolution(shape):
    layer = Upsample2D(5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.conv.bias[...] = jnp.arange(5.0)
    x = jax.random.normal(jax.random.key(1), (*shape, 5))
    np.testing.assert_allclose(layer(x), layer.conv(upsample_nearest(x)), atol=3e-6)


def test_resampling_by_hand():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(
        upsample_nearest(x)[0, :, :, 0], [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    )
    np.testing.assert_array_equal(avg_pool(x), [[[[1.5]]]])
    np.testing.assert_array_equal(avg_pool(upsample_nearest(x)), x)


def test_dropout_keeps_the_mean_and_zeroes_the_rate():
    y = dropout(jnp.ones((100, 1000)), 0.25, jax.random.key(0))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(float((y == 0).mean()) - 0.25) < 0.01  # 7 standard deviations


def test_dropout_keys_differ_and_are_none_without_a_key():
    keys = dropout_keys(jax.random.key(0), 0.1)
    first, second = next(keys), next(keys)
    assert (jax.random.key_data(first) != jax.random.key_data(second)).any()
    assert next(dropout_keys(None, 0.1)) is None
    assert next(dropout_keys(jax.random.key(0), 0.0)) is None


def test_positional_embedding_by_hand():
    t = np.array([-1553.65, 0.0, 0.5, 1095.5], np.float32)
    omega = 10000.0 ** (-np.arange(4) / (4 - 1))
    phase = t.astype(np.float64)[:, None] * omega
    wanted = np.concatenate([np.sin(phase), np.cos(phase), np.zeros((4, 1))], axis=1)
    got = positional(jnp.asarray(t), 9, flip_sin_to_cos=False, freq_shift=1)
    np.testing.assert_allclose(got, wanted, atol=2e-4)  # float32 holds a phase of 1553 to 1e-4
    swapped = positional(jnp.asarray(t), 8, flip_sin_to_cos=True, freq_shift=1)
    np.testing.assert_array_equal(swapped, np.concatenate([got[:, 4:8], got[:, :4]], axis=1))


def test_attention_to_a_context():
    layer = Attention(6, heads=2, head_dim=4, context_width=5, bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, context = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 6), (2, 7, 5)))
    q, k, v = x @ layer.to_q.kernel[...], context @ layer.to_k.kernel[...], context @ layer.to_v.kernel[...]
    heads = [attend(*(y[:, None, :, i : i + 4] for y in (q, k, v)))[:, 0] for i in (0, 4)]
    expected = layer.to_out[0](jnp.concatenate(heads, axis=-1))
    np.testing.assert_allclose(layer(x, context), expected, atol=1e-5)


def test_a_residual_block_may_be_told_no_time():
    block = ResnetBlock(4, 4, time_width=None, groups=2, eps=1e-6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 4)), jnp.float32)
    np.testing.assert_array_equal(block(x), x)  # a new one is the identity
    assert block.time_emb_proj is None


@pytest.mark.parametrize(("kind", "shape"), [(Linear, (3, 2)), (PixelLinear, (3, 2, 1, 1))])
def test_a_linear_layer_reads_a_convolution_of_one_pixel_and_writes_its_own_layout(kind, shape):
    stored, kernel = kind.layout["kernel"], np.arange(6.0).reshape(2, 3)
    written = stored.to_file(kernel)
    assert written.shape == stored.shape((2, 3)) == shape
    for value in (kernel.T, kernel.T[:, :, None, None]):
        assert stored.fits(value, (2, 3))
        np.testing.assert_array_equal(stored.from_file(value), kernel)
    assert not stored.fits(kernel.T[:, :, None], (2, 3)) and not stored.fits(kernel, (2, 3))
