import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import cmjax
from cmjax.io import Checkpoint, embedded_models, label_names
from cmjax.samplers import ALL


@pytest.fixture(scope="module")
def checkpoint():
    return tiny.checkpoint()


def output(model, dtype=jnp.float32):
    return model(jnp.linspace(-1, 1, 128, dtype=dtype).reshape(2, 8, 8, 1), jnp.float32(3.0), jnp.array([0, 2]))


@pytest.mark.parametrize("sampler", ALL)
def test_what_is_saved_is_loaded(sampler, checkpoint, tmp_path):
    config = sampler.Config(**{"sigma_max" if sampler is cmjax.ctm else "num_train_timesteps": 50})
    cmjax.save(Checkpoint(checkpoint.model, config), tmp_path / "model")
    model, loaded = cmjax.load(tmp_path / "model")
    assert loaded == config
    assert model.config == checkpoint.model.config
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(model), jax.tree.leaves(checkpoint.model))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_loaded_model_computes_the_same(checkpoint, tmp_path):
    cmjax.save(checkpoint, tmp_path / "model")
    model = cmjax.load(str(tmp_path / "model")).model
    np.testing.assert_array_equal(output(model), output(checkpoint.model))
    half = cmjax.load(tmp_path / "model", dtype=jnp.bfloat16).model
    difference = np.abs(np.asarray(output(half)) - np.asarray(output(model))).max()
    assert 0 < difference < 0.1 * np.abs(output(model)).max()


def test_the_layout_is_diffusers(checkpoint, tmp_path):
    cmjax.save(checkpoint, tmp_path / "model")
    files = sorted(str(p.relative_to(tmp_path / "model")) for p in (tmp_path / "model").rglob("*") if p.is_file())
    assert files == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert json.loads((tmp_path / "model" / "model_index.json").read_text()) == {
        "_class_name": "ConsistencyModelPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "CMStochasticIterativeScheduler"],
    }
    assert json.loads((tmp_path / "model" / "unet" / "config.json").read_text())["_class_name"] == "UNet2DModel"


def test_the_module_itself_may_be_saved(checkpoint, tmp_path):
    cmjax.save((checkpoint.model.module, checkpoint.config), tmp_path / "model")
    np.testing.assert_array_equal(output(cmjax.load(tmp_path / "model").model), output(checkpoint.model))


def test_saving_again_replaces_the_model_and_keeps_the_rest(checkpoint, tmp_path):
    cmjax.save(checkpoint, tmp_path / "model", label_names=["a", "b", "c"])
    (tmp_path / "model" / "README.md").write_text("the card")
    other = tiny.checkpoint(seed=1)
    cmjax.save(other, tmp_path / "model")
    np.testing.assert_array_equal(output(cmjax.load(tmp_path / "model").model), output(other.model))
    assert (tmp_path / "model" / "README.md").read_text() == "the card"
    assert label_names(tmp_path / "model") == ("a", "b", "c")


def test_a_failed_save_leaves_the_old_model(checkpoint, tmp_path, monkeypatch):
    cmjax.save(checkpoint, tmp_path / "model")

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("cmjax.io.checkpoint.write_config", full)
    with pytest.raises(OSError, match="No space left"):
        cmjax.save(tiny.checkpoint(seed=1), tmp_path / "model")
    np.testing.assert_array_equal(output(cmjax.load(tmp_path / "model").model), output(checkpoint.model))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_saved_is_refused(checkpoint, tmp_path):
    with pytest.raises(TypeError, match="got function"):
        cmjax.save((output, checkpoint.config), tmp_path / "model")
    with pytest.raises(ValueError, match="label_names must be 3 texts, one for each class of the network, got 2"):
        cmjax.save(checkpoint, tmp_path / "model", label_names=["a", "b"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds other files than a model's"):
        cmjax.save(checkpoint, tmp_path / "mine")
    with pytest.raises(FileNotFoundError):
        cmjax.save(checkpoint, tmp_path / "missing" / "model")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_label_names_are_stored_with_the_model(checkpoint, tmp_path):
    cmjax.save(checkpoint, tmp_path / "model")
    assert label_names(tmp_path / "model") is None
    cmjax.save(checkpoint, tmp_path / "model", label_names=["Ankle boot", "T-shirt/top", "Bag"])
    assert label_names(tmp_path / "model") == ("Ankle boot", "T-shirt/top", "Bag")
    (tmp_path / "model" / "labels.json").write_text('{"0": "a"}')
    with pytest.raises(ValueError, match="must be a list of texts"):
        label_names(tmp_path / "model")


def test_a_name_is_a_folder_before_it_is_an_embedded_model(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("cmjax.io.locate._PRETRAINED", tmp_path / "pretrained")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cmjax.save(checkpoint, tmp_path / "pretrained" / "mine")
    assert embedded_models() == ("mine",)
    np.testing.assert_array_equal(output(cmjax.load("mine").model), output(checkpoint.model))
    other = tiny.checkpoint(seed=1)
    cmjax.save(other, tmp_path / "here" / "mine")
    np.testing.assert_array_equal(output(cmjax.load("mine").model), output(other.model))


def test_weights_in_pieces_are_read(checkpoint, tmp_path):
    from cmjax.io.safetensors_files import read_safetensors, write_safetensors

    cmjax.save(checkpoint, tmp_path / "model")
    whole = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = read_safetensors(whole)
    names = sorted(tensors)
    pieces = {"1.safetensors": names[:5], "2.safetensors": names[5:]}
    for piece, part in pieces.items():
        write_safetensors({name: tensors[name] for name in part}, whole.with_name(piece))
    index = {"weight_map": {name: piece for piece, part in pieces.items() for name in part}}
    whole.with_name(whole.name + ".index.json").write_text(json.dumps(index))
    whole.unlink()
    np.testing.assert_array_equal(output(cmjax.load(tmp_path / "model").model), output(checkpoint.model))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("unet/config.json", r"has no unet/config\.json"),
        ("scheduler/scheduler_config.json", r"has no scheduler/scheduler_config\.json"),
        ("unet/diffusion_pytorch_model.safetensors", "the network has no weights"),
    ],
)
def test_a_lost_file_is_named(lost, message, checkpoint, tmp_path):
    cmjax.save(checkpoint, tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        cmjax.load(tmp_path / "model")


def test_a_truncated_file_of_weights_is_said(checkpoint, tmp_path):
    cmjax.save(checkpoint, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors"):
        cmjax.load(tmp_path / "model")


def test_what_is_no_model_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model fashion-mnist: .*fashion-mnist-cm.*nor a hub id"):
        cmjax.load("fashion-mnist")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is not a \.safetensors file: a model is a folder"):
        cmjax.load(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"no unet/config\.json"):
        cmjax.load(tmp_path)


@pytest.mark.parametrize(("name", "kind"), [("model_index.json", "StableDiffusionXLPipeline"), ("config.json", "Flux")])
def test_a_folder_of_another_kind_is_named(name, kind, tmp_path):
    (tmp_path / name).write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(FileNotFoundError, match=rf"no unet/config\.json: .* Its {name} is for {kind}\.$"):
        cmjax.load(tmp_path)


def test_names_that_do_not_fit_are_refused_before_anything_is_written(checkpoint, tmp_path):
    cmjax.save(checkpoint, tmp_path / "model", label_names=["a", "b", "c"])
    other = tiny.checkpoint(classes=5)
    with pytest.raises(ValueError, match="label_names must be 5 texts"):  # those of the folder
        cmjax.save(other, tmp_path / "model")
    assert label_names(tmp_path / "model") == ("a", "b", "c")
    for names in ("abc", [1, 2, 3], ["a"]):
        with pytest.raises(ValueError, match="label_names must be 3 texts"):
            cmjax.save(checkpoint, tmp_path / "new", label_names=names)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64"])
def test_weights_are_floats(dtype, checkpoint, tmp_path):
    with pytest.raises(TypeError, match="dtype must be a float dtype"):
        cmjax.save(checkpoint, tmp_path / "model", dtype=dtype)
    with pytest.raises(TypeError, match="dtype must be a float dtype"):
        cmjax.load("fashion-mnist-cm", dtype=dtype)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"a": "../../a.safetensors"}}', '{"weight_map": {}}'])
def test_an_index_lists_files_beside_it_only(content, checkpoint, tmp_path):
    cmjax.save(checkpoint, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "a.safetensors")
    weights.with_name(weights.name + ".index.json").write_text(content)
    with pytest.raises(ValueError, match="must hold a weight_map from tensors to the names of files beside it"):
        cmjax.load(tmp_path / "model")


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_variant_is_read_by_its_name(in_pieces, checkpoint, tmp_path):
    from cmjax.io.safetensors_files import read_safetensors

    cmjax.save(checkpoint, tmp_path / "model", dtype="float16")
    unet = tmp_path / "model" / "unet"
    half = unet / "diffusion_pytorch_model.fp16.safetensors"
    (unet / "diffusion_pytorch_model.safetensors").rename(half)
    with pytest.raises(FileNotFoundError, match=r"There is a variant: load\(\.\.\., variant='fp16'\)"):
        cmjax.load(tmp_path / "model")
    if in_pieces:
        piece = half.rename(unet / "diffusion_pytorch_model.fp16-00001-of-00001.safetensors")
        index = {"weight_map": dict.fromkeys(read_safetensors(piece), piece.name)}
        (unet / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps(index))
    model = cmjax.load(tmp_path / "model", variant="fp16").model
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(output(model), output(checkpoint.model), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"variant must be a word such as fp16, got '\.\./x'"):
        cmjax.load(tmp_path / "model", variant="../x")


def test_weights_in_another_format_are_named(checkpoint, tmp_path):
    cmjax.save(checkpoint, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"It holds diffusion_pytorch_model\.bin: only safetensors are loaded"):
        cmjax.load(tmp_path / "model")
