import functools
import resource

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import unets
from flax import nnx
from safetensors.numpy import load_file
from shapes import shaped

from cmjax.io.safetensors_files import read_metadata, read_safetensors, write_safetensors
from cmjax.io.weights import file_tensors, load_weights
from cmjax.models import UNet, from_nnx


@pytest.fixture(scope="module")
def module():
    return unets.network().module


@functools.cache
def abstract(**changes):
    return shaped(lambda rngs: UNet(unets.config(**changes), rngs=rngs))


def test_names_and_layouts_are_those_of_the_files(module):
    shapes = {name: value.shape for name, value in file_tensors(module).items()}
    assert shapes["conv_in.weight"] == (8, 2, 3, 3)
    assert shapes["conv_out.weight"] == (3, 8, 3, 3)
    assert shapes["time_embedding.linear_1.weight"] == (32, 8)
    assert shapes["class_embedding.weight"] == (5, 32)
    assert shapes["down_blocks.1.resnets.0.conv_shortcut.weight"] == (16, 8, 1, 1)
    assert shapes["down_blocks.0.downsamplers.0.conv.bias"] == (8,)
    assert shapes["down_blocks.1.attentions.0.group_norm.weight"] == (16,)
    assert shapes["up_blocks.0.upsamplers.0.conv.weight"] == (16, 16, 3, 3)
    assert shapes["mid_block.attentions.0.to_out.0.weight"] == (16, 16)
    assert shapes["up_blocks.1.resnets.1.time_emb_proj.weight"] == (8, 32)
    assert len(shapes) == len(jax.tree.leaves(nnx.state(module)))


def test_the_axes_are_turned_not_only_relabelled(module):
    tensors = file_tensors(module)
    kernel = module.conv_in.kernel[...]
    assert tensors["conv_in.weight"][5, 1, 0, 2] == kernel[0, 2, 1, 5]
    assert tensors["time_embedding.linear_1.weight"][7, 3] == module.time_embedding.linear_1.kernel[...][3, 7]


def test_there_and_back_through_a_file(module, tmp_path):
    write_safetensors(file_tensors(module), tmp_path / "w.safetensors")
    loaded = load_weights(abstract(), read_safetensors(tmp_path / "w.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(module))
    x, t, cond = unets.inputs(batch=1)
    np.testing.assert_array_equal(unets.run(from_nnx(loaded), x, t, cond), unets.run(from_nnx(module), x, t, cond))


def test_loading_copies(module):
    before = np.asarray(module.conv_in.kernel[...])
    twice = {name: 2 * value for name, value in file_tensors(module).items()}
    loaded = load_weights(module, twice)
    np.testing.assert_array_equal(module.conv_in.kernel[...], before)
    np.testing.assert_array_equal(loaded.conv_in.kernel[...], 2 * before)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_dtypes_become_float32(module, dtype, tmp_path):
    tensors = {name: value.astype(dtype) for name, value in file_tensors(module).items()}
    write_safetensors(tensors, tmp_path / "w.safetensors")
    loaded = load_weights(abstract(), read_safetensors(tmp_path / "w.safetensors"))
    assert loaded.conv_in.kernel.dtype == jnp.float32
    np.testing.assert_allclose(loaded.conv_in.kernel[...], module.conv_in.kernel[...], rtol=5e-3, atol=1e-6)


def test_the_file_says_that_its_layout_is_torch(module, tmp_path):
    from safetensors import safe_open

    write_safetensors(file_tensors(module), tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert load_file(tmp_path / "w.safetensors").keys() == file_tensors(module).keys()


def test_texts_of_the_header_are_in_order_and_kept(tmp_path):
    said = {name: f"of {name}: ü, “a”, \n\x01\x7f" for name in "gfbdeca"}
    write_safetensors({"w": np.arange(3.0)}, tmp_path / "w.safetensors", metadata=said)
    assert read_metadata(tmp_path / "w.safetensors") == {**said, "format": "pt"}
    assert load_file(tmp_path / "w.safetensors")["w"].tolist() == [0, 1, 2]
    header = (tmp_path / "w.safetensors").read_bytes()
    assert sorted(header.find(f'"{name}":'.encode()) for name in "abcdefg") == [
        header.find(f'"{name}":'.encode()) for name in "abcdefg"
    ]


def test_old_names_of_attention_layers_are_understood(module):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = file_tensors(module)
    for name in [n for n in tensors if ".attentions." in n]:
        for new, was in old.items():
            if f".{new}." in name:
                tensors[name.replace(f".{new}.", f".{was}.")] = tensors.pop(name)
    assert "mid_block.attentions.0.proj_attn.weight" in tensors
    loaded = load_weights(abstract(), tensors)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(module))


@pytest.mark.parametrize("names", [["time_proj.W"], ["time_proj.W", "time_proj.weight"]])
def test_both_old_names_of_the_fourier_frequencies_are_understood(names):
    options = unets.SMALLEST | {"time_embedding_type": "fourier"}
    module = unets.network(**options).module
    tensors = file_tensors(module)
    frequencies = tensors.pop("time_proj.weight")
    loaded = load_weights(
        abstract(time_embedding_type="fourier", **unets.SMALLEST), tensors | dict.fromkeys(names, frequencies)
    )
    np.testing.assert_array_equal(loaded.time_proj.weight[...], frequencies)


def test_missing_left_over_and_misshapen_weights_are_listed_at_once(module):
    tensors = file_tensors(module)
    for name in [n for n in tensors if n.startswith("mid_block.resnets.0")]:
        del tensors[name]
    tensors["encoder.weight"] = np.ones(3, np.float32)
    tensors["conv_in.weight"] = np.ones((8, 3, 3, 3), np.float32)
    tensors["conv_in.bias"] = np.ones((4,), np.float32)
    with pytest.raises(ValueError, match="unet has 10 parameters with no weights") as error:
        load_weights(abstract(), tensors)
    message = str(error.value)
    assert "mid_block.resnets.0.conv1.bias" in message
    assert "(and 5 more)" in message
    assert "1 tensor of the file belongs to no parameter: encoder.weight" in message
    assert "2 tensors of the file have the wrong shape" in message
    assert "conv_in.weight is (8, 3, 3, 3), not (8, 2, 3, 3)" in message
    assert "conv_in.bias is (4,), not (8,)" in message
    assert message.endswith("Is this a UNet2DModel checkpoint?")


def test_weights_of_another_size_are_refused(module):
    with pytest.raises(ValueError, match="have the wrong shape"):
        load_weights(abstract(block_out_channels=(8, 24)), file_tensors(module))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no weights file .*none\.safetensors"):
        read_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file(module, keep, tmp_path):
    write_safetensors(file_tensors(module), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"w\.safetensors is not a whole safetensors file .* truncated"):
        read_safetensors(tmp_path / "w.safetensors")


def test_a_full_disk_is_an_os_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors({"a": np.zeros(3, np.float32)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file may grow beyond: a full disk, to a writer
    try:
        with pytest.raises(OSError, match=r"cannot write .*w\.safetensors"):
            write_safetensors({"a": np.ones(10_000, np.float32)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    assert read_safetensors(path)["a"].tolist() == [0, 0, 0]
