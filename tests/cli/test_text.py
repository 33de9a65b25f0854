"""`cmjax sample --prompt` and what other commands do with models of texts, on a tiny one."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from texts import text_model

import cmjax
from cmjax.cli import main
from cmjax.models import from_nnx
from cmjax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from cmjax.text_to_image import LatentCoder, Prompt


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("text") / "model"
    cmjax.text_to_image.save(text_model(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "given.png"
    Image.fromarray(np.linspace(0, 255, 8 * 8 * 3).reshape(8, 8, 3).astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def embedding(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("embeddings") / "cat.safetensors"
    cmjax.io.write_safetensors({"emb_params": np.ones((2, 8), np.float32)}, path)
    return str(path)


def draw(*words: str) -> None:
    assert main([*words]) == 0


@pytest.mark.slow
def test_prompts_are_drawn_in_turn_and_as_by_the_library(model, tmp_path):
    out = tmp_path / "out.npz"
    draw("sample", "--model", model, "--prompt", "red fox", "--prompt", "blue", "--num", "3", "--out", str(out))
    arrays = np.load(out)
    assert arrays["labels"].tolist() == [0, 1, 0]
    assert arrays["prompts"].tolist() == ["red fox", "blue"]
    pipe = text_model()
    state = cmjax.tcd.init(pipe.config, 4)
    prompt = Prompt(pipe.tokenize(["red fox", "blue", "red fox"]))
    keys = cmjax.image_keys(0, np.arange(3))
    by_hand = cmjax.text_to_image.draw_prompt(pipe, state, keys, pipe.latent_shape(3), prompt)
    assert np.abs(arrays["images"].astype(int) - cmjax.io.to_uint8(by_hand)).max() <= 1


@pytest.mark.slow
def test_a_folder_of_pndm_is_drawn_by_ddim_and_by_the_sampler_that_is_asked_for(model, tmp_path, capsys):
    """Folders of Stable Diffusion carry it; `pipe.config` suits every variance-preserving sampler."""
    folder = tmp_path / "sd"
    shutil.copytree(model, folder)
    pndm = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pndm |= {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(pndm))
    pipe = cmjax.text_to_image.load(folder)
    assert type(pipe.config) is cmjax.ddim.DDIMConfig and not pipe.config.clip_sample
    for config in (pipe.config, cmjax.io.read_config(folder, as_=cmjax.tcd.TCDConfig)):
        assert cmjax.tcd.init(config, 4, eta=0.3).landings.tolist() == [531, 349, 181, 0]

    draw("inspect", str(folder))
    assert "ddim, 25 steps (usual for a model that was not distilled)" in " ".join(capsys.readouterr().out.split())
    draw("inspect", str(folder), "--sampler", "tcd")
    assert "tcd, 4 steps" in " ".join(capsys.readouterr().out.split())
    prompt, keys = Prompt(pipe.tokenize(["red fox"]), guidance=7.5), cmjax.image_keys(0, [0])
    words = ["--sampler", "ddim", "--steps", "2", "--guidance", "7.5", "--num", "1", "--out", str(tmp_path / "a.npz")]
    draw("sample", "--model", str(folder), "--prompt", "red fox", *words)
    state = cmjax.ddim.init(pipe.config, 2)
    by_hand = cmjax.text_to_image.draw_prompt(pipe, state, keys, pipe.latent_shape(1), prompt)
    drawn = np.load(tmp_path / "a.npz")["images"].astype(int)
    assert np.abs(drawn - cmjax.io.to_uint8(by_hand)).max() <= 1


@pytest.mark.slow
def test_words_of_embeddings(model, embedding, tmp_path):
    words = ["--model", model, "--prompt", "a <Me>", "--num", "1", "--steps", "1"]
    named = ["--embedding", f"{embedding}:<me>", "--embedding", embedding]
    draw("sample", *words, *named, "--out", str(tmp_path / "a.npz"))
    pipe = text_model()
    for token in ("<me>", "cat"):
        pipe = cmjax.text_to_image.add_embedding(pipe, np.ones((2, 8)), token)
    prompt = Prompt(pipe.tokenize(["a <me>"]))
    keys, state = cmjax.image_keys(0, np.arange(1)), cmjax.tcd.init(pipe.config, 1)
    by_hand = cmjax.text_to_image.draw_prompt(pipe, state, keys, pipe.latent_shape(1), prompt)
    drawn = np.load(tmp_path / "a.npz")["images"].astype(int)
    assert np.abs(drawn - cmjax.io.to_uint8(by_hand)).max() <= 1
    shards = ["sample", *words, "--shard-size", "1", "--out", str(tmp_path / "shards")]
    draw(*shards, *named)
    assert main([*shards, "--embedding", f"{embedding}:<me>"]) == 2  # another run


@pytest.mark.slow
def test_a_grid_a_strip_of_steps_and_a_folder(model, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("red fox\n\nblue fox\n")
    out = tmp_path / "grid.png"
    draw("sample", "--model", model, "--prompts", str(path), "--num", "2", "--trajectory", "--out", str(out))
    assert Image.open(out).size[1] > 2 * 8
    config = AutoencoderTinyConfig(
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
    )
    tiny = LatentCoder(from_nnx(AutoencoderTiny(config, rngs=nnx.Rngs(0))))
    cmjax.text_to_image.save_autoencoder(tiny, tmp_path / "tiny")
    words = ["sample", "--model", model, "--prompts", str(path), "--num", "2", "--trajectory"]
    draw(*words, "--out", str(tmp_path / "own.npz"))
    draw(*words, "--preview-autoencoder", str(tmp_path / "tiny"), "--out", str(tmp_path / "by.npz"))
    own, by = (np.load(tmp_path / f"{name}.npz") for name in ("own", "by"))
    assert (own["images"] == by["images"]).all() and (own["x0"] != by["x0"]).any()
    folder = tmp_path / "pictures"
    draw("sample", "--model", model, "--prompts", str(path), "--num", "2", "--size", "8x16", "--out", str(folder))
    assert sorted(file.name for file in folder.iterdir()) == ["00000-prompt0.png", "00001-prompt1.png"]
    assert Image.open(folder / "00000-prompt0.png").size == (16, 8)


@pytest.mark.slow
def test_guidance_changes_the_picture_and_a_negative_prompt_too(model, tmp_path):
    pictures = []
    for words in ((), ("--guidance", "1"), ("--guidance", "4"), ("--guidance", "4", "--negative", "red")):
        out = tmp_path / f"{len(pictures)}.npz"
        draw("sample", "--model", model, "--prompt", "red fox", "--num", "1", "--steps", "1", "--out", str(out), *words)
        pictures.append(np.load(out)["images"])
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[1] != pictures[2]).any() and (pictures[2] != pictures[3]).any()


@pytest.mark.slow
def test_shards_hold_prompts_as_classes(model, tmp_path):
    words = ["sample", "--model", model, "--prompt", "red", "--prompt", "a", "--num", "4", "--shard-size", "2"]
    draw(*words, "--steps", "1", "--out", str(tmp_path / "shards"))
    shards = sorted((tmp_path / "shards").glob("*.npz"))
    assert [np.load(shard)["labels"].tolist() for shard in shards] == [[0, 1], [0, 1]]


@pytest.mark.slow
def test_pictures_are_redrawn_and_filled(model, picture, tmp_path):
    draw("edit", "stroke", picture, "--model", model, "--prompt", "red fox", "--num", "1", "--out", str(tmp_path / "s"))
    mask = tmp_path / "mask.png"
    hole = np.zeros((8, 8), np.uint8)
    hole[:3, :3] = 255
    Image.fromarray(hole).save(mask)
    out = str(tmp_path / "i")
    draw("edit", "inpaint", picture, "--mask", str(mask), "--model", model, "--prompt", "a", "--num", "1", "--out", out)
    given, filled = (np.asarray(Image.open(path)).astype(int) for path in (picture, tmp_path / "i" / "given-1.png"))
    known = hole == 0
    assert (given[known] == filled[known]).all() and (given[~known] != filled[~known]).any()


@pytest.mark.slow
def test_a_network_that_is_told_of_holes_fills_them_and_does_nothing_else(picture, tmp_path, capsys):
    folder = str(tmp_path / "model")
    cmjax.text_to_image.save(text_model(in_channels=9), folder)
    mask = tmp_path / "mask.png"
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(mask)
    words = ["--model", folder, "--prompt", "a", "--guidance", "2", "--negative", "red", "--num", "1"]
    draw("edit", "inpaint", picture, "--mask", str(mask), *words, "--out", str(tmp_path / "i"))
    given, filled = (np.asarray(Image.open(path)) for path in (picture, tmp_path / "i" / "given-1.png"))
    hole = np.eye(8, dtype=bool)
    assert (given[~hole] == filled[~hole]).all() and (given[hole] != filled[hole]).any()
    assert main(["sample", *words, "--out", str(tmp_path / "x.png")]) == 2
    assert "made to fill holes" in capsys.readouterr().err


@pytest.mark.slow
def test_from_text_to_text(model, tmp_path):
    words = ["edit", "interpolate", "--model", model, "--prompt", "red fox", "--prompt", "blue", "--seeds", "3"]
    draw(*words, "--num", "3", "--out", str(tmp_path / "way"))
    ends = [np.asarray(Image.open(tmp_path / "way" / f"{i:03}.png")) for i in range(3)]
    assert (ends[0] != ends[2]).any()


@pytest.mark.slow
def test_inspect_shows_the_parts(model, capsys):
    draw("inspect", model)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("unet", "vae", "text encoder 1", "8 x 8", "TCDScheduler"))


@pytest.mark.slow
def test_an_artifact_draws_what_the_model_does(model, tmp_path, capsys):
    folder = str(tmp_path / "artifact")
    draw("export", model, folder, "--platforms", "cpu", "--guided")
    words = ["--prompt", "red fox", "--num", "2", "--guidance", "3", "--negative", "blue", "--steps", "2"]
    for name, source in (("a", ["--artifact", folder]), ("m", ["--model", model])):
        draw("sample", *source, *words, "--out", str(tmp_path / f"{name}.npz"))
    a, m = (np.load(tmp_path / f"{name}.npz")["images"].astype(int) for name in "am")
    assert np.abs(a - m).max() <= 1
    assert main(["sample", "--artifact", folder, "--out", str(tmp_path / "x.png")]) == 2
    assert "give --prompt" in capsys.readouterr().err
    drawer = cmjax.artifact.load(folder)
    state, keys = cmjax.pad(cmjax.tcd.init(drawer.held.config, 1), 8), cmjax.image_keys(0, np.arange(2))
    with pytest.raises(ValueError, match="mapping of guidance, negative, tokens"):
        drawer(state, keys, {"tokens": []})
    asked = {"tokens": [np.zeros((2, 10), int)], "negative": [np.zeros((2, 9), int)], "guidance": np.ones(2)}
    with pytest.raises(ValueError, match=r"negative must be int32\[2, 10\]"):
        drawer(state, keys, asked)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "fashion-mnist-cm", "--prompt", "a"], "takes no prompt"),
        (["--model", "MODEL"], "text_to_image.load"),
        (["--negative", "a"], "--negative belongs to texts: give --prompt too"),
        (["--model", "MODEL", "--prompt", "a", "--negative", "b"], "give --guidance too"),
        (["--model", "MODEL", "--prompt", "a", "--labels", "1"], "--labels and --prompt exclude each other"),
        (["--model", "MODEL", "--prompt", "a", "--size", "9x8"], "--size must be"),
        (["--model", "MODEL", "--prompts", "nowhere.txt"], "--prompts: nowhere.txt"),
        (["--model", "MODEL", "--prompt", "a", "--sampler", "cm"], "sigma-space"),
        (["--model", "MODEL", "--prompt", "a", "--preview-autoencoder", "emoji"], "give --prompt, --trajectory"),
        (
            ["--model", "MODEL", "--prompt", "a", "--trajectory", "--preview-autoencoder", "emoji"],
            "--preview-autoencoder: preview must decode 4 channels of latents to 2 pixels a side",
        ),
        (["--embedding", "x.pt"], "--embedding belongs to texts: give --prompt too"),
        (["--model", "MODEL", "--prompt", "a", "--embedding", "x.pt:<x>"], "--embedding: there is no embedding x.pt"),
        (["--model", "MODEL", "--prompt", "a", "--embedding", "EMBEDDING:a"], "--embedding: token must be a new one"),
        (["--artifact", "x", "--prompt", "a", "--embedding", "EMBEDDING"], "--embedding: an artifact runs as it was"),
    ],
)
def test_what_does_not_suit_is_one_sentence(words, said, model, embedding, tmp_path, capsys):
    words = [model if word == "MODEL" else word.replace("EMBEDDING", embedding) for word in words]
    assert main(["sample", *words, "--out", str(tmp_path / "x.png")]) == 2
    shown = capsys.readouterr().err
    assert said in " ".join(shown.split()) and len(shown.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [["--guidance", "-1"], ["--size", "0"], ["--size", "8x8x8"], ["--guidance", "x"]])
def test_values_of_another_kind_are_refused_at_once(words):
    assert main(["sample", "--prompt", "a", *words]) == 2
