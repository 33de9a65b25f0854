"""Files in one piece as models: they load to the numbers of their folders, and are written back."""

import dataclasses
import gzip
import json
import sys

import numpy as np
import pytest
import torchfiles
from single_files import FAMILIES, model, use_tiny_kinds

from cmjax import text_to_image
from cmjax.io.safetensors_files import read_safetensors, write_safetensors
from cmjax.io.single_files.stable_diffusion import Part
from cmjax.samplers.ddim import DDIMConfig
from cmjax.samplers.euler import EulerConfig
from cmjax.samplers.euler_ancestral import EulerAncestralConfig
from cmjax.samplers.lcm import LCMConfig
from cmjax.samplers.tcd import TCDConfig
from cmjax.text_to_image.folders import write_source
from cmjax.text_to_image.opening import open_source

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


RARE = ("stable-diffusion-xl-1.0-inpainting-0.1", "Segmind-Vega", "koala-1b", "bk-sdm-base", "bk-sdm-small")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in FAMILIES]
)
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


def test_an_older_file_of_torch_holds_the_same(folder, tmp_path):
    name, path = "bk-sdm-tiny", tmp_path / "model.ckpt"
    torchfiles.write(path, {"state_dict": model(name).tensors(), "global_step": 3, "epoch": 1})
    check_parts(open_source(path), open_source(folder(name)))
    assert text_to_image.is_text_model(path)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_folders_hold_parts_in_pieces_and_variants(variant, tmp_path):
    made = model(XL)
    whole = made.folder(tmp_path / "whole")
    (whole / "scheduler").mkdir()
    (whole / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "TCDScheduler"}')
    expected = open_source(whole)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (file,) = (whole / part).glob("*.safetensors")
        tensors, stem = read_safetensors(file), file.stem
        names, end = sorted(tensors), "" if variant is None else f".{variant}"
        pieces = {f"{stem}{end}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
        for piece, some in pieces.items():
            write_safetensors({name: tensors[name] for name in some}, file.parent / piece)
        index = {"weight_map": {name: piece for piece, some in pieces.items() for name in some}}
        (file.parent / f"{stem}.safetensors.index{end}.json").write_text(json.dumps(index))
    for file in whole.glob("*/*.safetensors"):
        if "-of-" not in file.name:
            file.unlink()
    check_parts(open_source(whole, variant=variant), expected)
    file = made.file(tmp_path / "unet.safetensors", "unet")
    check_parts(open_source(file, base=whole, variant=variant), expected)


# ---- files that hold less than a model -------------------------------------------------------------------------------


def check_same(one, other, *parts):
    for part in parts:
        a, b = one.parts[part], other.parts[part]
        assert a.config == b.config and a.tensors.keys() == b.tensors.keys()
        for name in a.tensors:
            np.testing.assert_array_equal(a.tensors[name], b.tensors[name])


@pytest.mark.parametrize("name", [SD, *(pytest.param(name, marks=pytest.mark.slow) for name in (XL, REFINER))])
@pytest.mark.parametrize("of_folder", [True, False])
def test_a_unet_alone_takes_the_rest_from_a_base(name, of_folder, folder, tmp_path):
    base = folder(name) if of_folder else model(name).file(tmp_path / "base.safetensors")
    changed = {key: value + 1 for key, value in model(name).tensors("unet").items()}
    write_safetensors(changed, tmp_path / "unet.safetensors")
    source, whole = open_source(tmp_path / "unet.safetensors", base=base), open_source(base)
    check_same(source, whole, "vae", *whole.encoders)
    assert source.tokenizers == whole.tokenizers and source.encoders == whole.encoders
    for key, value in whole.parts["unet"].tensors.items():
        np.testing.assert_array_equal(source.parts["unet"].tensors[key], value + 1)
    assert source.sampler == whole.sampler and source.zeros_for_empty == whole.zeros_for_empty


def test_a_unet_alone_may_have_our_names_and_no_prefix(folder, tmp_path):
    unet = model(XL).unet
    write_safetensors(dict(unet.tensors), tmp_path / "lightning_unet.safetensors")
    check_parts(open_source(tmp_path / "lightning_unet.safetensors", base=folder(XL)), open_source(folder(XL)))


def test_what_is_missing_is_said(folder, tmp_path):
    file = model(XL).file(tmp_path / "unet.safetensors", "unet")
    with pytest.raises(ValueError, match=r"has no autoencoder and no text encoder and no second text encoder: give"):
        text_to_image.load(file)
    with pytest.raises(ValueError, match=r"unet.safetensors has no text encoder and no second text encoder"):
        text_to_image.load(file, vae=folder(XL))
    with pytest.raises(ValueError, match=r"attends to a context of width 16 .* makes one of width 12"):
        text_to_image.load(model(SD2).file(tmp_path / "a.safetensors", "unet", "vae"), base=folder(SD))
    for name, value in (("base", folder(XL)), ("ema", True)):
        with pytest.raises(ValueError, match=f"{name} is for files in one piece, but .* is a folder"):
            text_to_image.load(folder(SD), **{name: value})


@pytest.mark.parametrize(
    "prefix", ["vae.", *(pytest.param(at, marks=pytest.mark.slow) for at in ("first_stage_model.", ""))]
)
def test_an_autoencoder_of_its_own(prefix, folder, tmp_path):
    named = {name.removeprefix("first_stage_model."): value + 1 for name, value in model(SD).tensors("vae").items()}
    named |= {"loss.logvar": np.zeros(1, np.float32), "model_ema.decay": np.zeros(1, np.float32)}
    write_safetensors(
        {prefix * (name[:4] not in ("loss", "mode")) + name: v for name, v in named.items()},
        tmp_path / "vae.safetensors",
    )
    for name in (SD, XL):  # it does not say by how much latents are scaled: the model does
        source = open_source(folder(name), vae=tmp_path / "vae.safetensors")
        assert source.parts["vae"].config == open_source(folder(name)).parts["vae"].config
        for key, value in model(name).autoencoder.tensors.items():
            np.testing.assert_array_equal(source.parts["vae"].tensors[key], value + 1)
    source = open_source(model(XL).file(tmp_path / "unet.safetensors", "unet"), vae=tmp_path / "vae.safetensors")
    assert source.parts["vae"].config.scaling_factor == 0.13025
    check_same(open_source(folder(SD), vae=folder(XL)), open_source(folder(XL)), "vae")
    check_same(open_source(folder(SD), vae=folder(XL) / "vae"), open_source(folder(XL)), "vae")
    with pytest.raises(
        ValueError, match=r"must hold AutoencoderKL or AutoencoderTiny, but its config.json is for UNet2D"
    ):
        open_source(folder(SD), vae=folder(XL) / "unet")


def test_an_autoencoder_alone_must_be_told_its_scale(folder, tmp_path):
    alone = model(XL).file(tmp_path / "vae.safetensors", "vae")
    with pytest.raises(ValueError, match=r"does not say by how much latents are scaled: give scaling_factor, 0.18215"):
        text_to_image.load_autoencoder(alone)
    coder = text_to_image.load_autoencoder(alone, scaling_factor=0.13025, abstract=True)
    assert coder.config.scaling_factor == 0.13025 and coder.config.norm_num_groups == 4
    whole = text_to_image.load_autoencoder(model(XL).file(tmp_path / "all.safetensors"), abstract=True)
    assert whole.config.scaling_factor == 0.13025
    unet = model(XL).file(tmp_path / "unet.safetensors", "unet")
    with pytest.raises(ValueError, match=r"unet.safetensors: it holds no autoencoder, but a UNet \(1680 tensors\)"):
        text_to_image.load_autoencoder(unet)
    with pytest.raises(
        ValueError, match=r"scaling_factor is for a file, but .* is a folder, whose config.json says it"
    ):
        text_to_image.load_autoencoder(folder(XL), scaling_factor=1.0)


@pytest.mark.parametrize("name", [XL, *(pytest.param(name, marks=pytest.mark.slow) for name in (SD, SD2))])
def test_text_encoders_of_their_own(name, folder, tmp_path):
    files = []
    for i in range(len(model(name).texts)):
        for bare in ("transformer.", "model.", ""):
            named = {key.removeprefix(bare): value + 1 for key, value in model(name).text(i).items()}
            write_safetensors(named, tmp_path / f"{bare}{i}.safetensors")
        files.append(tmp_path / f"{'transformer.' if i else ''}{i}.safetensors")
    source, whole = open_source(folder(name), text_encoders=files), open_source(folder(name))
    for part in whole.encoders:
        for key, value in whole.parts[part].tensors.items():
            np.testing.assert_array_equal(source.parts[part].tensors[key], value + 1)
        assert source.parts[part].config == whole.parts[part].config
    some = open_source(folder(name), text_encoders=[None, files[-1]] if name == XL else files[0])
    assert some.parts[whole.encoders[-1]].config == whole.parts[whole.encoders[-1]].config
    for other in (folder(name), folder(name) / "text_encoder"):
        check_same(open_source(folder(name), text_encoders=other), whole, *whole.encoders)
    with pytest.raises(ValueError, match=r"text_encoders must be at most"):
        open_source(folder(name), text_encoders=[*files, files[0]])
    write_safetensors({"lora_te_x.lora_up.weight": np.zeros((2, 2), np.float32)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"it holds no text encoder, but a LoRA"):
        open_source(folder(name), text_encoders=tmp_path / "lora.safetensors")


# ---- what such a file does not hold ----------------------------------------------------------------------------------


def test_texts_are_filled_as_their_encoders_were_trained(folder, tmp_path):
    pads = {SD: ["<|endoftext|>"], SD2: ["!"], XL: ["<|endoftext|>", "!"], REFINER: ["!"]}
    for name, expected in pads.items():
        source = open_source(model(name).file(tmp_path / "model.safetensors"))
        for given in (folder(SD), folder(SD) / "tokenizer", folder(XL)):
            found = source.with_tokenizers(given).tokenizers
            assert [one.pad_token for one in found.values()] == expected
            assert [key.replace("tokenizer", "text_encoder") for key in found] == [*source.encoders]


@pytest.fixture
def vocabulary(tmp_path, monkeypatch):
    """A package that carries a vocabulary, in the form of OpenAI's."""
    from cmjax.text_to_image import clip_vocabulary

    monkeypatch.setattr(clip_vocabulary, "_MERGES", 3)
    monkeypatch.setattr(clip_vocabulary, "_PACKAGES", ("no_such_package", "clip_of_a_test"))
    text = '"bpe_simple_vocab_16e6.txt#version: 0.2\na b\nab c</w>\nd e</w>\nunused f\n'
    (tmp_path / "site" / "clip_of_a_test").mkdir(parents=True)
    file = tmp_path / "site" / "clip_of_a_test" / clip_vocabulary.FILE
    file.write_bytes(gzip.compress(text.encode()))
    (tmp_path / "site" / "clip_of_a_test" / "__init__.py").write_text("raise ImportError('must not be imported')")
    yield file
    clip_vocabulary.read_vocabulary.cache_clear()
    assert "clip_of_a_test" not in sys.modules


def test_the_vocabulary_is_found_in_an_installed_package(vocabulary, tmp_path, monkeypatch):
    source = open_source(model(SD).file(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match=r"which has no tokenizer: give .*pip install --no-deps clip-anytorch"):
        source.with_tokenizers(None)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (found,) = source.with_tokenizers(None).tokenizers.values()
    assert len(found) == 2 * 256 + 3 + 2 and found.vocab[:2] == ("!", '"') and found.vocab[-2] == "<|startoftext|>"
    assert found.vocab[256:258] == ("!</w>", '"</w>') and found.vocab[512:515] == ("ab", "abc</w>", "de</w>")
    np.testing.assert_array_equal(found(["abc DE"])[0, :4], [515, 513, 514, 516])
    assert source.with_tokenizers(vocabulary).tokenizers == {"tokenizer": found}
    with pytest.raises(ValueError, match=r"must be OpenAI's bpe_simple_vocab_16e6.txt.gz, but it cannot be unpacked"):
        source.with_tokenizers(tmp_path / "model.safetensors")
    (tmp_path / "short.gz").write_bytes(gzip.compress(b"head\na b\n"))
    with pytest.raises(ValueError, match=r"with 3 merges, one a line; it holds something else"):
        source.with_tokenizers(tmp_path / "short.gz")


def test_the_sampler_is_what_markers_and_the_network_say(folder, tmp_path):
    empty = np.empty(0, np.float32)

    def sampler(name, *parts, base=None, **markers):
        return open_source(model(name).file(tmp_path / "m.safetensors", *parts, **markers), base=base).sampler_config

    assert sampler(SD).prediction_type == "epsilon" and not sampler(SD).rescale_betas_zero_snr
    said = sampler(XL, v_pred=empty, ztsnr=empty)
    assert said.prediction_type == "v_prediction" and said.rescale_betas_zero_snr
    assert isinstance(sampler(LCM), LCMConfig) and isinstance(sampler(LCM, "unet", base=folder(SD)), LCMConfig)
    path = folder(XL) / "scheduler" / "scheduler_config.json"
    other = json.loads(path.read_text()) | {"beta_end": 0.013, "prediction_type": "sample"}
    path.write_text(json.dumps(other))
    assert sampler(XL, "unet", base=folder(XL)).prediction_type == "sample"
    assert sampler(XL, base=folder(XL)).prediction_type == "epsilon"  # the file is a whole model
    said = sampler(XL, "unet", base=folder(XL), v_pred=empty)
    assert (said.prediction_type, said.beta_end) == ("v_prediction", 0.013)
    path.write_text(json.dumps(other | {"beta_end": 0.012, "prediction_type": "epsilon"}))
    with pytest.raises(ValueError, match=r"marked as trained in noise levels .*Playground"):
        sampler(XL, edm_mean=np.zeros(4, np.float32))


def test_a_published_file_has_its_sampler_and_another_the_ordinary_one_of_its_kind(folder, tmp_path):
    def config(name, file, *parts, base=None):
        return open_source(model(name).file(tmp_path / file, *parts), base=base).sampler_config

    def said(config):
        return type(config), config.prediction_type, config.timestep_spacing

    x0 = config(XL, "sdxl_lightning_1step_unet_x0.safetensors", "unet", base=folder(XL))
    assert said(x0) == (EulerConfig, "sample", "trailing")  # though the base's predicts epsilon
    four = config(XL, "sdxl_lightning_4step_unet.safetensors", "unet", base=folder(XL))
    assert said(four) == (EulerConfig, "epsilon", "trailing")
    assert said(config(XL, "sd_xl_turbo_1.0_fp16.safetensors")) == (EulerAncestralConfig, "epsilon", "trailing")
    assert said(config(XL, "mine.safetensors")) == (EulerConfig, "epsilon", "leading")
    assert said(config(SD, "mine.safetensors")) == (DDIMConfig, "epsilon", "leading")
    assert said(config(XL, "mine.safetensors", "unet")) == (EulerConfig, "epsilon", "leading")
    assert isinstance(config(XL, "mine.safetensors", "unet", base=folder(XL)), TCDConfig)  # the base's own
    file = tmp_path / "dmd2_sdxl_4step_unet_fp16.bin"
    torchfiles.write(file, model(XL).tensors("unet"))
    assert text_to_image.is_text_model(file) and isinstance(open_source(file).sampler_config, LCMConfig)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_what_a_file_cannot_say_is_not_written(folder, tmp_path):
    source, out = open_source(folder(SD)), tmp_path / "out.safetensors"

    def refused(source, match):
        with pytest.raises(ValueError, match=match):
            write_source(source, out)
        assert not out.exists()

    def changed(part, **values):
        config, tensors = source.parts[part]
        return source._replace(parts={**source.parts, part: (Part(dataclasses.replace(config, **values), tensors))})

    refused(
        changed("unet", attention_head_dim=4),
        r"read as Stable Diffusion 1 with heads .* \[2, 2, 2, 2\], but this model",
    )
    refused(changed("unet", norm_num_groups=8), "norm_num_groups = 4, but this model has 8: save it as a folder")
    refused(changed("vae", scaling_factor=0.5), "scaling_factor of its autoencoder = 0.18215, but this model has 0.5")
    refused(changed("text_encoder", hidden_act="gelu"), "activation of its text encoder = quick_gelu")
    beta = dataclasses.replace(source.sampler, beta_end=0.02)
    refused(source._replace(sampler=beta), "means beta_end = 0.012, but the model has 0.02")
    with pytest.raises(ValueError, match=r"which is no Stable Diffusion that cmjax knows"):
        write_source(open_source("emoji"), out)


def test_what_the_network_predicts_is_written(folder, tmp_path):
    for name in (SD, SD2, XL):
        source = open_source(folder(name))
        said = dataclasses.replace(source.sampler, prediction_type="v_prediction", rescale_betas_zero_snr=True)
        write_source(source._replace(sampler=said), tmp_path / "v.safetensors")
        again = open_source(tmp_path / "v.safetensors").sampler
        assert again.prediction_type == "v_prediction" and again.rescale_betas_zero_snr
        write_source(source, tmp_path / "e.safetensors", dtype="bfloat16")
        assert open_source(tmp_path / "e.safetensors").sampler.prediction_type == "epsilon"
        assert {str(v.dtype) for v in read_safetensors(tmp_path / "e.safetensors").values()} == {"bfloat16"}
