"""The names and shapes of the original repository's files, against a list written by hand."""

import jax
import numpy as np
import pytest
import torchfiles
from full_size import NETWORKS, original_tensors
from originals import BLOCKS, CONFIG, all_layers, tensors

import cmjax
from cmjax.io import load_original
from cmjax.io.single_files.consistency_models import network_config, rename
from cmjax.io.single_files.published import PUBLISHED, published
from cmjax.io.weights import file_tensors


def test_every_tensor_gets_the_name_of_the_list():
    there, here = tensors(), rename(tensors(), CONFIG)
    for theirs, (ours, _) in all_layers().items():
        for kind in ("weight", "bias"):
            value = there[f"{theirs}.{kind}"]
            if ours is None:
                module = BLOCKS[theirs.removesuffix(".qkv")][0]
                for i, part in enumerate("qkv"):
                    third = value.reshape(3, 64, -1)[i].reshape((64, 64) if kind == "weight" else (64,))
                    np.testing.assert_array_equal(here.pop(f"{module}.to_{part}.{kind}"), third)
            else:
                value = value[:, :, 0, 0] if ours.endswith("to_out.0") and kind == "weight" else value
                np.testing.assert_array_equal(here.pop(f"{ours}.{kind}"), value)
    np.testing.assert_array_equal(here.pop("class_embedding.weight"), there["label_emb.weight"])
    assert not here
    back = original_tensors(rename(there, CONFIG), CONFIG)
    assert back.keys() == there.keys()
    assert all(np.array_equal(back[name], value) for name, value in there.items())


def test_the_network_is_read_off_the_shapes():
    assert network_config(tensors(), head_dim=16) == CONFIG
    assert network_config(tensors(), head_dim=16, sample_size=32).sample_size == 32
    plain = {name: value for name, value in tensors().items() if name != "label_emb.weight"}
    plain = {name: value[: len(value) // 2] if "emb_layers" in name else value for name, value in plain.items()}
    config = network_config(plain, head_dim=16)
    assert (config.num_class_embeds, config.resnet_time_scale_shift) == (None, "default")


class Shape:
    """An array without numbers."""

    def __init__(self, shape):
        self.shape, self.ndim = tuple(shape), len(shape)

    def __len__(self):
        return self.shape[0]


def original_shapes(channels, layers, attends, scale_shift, classes):
    """The shapes of the original network's tensors, made as it is built: block after block."""
    shapes, width = {}, 4 * channels[0]

    def put(name, *shape, bias=True):
        shapes[f"{name}.weight"] = Shape(shape)
        if bias:
            shapes[f"{name}.bias"] = Shape(shape[:1])

    def put_block(name, c_in, c_out):
        put(f"{name}.in_layers.0", c_in)
        put(f"{name}.in_layers.2", c_out, c_in, 3, 3)
        put(f"{name}.emb_layers.1", c_out * (1 + scale_shift), width)
        put(f"{name}.out_layers.0", c_out)
        put(f"{name}.out_layers.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            put(f"{name}.skip_connection", c_out, c_in, 1, 1)

    def put_attention(name, c):
        put(f"{name}.norm", c)
        put(f"{name}.qkv", 3 * c, c, 1, 1)
        put(f"{name}.proj_out", c, c, 1, 1)

    put("time_embed.0", width, channels[0])
    put("time_embed.2", width, width)
    if classes:
        put("label_emb", classes, width, bias=False)
    put("input_blocks.0.0", channels[0], 3, 3, 3)
    c, skips, number = channels[0], [channels[0]], 1
    for level, c_out in enumerate(channels):
        for _ in range(layers):
            put_block(f"input_blocks.{number}.0", c, c_out)
            c = c_out
            if level >= attends:
                put_attention(f"input_blocks.{number}.1", c)
            skips.append(c)
            number += 1
        if level < len(channels) - 1:
            put_block(f"input_blocks.{number}.0", c, c)
            skips.append(c)
            number += 1
    put_block("middle_block.0", c, c)
    put_attention("middle_block.1", c)
    put_block("middle_block.2", c, c)
    number = 0
    for level in reversed(range(len(channels))):
        for j in range(layers + 1):
            put_block(f"output_blocks.{number}.0", c + skips.pop(), channels[level])
            c = channels[level]
            if level >= attends:
                put_attention(f"output_blocks.{number}.1", c)
            if j == layers and level:
                put_block(f"output_blocks.{number}.{2 if level >= attends else 1}", c, c)
            number += 1
    put("out.0", c)
    put("out.2", 3, c, 3, 3)
    return shapes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_networks_are_recognised(name):
    expected, parameters, number, _ = NETWORKS[name]
    shapes = original_shapes(
        expected.block_out_channels,
        expected.layers_per_block,
        sum(kind == "ResnetDownsampleBlock2D" for kind in expected.down_block_types),
        expected.resnet_time_scale_shift == "scale_shift",
        expected.num_class_embeds,
    )
    assert sum(int(np.prod(shape.shape)) for shape in shapes.values()) == parameters
    assert network_config(shapes) == expected
    # Every tensor has a place, and every place a tensor: as many as the published files have.
    zeros = {name: np.broadcast_to(np.float32(0), shape.shape) for name, shape in shapes.items()}
    renamed = rename(zeros, expected)
    assert len(renamed) == number
    assert sum(value.size for value in renamed.values()) == parameters


def test_a_file_is_loaded_as_a_model(tmp_path):
    path = torchfiles.write(tmp_path / "ema_0.9999_000100.pt", tensors())
    model, config = load_original(path, head_dim=16)
    assert config == cmjax.cm.CMConfig(num_train_timesteps=40)
    assert model.config == CONFIG
    np.testing.assert_array_equal(
        file_tensors(model.module)["mid_block.attentions.0.to_k.weight"],
        tensors()["middle_block.1.qkv.weight"][64:128, :, 0, 0],
    )
    assert load_original(path, head_dim=16, num_train_timesteps=18).config.num_train_timesteps == 18
    halves = {name: value.astype(np.float16) for name, value in tensors().items()}
    half = load_original(torchfiles.write(tmp_path / "ct_cat256.pt", halves), head_dim=16)
    assert half.config.num_train_timesteps == 151
    assert {leaf.dtype for leaf in jax.tree.leaves(half.model)} == {np.dtype("float32")}


def test_the_names_of_published_files():
    names = [name.removeprefix("openai/diffusers-") for name in PUBLISHED]
    assert len(names) == 9
    for name in names:
        assert published(f"somewhere/{name}.pt") == PUBLISHED[f"openai/diffusers-{name}"]
    assert published("edm_cat256_ema.pt") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("out.0.bias"), r"it lacks out.0.bias\."),
        (
            lambda t: (t.pop("out.0.bias"), t.pop("middle_block.1.norm.weight")),
            "lacks middle_block.1.norm.weight, out.0",
        ),
        (lambda t: t.update({"time_embed_s.0.weight": t["out.0.bias"]}), "holds time_embed_s.0.weight, which have no"),
        (lambda t: (t.pop("out.0.bias"), t.update(x=t["out.2.bias"])), "lacks out.0.bias; it holds x"),
        (lambda t: t.update({"input_blocks.2.0.op.weight": t["out.2.weight"]}), "resblock_updown=False"),
        (lambda t: t.update({"output_blocks.1.2.conv.weight": t["out.2.weight"]}), "resblock_updown=False"),
        (
            lambda t: [t.pop(k) for k in list(t) if k.startswith("input_blocks.2.")],
            "3 input_blocks and 4 output_blocks",
        ),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("output_blocks.1.2.")], "it holds input_blocks.3.1.norm"),
        (lambda t: t.pop("input_blocks.0.0.weight"), "no input_blocks.0.0.weight, so it is not a UNetModel"),
        (lambda t: t.pop("time_embed.0.weight"), "no tensor time_embed.0.weight"),
        (lambda t: t.update({"time_embed.0.weight": t["out.0.bias"]}), "a UNetModel's has 2 axes"),
        (lambda t: t.update({"time_embed.0.weight": t["time_embed.2.weight"]}), "the three must be equal"),
        (lambda t: t.update({"middle_block.1.qkv.weight": t["middle_block.1.qkv.weight"][..., 0]}), "guided-diffusion"),
        (lambda t: t.update({"middle_block.1.qkv.bias": t["out.0.bias"][:2]}), "three equal parts"),
        (
            lambda t: t.update({"middle_block.1.proj_out.weight": t["input_blocks.3.0.out_layers.3.weight"]}),
            "not a 1x1 convolution's",
        ),
        (lambda t: t.pop("input_blocks.3.0.skip_connection.bias"), "down_blocks.1.resnets.0.conv_shortcut.bias"),
        (lambda t: t.update({"out.0.bias": t["out.2.bias"]}), r"conv_norm_out.bias is \(3,\), not \(32,\)"),
        (lambda t: t.update({"out.0.bias": t["out.0.bias"].astype(np.int32)}), "holds int32, but weights are floats"),
        (
            lambda t: t.update({k: np.zeros((0, *v.shape[1:]), np.float32) for k, v in t.items()}),
            "must be equal|positive",
        ),
    ],
)
def test_files_that_are_not_such_a_network(change, message, tmp_path):
    changed = tensors()
    change(changed)
    with pytest.raises(ValueError, match=message) as caught:
        load_original(torchfiles.write(tmp_path / "m.pt", changed), head_dim=16)
    assert str(caught.value).startswith(f"{tmp_path / 'm.pt'}: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 128}, "head_dim = 128 does not divide the 64 channels"),
        ({"head_dim": 24}, "head_dim = 24 does not divide the 64 channels"),
        ({"head_dim": 128}, "head_dim of cmjax.io.load_original, --head-dim of cmjax convert"),
        ({"head_dim": 0}, "head_dim must be a whole number from 1 to 65536, got 0"),
        ({"head_dim": 16, "sample_size": 0}, "sample_size must be a whole number from 1 to 65536, got 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be a whole number from 1 to 1000000, got 0"),
        ({"num_train_timesteps": 10**6 + 1}, "num_train_timesteps must be .* 1000000, got 1000001"),
        ({"num_train_timesteps": 1 << 80}, "num_train_timesteps must be .* got one of more than 64 bits"),
        ({"num_train_timesteps": 10**5000}, "num_train_timesteps must be .* got one of more than 64 bits"),
    ],
)
def test_arguments_that_do_not_fit(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_original(torchfiles.write(tmp_path / "m.pt", tensors()), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": "64"}, "head_dim must be a whole number, got '64'"),
        ({"head_dim": None}, "head_dim must be a whole number, got None"),
        ({"head_dim": True}, "head_dim must be a whole number, got True"),
        ({"num_train_timesteps": "40"}, "num_train_timesteps must be a whole number, got '40'"),
        ({"num_train_timesteps": 1.5}, "num_train_timesteps must be a whole number, got 1.5"),
        ({"sample_size": (64, 64)}, r"sample_size must be a whole number, got \(64, 64\)"),
        ({"dtype": "int8"}, "dtype must be a float dtype"),
        ({"param_dtype": None}, "param_dtype must be a float dtype"),
        ({"path": None}, "path must be the path of a file, got a NoneType"),
    ],
)
def test_arguments_of_other_types(options, message):
    with pytest.raises(TypeError, match=message):
        load_original(**{"path": "nowhere.pt", **options})


def test_dtypes_and_places_are_as_for_load(tmp_path):
    path = torchfiles.write(tmp_path / "m.pt", tensors())
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    asked = {"dtype": "bfloat16", "param_dtype": "float16", "sharding": sharding}
    model, _ = load_original(path, head_dim=16, **asked)
    assert model.module.dtype == np.dtype("bfloat16")
    assert {(leaf.dtype.name, leaf.ndim > 1) for leaf in jax.tree.leaves(model)} == {
        ("float16", True),
        ("float32", False),
    }
    assert all(leaf.committed for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_weights_in_diffusers_names_need_their_folder(name, tmp_path):
    held = {"class_embedding.weight": np.zeros((2, 2), np.float32), "conv_in.weight": np.zeros(3, np.float32)}
    write = torchfiles.write if name == "m.pt" else lambda path, value: cmjax.io.write_safetensors(value, path)
    write(tmp_path / name, held)
    with pytest.raises(ValueError, match=r"m\..*: tensor conv_in.weight has diffusers' name.*give its folder"):
        load_original(tmp_path / name)
