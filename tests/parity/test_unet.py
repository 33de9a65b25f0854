"""The UNet against diffusers' `UNet2DModel`: the same weights, both ways, give the same pictures."""

import dataclasses
import inspect
import json
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import shaped

from cmjax.io.safetensors_files import read_safetensors, write_safetensors
from cmjax.io.weights import file_tensors, load_weights
from cmjax.models import UNet, UNetConfig, from_nnx
from cmjax.models.unet2d.block_types import DOWN_BLOCKS, UP_BLOCKS
from cmjax.models.unet2d.config import ACTIVATIONS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PLAIN_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
PLAIN_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
SKIP_DOWN = ("SkipDownBlock2D", "AttnSkipDownBlock2D")
SKIP_UP = ("SkipUpBlock2D", "AttnSkipUpBlock2D")

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}

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
    "classes as embeddings": {"class_embed_type": "identity", "num_class_embeds": 3},
    "no middle": {"mid_block_type": None},
    "heads that do not fill the channels": {"attention_head_dim": 7},
    "ncsnpp": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "attention_head_dim": None,
        "norm_num_groups": None,
        "mid_block_scale_factor": 2**0.5,
        "time_embedding_type": "fourier",
    },
    "the first files": {
        "down_block_types": ("UNetResAttnDownBlock2D", "UNetResDownBlock2D"),
        "up_block_types": ("UNetResAttnUpBlock2D", "UNetResUpBlock2D"),
        "act_fn": "SiLU",
    },
}


def random_options(seed):
    """A random, small, valid configuration; of every four one has skip blocks and one has K blocks."""
    rng = np.random.default_rng(seed)

    def choose(*values):
        return values[rng.integers(len(values))]

    def several(num, *values):
        return tuple(choose(*values) for _ in range(num))

    levels, groups = choose(1, 2, 2, 3) if seed % 2 else choose(1, 2), choose(2, 4)
    options = {
        "in_channels": choose(1, 3),
        "out_channels": choose(1, 3, 6),
        "down_block_types": several(levels, *PLAIN_DOWN),
        "up_block_types": several(levels, *PLAIN_UP),
        "block_out_channels": tuple(groups * c for c in several(levels, 2, 3, 4)),
        "norm_num_groups": groups,
    }
    if seed % 4 == 2:
        options |= random_skip_blocks(choose, several, levels)
    elif seed % 4 == 3:
        options |= {
            "down_block_types": ("KDownBlock2D",) * levels,
            "up_block_types": ("KUpBlock2D",) * levels,
            "block_out_channels": several(levels, 32, 64),
            "norm_num_groups": choose(None, 8),
        }
    time, classes = choose("positional", "positional", "fourier", "learned"), choose(None, None, "timestep", "identity")
    return options | {
        "sample_size": choose(None, 16, (16, 8)),
        "center_input_sample": choose(False, True),
        "time_embedding_type": time,
        "num_train_timesteps": choose(20, 30) if time == "learned" else choose(None, 20),
        "time_embedding_dim": choose(None, 24),
        "freq_shift": choose(0, 1),
        "flip_sin_to_cos": choose(False, True),
        "layers_per_block": choose(1, 1, 2) if levels < 3 else 1,
        "mid_block_type": choose("UNetMidBlock2D", "UNetMidBlock2D", None),
        "mid_block_scale_factor": choose(1, 2**0.5),
        "downsample_padding": choose(0, 1),
        "downsample_type": choose("conv", "resnet", None),
        "upsample_type": choose("conv", "resnet", None),
        "dropout": choose(0.0, 0.3),
        "act_fn": choose("silu", "swish", "mish", "gelu", "relu"),
        "attention_head_dim": choose(None, 2, 4),
        "attn_norm_num_groups": choose(None, 2),
        "norm_eps": choose(1e-6, 1e-5, 1e-3),
        "resnet_time_scale_shift": choose("default", "scale_shift"),
        "add_attention": choose(True, False),
        "class_embed_type": classes,
        "num_class_embeds": choose(None, 7),
    }


def random_skip_blocks(choose, several, levels):
    """Skip blocks at the finest levels of each way, plain ones at the others, and channels that fit."""
    down, up = choose(*range(1, levels + 1)), choose(*range(1, levels + 1))
    kinds_down = several(down, *SKIP_DOWN) + several(levels - down, *PLAIN_DOWN)
    kinds_up = several(levels - up, *PLAIN_UP) + several(up, *SKIP_UP)
    attend = any(kind.startswith("AttnSkip") for kind in kinds_down + kinds_up)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": kinds_down,
        "up_block_types": kinds_up,
        "block_out_channels": (32,) * levels if attend else several(levels, 8, 12, 16),
        "norm_num_groups": None if down == up == levels else 4,
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


def inputs(config, seed, size=None):
    """Pictures that are not square, times as consistency models are told them, and a condition."""
    rng = np.random.default_rng(seed)
    size = size or (4 * config.downsampling, 2 * config.downsampling)
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
        cond = np.array([3, 7], np.int64 if config.time_embedding_type == "learned" else np.float32)
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
    ours = load_weights(shaped(lambda rngs: UNet(config, rngs=rngs)), state)
    call = inputs(config, seed)
    assert distance(run(from_nnx(ours), *map(_array, call)), run_reference(theirs, *call)) <= 2e-5

    # And back: the reference reads our file, and gives the very picture that it gave with its own weights.
    write_safetensors(file_tensors(ours), folder / "w.safetensors")
    again = diffusers.UNet2DModel(**options).eval()
    again.load_state_dict({k: torch.from_numpy(v) for k, v in read_safetensors(folder / "w.safetensors").items()})
    np.testing.assert_array_equal(run_reference(again, *call), run_reference(theirs, *call))


def _array(value):
    return None if value is None else jnp.asarray(value)


@pytest.mark.parametrize("name", NAMED)
def test_named_configurations(name, tmp_path):
    check(SMALL | NAMED[name], 0, tmp_path)


SEEDS = range(25)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_configurations(seed, tmp_path):
    check(random_options(seed), seed, tmp_path)


def acting(options):
    """The values of a configuration that its network computes with, as pairs of option and value."""
    config = UNetConfig(**options)
    values = {(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)}
    values |= {("down", kind) for kind in config.down_kinds} | {("up", kind) for kind in config.up_kinds}
    idle = set()
    if "AttnDownBlock2D" not in config.down_kinds[:-1]:
        idle.add("downsample_type")
    if "AttnUpBlock2D" not in config.up_kinds[:-1]:
        idle.add("upsample_type")
    if "DownBlock2D" not in config.down_kinds[:-1]:
        idle.add("downsample_padding")
    if config.mid_block_type is None:
        idle |= {"add_attention", "mid_block_scale_factor"}
    if config.mid_block_type is None or not config.add_attention:
        idle.add("attn_norm_num_groups")
    if not any(kind.startswith("Attn") for kind in config.down_kinds + config.up_kinds):
        idle.add("attention_head_dim")
    if config.time_embedding_type != "positional":
        idle |= {"freq_shift", "flip_sin_to_cos"}
    if config.mid_block_type is None and config.down_kinds[0] == "KDownBlock2D":
        idle.add("resnet_time_scale_shift")
    if config.class_embed_type is not None:
        idle.add("num_class_embeds")
    return {pair for pair in values if pair[0] not in idle}


CHOICES = {
    name: rule.holds.__self__  # of `one_of`: the values themselves
    for name, hint in typing.get_type_hints(UNetConfig, include_extras=True).items()
    for rule in getattr(hint, "__metadata__", ())
    if isinstance(getattr(rule.holds, "__self__", None), tuple) and name != "target_embed_type"  # which is ours alone
}


def test_together_they_try_every_value_of_every_option():
    tried = set().union(
        *(acting(SMALL | options) for options in NAMED.values()), *map(acting, map(random_options, SEEDS))
    )
    wanted = {(name, value) for name, values in CHOICES.items() for value in values}
    assert {"mid_block_type", "downsample_type", "downsample_padding", "class_embed_type"} <= CHOICES.keys()
    wanted |= {("down", kind) for kind in DOWN_BLOCKS} | {("up", kind) for kind in UP_BLOCKS}
    wanted |= {("act_fn", name) for name in (*ACTIVATIONS, "SiLU")}
    wanted |= {(name, value) for name in ("center_input_sample", "flip_sin_to_cos") for value in (False, True)}
    wanted |= {("add_attention", False), ("add_attention", True), ("dropout", 0.0), ("dropout", 0.3)}
    wanted |= {("freq_shift", 0), ("freq_shift", 1), ("layers_per_block", 1), ("layers_per_block", 2)}
    wanted |= {("sample_size", None), ("sample_size", 16), ("sample_size", (16, 8)), ("norm_eps", 1e-3)}
    optional = {
        "time_embedding_dim",
        "attention_head_dim",
        "norm_num_groups",
        "attn_norm_num_groups",
        "num_class_embeds",
    }
    wanted |= {(name, None) for name in optional}
    assert wanted - tried == set()
    assert {name for name, value in tried if value is not None} >= optional | {"num_train_timesteps"}
    assert {value for name, value in tried if name == "mid_block_scale_factor"} == {1, 2**0.5}


# The networks of two published repositories, at their full width; the options of the first files only.
PUBLISHED = {
    "google/ddpm-cifar10-32": {
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    },
    "google/ncsnpp-celebahq-256": {
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1.4142135623730951,
        "norm_eps": 1e-06,
        "norm_num_groups": None,
        "out_channels": 3,
        "sample_size": 256,
        "time_embedding_type": "fourier",
        "up_block_types": ["SkipUpBlock2D"] * 2 + ["AttnSkipUpBlock2D"] + ["SkipUpBlock2D"] * 4,
    },
}


def old_names(state):
    """The names that the first files have: of attention layers, and both names of the Fourier frequencies."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, value in state.items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed[name] = value
    return renamed | ({"time_proj.W": state["time_proj.weight"]} if "time_proj.weight" in state else {})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("google/ddpm-cifar10-32", 32), ("google/ncsnpp-celebahq-256", 64)])
def test_networks_as_published_with_weights_in_the_first_files_names(name, size):
    theirs = reference(PUBLISHED[name], 0)
    config = UNetConfig.from_dict(json.loads(json.dumps(PUBLISHED[name])))
    state = old_names({name: value.numpy() for name, value in theirs.state_dict().items()})
    ours = load_weights(shaped(lambda rngs: UNet(config, rngs=rngs)), state)
    call = inputs(config, 0, (size, size))
    assert distance(run(from_nnx(ours), *map(_array, call)), run_reference(theirs, *call)) <= 2e-5


def test_defaults_and_names_of_the_config_are_the_reference_s():
    theirs = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    ours = UNetConfig().to_dict()
    assert set(ours) - {"_class_name"} == set(theirs) - {"self"}
    for name, parameter in theirs.items():
        if name != "self":
            default = parameter.default
            assert ours[name] == (list(default) if isinstance(default, tuple) else default), name


def test_the_reference_reads_our_config(tmp_path):
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
