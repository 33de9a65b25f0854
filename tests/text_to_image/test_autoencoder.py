"""Between pictures and latents: the scale, the options that save memory, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax._random import image_keys, noise
from cmjax.models import from_nnx
from cmjax.models.autoencoder_kl import Autoencoder, AutoencoderConfig
from cmjax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from cmjax.text_to_image import LatentCoder, compute_dtype
from cmjax.text_to_image.tiles import in_tiles

KL = {
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latents_mean": (0.5, -1.0, 0.25, 2.0),
    "latents_std": (2.0, 0.5, 1.5, 3.0),
    "scaling_factor": 0.7,
}
TINY = {
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
    "encoder_block_out_channels": (4, 4),
    "decoder_block_out_channels": (4, 4),
    "scaling_factor": 0.7,
    "shift_factor": 0.3,
}


def shaken(module):
    """The module with random numbers for all weights, so that nothing is 0 and every picture has its own latents."""
    rng = np.random.default_rng(0)
    graphdef, params = nnx.split(nnx.eval_shape(module))
    return nnx.merge(graphdef, jax.tree.map(lambda p: jnp.asarray(0.3 * rng.normal(size=p.shape), jnp.float32), params))


@pytest.fixture(scope="module")
def kl():
    return LatentCoder(from_nnx(shaken(lambda: Autoencoder(AutoencoderConfig(**KL), rngs=nnx.Rngs(0)))))


@pytest.fixture(scope="module")
def tiny():
    return LatentCoder(from_nnx(shaken(lambda: AutoencoderTiny(AutoencoderTinyConfig(**TINY), rngs=nnx.Rngs(0)))))


def pictures():
    return np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def moments(kl, tiny):
    """What the networks' own `encode` returns for `pictures()`."""
    encode = jax.jit(lambda module, x: module.encode(x))
    return {
        name: jax.device_get(encode(coder.network.module, pictures())) for name, coder in (("kl", kl), ("tiny", tiny))
    }


def scaled(kind, z):
    """Latents as a diffusion network sees them, by hand."""
    if kind == "tiny":
        return (z - np.float32(0.3)) * np.float32(0.7)
    return (z - np.float32(KL["latents_mean"])) * np.float32(0.7) / np.float32(KL["latents_std"])


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_a_coder_is_its_network_and_the_scale(kind, moments, request):
    coder = request.getfixturevalue(kind)
    z = moments[kind][0]
    latents = jax.device_get(coder.encode(pictures()))
    assert latents.shape == (2, 4, 4, 4) and latents.dtype == np.float32
    np.testing.assert_allclose(latents, scaled(kind, z), rtol=1e-5, atol=1e-5)
    decoded = jax.device_get(coder.decode(scaled(kind, z)))
    assert decoded.shape == (2, 8, 8, 3) and decoded.dtype == np.float32
    by_hand = jax.device_get(jax.jit(lambda module, z: module.decode(z))(coder.network.module, z))
    np.testing.assert_allclose(decoded, by_hand, rtol=1e-4, atol=1e-5 * np.abs(decoded).max())
    assert (coder.downsampling, coder.latent_channels) == (2, 4)


@pytest.mark.parametrize("key", [jax.random.key(3), image_keys(0, range(2))], ids=["one", "one an image"])
def test_a_key_draws_latents(key, kl, moments):
    mean, log_variance = moments["kl"]
    z = mean + np.exp(0.5 * log_variance) * noise(key, mean.shape)
    np.testing.assert_allclose(kl.encode(pictures(), key), scaled("kl", z), rtol=1e-4, atol=1e-5)


def test_a_tiny_autoencoder_has_nothing_to_draw(tiny):
    np.testing.assert_array_equal(tiny.encode(pictures(), jax.random.key(3)), tiny.encode(pictures()))


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_a_batch_is_its_pictures_one_by_one(kind, request):
    coder = request.getfixturevalue(kind)
    single = coder.replace(one_by_one=True)
    latents = jax.device_get(coder.encode(pictures()))
    np.testing.assert_allclose(single.encode(pictures()), latents, rtol=1e-4, atol=1e-5)
    decoded = jax.device_get(coder.decode(latents))
    np.testing.assert_allclose(single.decode(latents), decoded, rtol=1e-4, atol=1e-5 * np.abs(decoded).max())


@pytest.mark.slow
def test_a_coder_crosses_jit_and_has_gradients(kl, tiny):
    def loss(coder, latents):
        return jnp.square(coder.decode(latents)).mean()

    latents = jax.device_get(kl.encode(pictures()))
    value, (gradient, _) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(kl, latents)
    np.testing.assert_allclose(value, np.square(kl.decode(latents)).mean(), rtol=1e-5)
    tiled = tiny.replace(tile=4, one_by_one=True)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(tiled, np.resize(latents, (2, 7, 4, 4)))
    for name, leaf in {**gradient.network.leaves(), **gradients[0].network.leaves(), "latents": gradients[1]}.items():
        of_encoder = name.startswith(("encoder", "quant_conv"))
        assert np.isfinite(leaf).all() and bool(np.any(leaf)) is not of_encoder, name


@pytest.mark.parametrize("shape", [(8, 14), (20, 17), (8, 8), (10, 3)])
def test_tiles_of_what_treats_pixels_alone_give_the_whole(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)

    def doubled(x):
        return {"y": jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2) * 3, "none": None}

    found = jax.device_get(jax.jit(lambda x: in_tiles(doubled, x, (8, 16)))(x))
    np.testing.assert_allclose(found["y"], np.repeat(np.repeat(3 * x, 2, axis=1), 2, axis=2), rtol=1e-6, atol=1e-6)
    halved = jax.jit(lambda x: in_tiles(lambda x: x[:, ::2, ::2], x, (16, 8)))(x)
    np.testing.assert_allclose(halved, x[:, ::2, ::2], rtol=1e-6, atol=1e-6)


def test_tiles_are_for_pictures_that_are_larger(tiny):
    z = jax.device_get(tiny.encode(pictures()))
    np.testing.assert_array_equal(tiny.replace(tile=4).decode(z), tiny.decode(z))
    tiled = jax.device_get(tiny.replace(tile=4).decode(np.concatenate([z, -z], axis=1)))
    assert tiled.shape == (2, 16, 8, 3)
    # The first tile stays as it is as far as the second one begins.
    np.testing.assert_allclose(tiled[:, :6], tiny.decode(z)[:, :6], rtol=1e-4, atol=1e-5)


def test_what_a_coder_cannot_code_is_refused(kl):
    with pytest.raises(ValueError, match=r"images must have shape \(batch, height, width, 3\)"):
        kl.encode(np.zeros((1, 8, 8, 4), np.float32))
    with pytest.raises(ValueError, match="images must have a height and width that are multiples of 2, got 8 x 7"):
        kl.encode(np.zeros((1, 8, 7, 3), np.float32))
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        kl.encode(pictures(), 3)
    with pytest.raises(ValueError, match="3 keys for a batch of 2"):
        kl.encode(pictures(), image_keys(0, range(3)))
    with pytest.raises(TypeError, match="images must be a float array"):
        kl.encode(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"latents must have shape \(batch, height, width, 4\)"):
        kl.decode(np.zeros((4, 4, 4), np.float32))
    with pytest.raises(ValueError, match="tile must be a multiple of 4"):
        kl.replace(tile=6).decode(np.zeros((1, 4, 4, 4), np.float32))
    with pytest.raises(ValueError, match="tile must be at least 4"):
        kl.replace(tile=0).decode(np.zeros((1, 4, 4, 4), np.float32))
    abstract = jax.eval_shape(lambda coder: coder, kl)
    with pytest.raises(TypeError, match="the network must have weights"):
        abstract.decode(np.zeros((1, 4, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("force_upcast", "dtype", "expected"),
    [(True, "float16", "float32"), (False, "float16", "float16"), (True, "bfloat16", "bfloat16")],
)
def test_what_overflows_float16_computes_in_float32(force_upcast, dtype, expected):
    config = AutoencoderConfig(**KL, force_upcast=force_upcast)
    for given in (dtype, jnp.dtype(dtype)):
        assert jnp.dtype(compute_dtype(config, given)) == jnp.dtype(expected)
