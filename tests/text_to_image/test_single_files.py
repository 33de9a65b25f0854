"""Files in one piece as models: they load to the numbers of their folders, and are written back."""

import json

import numpy as np
import pytest
from single_files import FAMILIES, model, use_tiny_kinds

from cmjax import text_to_image
from cmjax.io.safetensors_files import read_safetensors
from cmjax.text_to_image.folders import open_source, write_source

SD, XL, REFINER = "stable-diffusion-v1-5", "stable-diffusion-xl-base-1.0", "stable-diffusion-xl-refiner-1.0"
SD2, LCM = "stable-diffusion-2-1", "LCM_Dreamshaper_v7"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    use_tiny_kinds(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders by name, each written once."""
    root, made = tmp_path_factory.mktemp("folders"), {}

    def of(name):
        if name not in made:
            made[name] = model(name).folder(root / name)
            scheduler = {"_class_name": "TCDScheduler", "clip_sample": False, "prediction_type": "epsilon"}
            (made[name] / "scheduler").mkdir()
            (made[name] / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
            if model(name).kind.is_refiner:
                (made[name] / "model_index.json").write_text(json.dumps({"text_encoder_2": ["transformers", ""]}))
        return made[name]

    return of


def check_parts(one, other):
    """The same tensors under the same names; a convolution of one pixel may be a linear layer."""
    assert set(one.parts) == set(other.parts)
    for part in one.parts:
        a, b = one.parts[part].tensors, other.parts[part].tensors
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{part}: {name}")


def check_unets(one, other):
    levels = range(len(one.block_out_channels))
    for of in ("heads", "layers", "down_depths", "up_depths"):
        assert [getattr(one, of)(i) for i in levels] == [getattr(other, of)(i) for i in levels]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_holds_what_its_folder_holds_and_is_written_back(name, folder, tmp_path):
    file, base = model(name).file(tmp_path / "model.safetensors"), open_source(folder(name))
    source = open_source(file)
    check_parts(source, base)
    check_unets(source.parts["unet"].config, base.parts["unet"].config)
    for part in ("vae", *source.encoders):
        assert source.parts[part].config == base.parts[part].config
    again = tmp_path / "again.safetensors"
    write_source(source, again)
    check_parts(open_source(again), source)
    assert open_source(again).sampler == source.sampler
    written, given = read_safetensors(again), read_safetensors(file)
    unused = {k for k in given.keys() - written.keys() if "logit_scale" in k or (name == SD2 and "cond_stage" in k)}
    assert given.keys() - written.keys() == unused and written.keys() <= given.keys()
    for key in written:
        np.testing.assert_array_equal(written[key], given[key])


@pytest.mark.parametrize("name", ["bk-sdm-tiny", pytest.param(XL, marks=pytest.mark.slow)])
def test_a_file_loads_to_the_numbers_of_its_folder(name, folder, tmp_path):
    file = model(name).file(tmp_path / "model.safetensors")
    pipe = text_to_image.load(file, tokenizer=folder(name))
    assert pipe.tokenizers == tuple(open_source(folder(name)).tokenizers.values())
    assert pipe.config.prediction_type == "epsilon" and pipe.zeros_for_empty == (name == XL)
    text_to_image.save(pipe, tmp_path / "again.safetensors")
    check_parts(open_source(tmp_path / "again.safetensors"), open_source(file))
    text_to_image.save(pipe, tmp_path / "again")
    check_parts(open_source(tmp_path / "again"), open_source(folder(name)))
    assert text_to_image.is_text_model(file)
