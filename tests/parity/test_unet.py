"""The UNet against diffusers' `UNet2DModel`: the same weights, both ways, give the same pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax.io.weights import load_unet_weights, read_safetensors, unet_tensors, write_safetensors
from cmjax.models import UNet, UNetConfig, from_nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")

# Options that the random configurations may miss, each in a network of its own.
NAMED = {
    "published": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
        "num_class_embeds": 10,
    },
    "no norm before the mid attention": {"resnet_time_scale_shift": "scale_shift"},
    "fourier times": {"time_embedding_type": "fourier"},
    "learned times": {"time_embedding_type": "learned", "num_train_timesteps": 20},
    "classes as times": {"class_embed_type": "timestep"},
    "classes as embeddings": {"class_embed_type": "identity"},
    "no middle": {"mid_block_type": None},
    "heads that do not fill the channels": {"attention_head_dim": 7},
}


def random_options(seed):
    """A random, small, valid configuration."""
    rng = np.random.default_rng(seed)

    def choose(*values):
        return values[rng.integers(len(values))]

    levels, groups = choose(1, 2, 3), choose(2, 4)
    return {
        "in_channels": choose(1, 3),
        "out_channels": choose(1, 3, 6),
        "center_input_sample": choose(False, True),
        "time_embedding_dim": choose(None, 24),
        "freq_shift": choose(0, 1),
        "flip_sin_to_cos": choose(False, True),
        "down_block_types": tuple(choose(*DOWN) for _ in range(levels)),
        "up_block_types": tuple(choose(*UP) for _ in range(levels)),
        "block_out_channels": tuple(int(groups * choose(2, 3, 4)) for _ in range(levels)),
        "layers_per_block": choose(1, 2),
        "mid_block_scale_factor": choose(1, 2**0.5),
        "downsample_padding": choose(0, 1),
        "downsample_type": choose("conv", "resnet"),
        "upsample_type": choose("conv", "resnet"),
        "dropout": choose(0.0, 0.3),
        "act_fn": choose("silu", "swish", "mish", "gelu", "relu"),
        "attention_head_dim": choose(None, 2, 4),
        "norm_num_groups": groups,
        "attn_norm_num_groups": choose(None, 2),
        "norm_eps": choose(1e-6, 1e-5, 1e-3),
        "resnet_time_scale_shift": choose("default", "scale_shift"),
        "add_attention": choose(True, False),
        "num_class_embeds": choose(None, 7),
    }


def reference(options, seed):
    """A reference network with every weight random, biases and norms included; not trained, so no dropout."""
    torch.manual_seed(seed)
    network = diffusers.UNet2DModel(**options).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "time_proj.weight":
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def inputs(config, seed):
    """Pictures that are not square, times as consistency models are told them, and a condition."""
    rng = np.random.default_rng(seed)
    size = (4 * config.downsampling, 2 * config.downsampling)
    x = rng.normal(size=(2, *size, config.in_channels)).astype(np.float32)
    t = np.array([1095.5, -700.25], np.float32)
    if config.time_embedding_type == "fourier":
        t = np.abs(t)
    elif config.time_embedding_type == "learned":
        t = np.array([0, 19])
    cond = None
    if config.class_embed_type == "identity":
        cond = rng.normal(size=(2, config.time_width)).astype(np.float32)
    elif config.class_embed_type == "timestep":
        cond = np.array([3.0, 7.0], np.float32)
    elif config.num_class_embeds:
        cond = rng.integers(config.num_class_embeds, size=2)
    return x, t, cond


def run_reference(network, x, t, cond):
    cond = None if cond is None else torch.from_numpy(cond)
    with torch.no_grad():
        out = network(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t), class_labels=cond).sample
    return out.numpy().transpose(0, 2, 3, 1)


@jax.jit
def run(network, x, t, cond):
    return network(x, t, cond)


def distance(ours, theirs):
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def check(options, seed, folder):
    theirs = reference(options, seed)
    config = UNetConfig.from_dict(dict(theirs.config))
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    ours = load_unet_weights(nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0))), state)
    call = inputs(config, seed)
    assert distance(run(from_nnx(ours), *map(_array, call)), run_reference(theirs, *call)) <= 2e-5

    # And back: the reference reads our file, and gives the very picture that it gave with its own weights.
    write_safetensors(unet_tensors(ours), folder / "w.safetensors")
    again = diffusers.UNet2DModel(**options).eval()
    again.load_state_dict({k: torch.from_numpy(v) for k, v in read_safetensors(folder / "w.safetensors").items()})
    np.testing.assert_array_equal(run_reference(again, *call), run_reference(theirs, *call))


def _array(value):
    return None if value is None else jnp.asarray(value)


@pytest.mark.parametrize("name", NAMED)
def test_named_configurations(name, tmp_path):
    small = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    check(small | NAMED[name], 0, tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_random_configurations(seed, tmp_path):
    check(random_options(seed), seed, tmp_path)


def test_defaults_and_names_of_the_config_are_the_reference_s():
    import inspect

    theirs = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    ours = UNetConfig().to_dict()
    assert set(ours) - {"_class_name"} == set(theirs) - {"self"}
    for name, parameter in theirs.items():
        if name != "self":
            default = parameter.default
            assert ours[name] == (list(default) if isinstance(default, tuple) else default), name


def test_the_reference_reads_our_config(tmp_path):
    import json

    config = UNetConfig(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    write_safetensors(
        {
            k: np.zeros(v.shape, np.float32)
            for k, v in diffusers.UNet2DModel.from_config(config.to_dict()).state_dict().items()
        },
        tmp_path / "diffusion_pytorch_model.safetensors",
    )
    network = diffusers.UNet2DModel.from_pretrained(tmp_path)
    assert UNetConfig.from_dict(dict(network.config)) == config
