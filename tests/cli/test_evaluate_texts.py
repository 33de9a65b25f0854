"""`cmjax evaluate --prompts`: the figures of what `cmjax sample` draws, beside other models and real pictures."""

import json

import jax
import numpy as np
import pytest
from clips import clip_folder
from commands import complaint
from PIL import Image
from texts import PROMPTS, text_model

import cmjax
from cmjax.cli import main
from cmjax.cli.draw import Ready
from cmjax.cli.evaluate import text_measure
from cmjax.evaluation import Moments, clip_score, diversity, frechet_distance, halves, read_statistics
from cmjax.io import read_images, to_uint8, write_npz, write_png
from cmjax.io.configs import read_json, write_json
from cmjax.text_to_image import load_clip

SIDE = 8
JUDGE = '''
import jax.numpy as jnp
from cmjax._struct import Struct
from cmjax.evaluation import Features, Judged

class Brightness(Struct):
    """Three features are the mean colour; a prompt with "red" asks for a bright picture."""

    def __call__(self, images):
        return Features(images.mean((1, 2)))

    def see(self, images):
        features = images.mean((1, 2))
        return Judged(features, {"bright": (features.mean(1) > 0).astype(jnp.int32)})

    def asked(self, prompt):
        return {"bright": int("red" in prompt)} if prompt != "a" else {}
'''


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in a folder of its own, with prompts and a judge."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (tmp_path / "brightness_judge.py").write_text(JUDGE)
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS) + "\n")


@pytest.fixture
def model(tmp_path):
    """A tiny model, a CLIP, and captioned pictures."""
    cmjax.text_to_image.save(text_model(), "model")
    clip_folder(tmp_path / "clip")
    (tmp_path / "real").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        write_png(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8), tmp_path / f"real/{i}.png")
        (tmp_path / f"real/{i}.txt").write_text(PROMPTS[i % 2])


def evaluate(*options):
    given = ["--steps", "1", "--seed", "3", "5", "--batch", "4", "--json", "out.json"]
    assert main(["evaluate", "model", *given, *options]) == 0
    return read_json("out.json")


class Uncompiled:
    """In place of `compile_batches`: pictures by their numbers, without a network; what looks at them, as it is."""

    def __init__(self, function, model, shared, size, rows):
        self.function, self.rows, self.size = function, rows, size

    def place(self, model):
        return model

    def __call__(self, first, model):
        numbers = np.arange(first, first + self.size)
        if self.function is text_measure._look:
            return jax.device_get(self.function(model, None, self.rows(numbers)))
        seed, index, prompt = self.rows(numbers)
        assert prompt.tokens[0].shape[0] == len(seed) == self.size
        levels = np.where(seed == 0, 10, 60 * index)[:, None, None, None]  # the first picture of seed 1 is dark too
        return np.ones(self.size, bool), np.broadcast_to(levels, (self.size, 64, 64, 3)).astype(np.uint8)


def test_every_prompt_and_seed_is_looked_at_once_and_goes_into_its_row(capsys, monkeypatch):
    monkeypatch.setattr(text_measure, "compile_batches", Uncompiled)
    monkeypatch.setattr(text_measure, "get_ready", lambda compile, load: Ready(compile(), None, 0.0))
    given = ["--prompt", "red", "--prompt", "a", "--prompt", "b", "--prompt", "red c", "--seed", "3", "5"]
    given += ["--batch", "3", "--features", "brightness_judge:Brightness", "--json", "out.json", "--out", "seen.png"]
    assert main(["evaluate", *given, "--against", "emoji:emoji-ink", "--against-steps", "2"]) == 0
    found, said = read_json("out.json"), capsys.readouterr().out
    own, other = found["rows"]
    assert (own["name"], own["pictures"], own["steps"], own["lora"]) == ("emoji", 8, 4, [])
    assert (other["name"], other["steps"], other["lora"]) == ("emoji:emoji-ink", 2, [["emoji-ink", None]])
    # Prompts "red" ask for bright pictures: in seed 5 those of the last prompt are. Of "a", nothing is asked.
    assert own["by_seed"]["bright"] == own["by_seed"]["all"] == pytest.approx([1 / 3, 2 / 3])
    assert own["mean"]["bright"] == pytest.approx(0.5)
    assert own["standard_deviation"]["bright"] == pytest.approx(1 / 3 / 2**0.5)
    apart = np.abs(10 - 60 * np.arange(4)) / 127.5 * 3**0.5
    assert own["mean"]["diversity"] == pytest.approx(apart.mean(), rel=1e-5)
    assert own["frechet_distance"] == {"emoji:emoji-ink": pytest.approx(0, abs=1e-9)}
    assert found["notes"] == ["2 of 8 pictures have prompts in other words than the judge knows"]
    for text in ("all of it", "8 a model: 4 prompts, seeds 3, 5", "emoji with emoji-ink; tcd, 2 steps", "diversity"):
        assert text in said
    assert Image.open("seen.png").width > 4 * 64  # two models, two seeds


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_rows_of_a_model_of_another_and_of_real_pictures(capsys):
    (lines := [{"text": [prompt, "other"], "file_name": "a.png"} for prompt in PROMPTS]).append({"text": "red"})
    with open("p.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    options = ["--prompts", "p.jsonl", "--features", "brightness_judge:Brightness", "--clip", "clip", "--data", "real"]
    found = evaluate(*options, "--against", "model", "--against-steps", "1", "--out", "seen.png")
    said = capsys.readouterr().out
    own, other, real = found["rows"]
    assert found["prompts"] == [*PROMPTS, "red"] and found["seeds"] == [3, 5]
    assert (own["name"], own["pictures"], own["steps"], own["sampler"]) == ("model", 8, 1, "tcd")
    assert own["frechet_distance"]["model (2)"] == pytest.approx(0, abs=1e-9)  # the same pictures
    assert other["mean"] == own["mean"] and set(other["frechet_distance"]) == {"real"}
    assert own["frechet_distance"]["real"] == other["frechet_distance"]["real"] > 0
    assert (real["name"], real["pictures"], real["by_seed"]) == ("real", 4, {})
    assert own["mean"]["clip_s"] == pytest.approx(2.5 * own["mean"]["clip_score"])
    assert set(own["mean"]) == {"clip_score", "clip_s", "bright", "all", "diversity"} == set(real["mean"])
    assert np.mean(own["by_seed"]["clip_score"]) == pytest.approx(own["mean"]["clip_score"])
    assert own["standard_deviation"]["bright"] == pytest.approx(np.std(own["by_seed"]["bright"], ddof=1))
    assert any("2 of 8 pictures have prompts in other words than the judge knows" in note for note in found["notes"])
    for text in (
        "CLIP score",
        "all of it",
        "Frechet distance to real",
        "8 a model: 4 prompts, seeds 3, 5",
        "model (2)",
    ):
        assert text in said
    assert Image.open("seen.png").width > 4 * 64  # two models, two seeds


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_the_figures_are_those_of_what_sample_draws():
    found = evaluate("--prompts", "p.txt", "--features", "clip", "--clip", "clip", "--data", "real")["rows"][0]
    drawn = []
    for seed in ("3", "5"):
        given = ["--prompts", "p.txt", "--steps", "1", "--seed", seed, "--num", "3", "--out", "a.npz"]
        assert main(["sample", "--model", "model", *given]) == 0
        drawn.append(np.load("a.npz")["images"])
    images, clip, prompts = np.concatenate(drawn), load_clip("clip"), PROMPTS * 2
    scores = clip_score(images, prompts, clip)
    assert found["mean"]["clip_score"] == pytest.approx(scores.mean(), abs=1e-3)
    assert found["by_seed"]["clip_score"] == pytest.approx([scores[:3].mean(), scores[3:].mean()], abs=1e-3)
    vectors = np.asarray(clip.embed_images(images / np.float32(127.5) - 1))
    assert found["mean"]["diversity"] == pytest.approx(diversity(vectors, np.arange(6) % 3).mean(), rel=1e-2)
    real = read_images("real").images[halves(None, 8)[0]]
    theirs = Moments.none(6).update(np.asarray(clip.embed_images(real / np.float32(127.5) - 1)))
    expected = frechet_distance(Moments.none(6).update(vectors), theirs)
    assert found["frechet_distance"]["real"] == pytest.approx(expected, rel=1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_without_anything_else_it_looks_at_latents_and_reads_statistics():
    write_npz("stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    found = evaluate("--prompts", "p.txt", "--reference", "stats.npz")
    assert found["features"] == {"name": "latents", "features": 64}
    pipe = text_model()
    state, keys = cmjax.tcd.init(pipe.config, 1), [cmjax.image_keys(seed, range(3)) for seed in (3, 5)]
    prompt = cmjax.text_to_image.Prompt(pipe.tokenize(PROMPTS))
    images = [cmjax.text_to_image.draw_prompt(pipe, state, key, pipe.latent_shape(3), prompt) for key in keys]
    levels = np.concatenate([to_uint8(np.asarray(some)) for some in images])
    latents = np.asarray(pipe.autoencoder.encode(levels / np.float32(127.5) - 1)).reshape(6, -1)
    expected = frechet_distance(Moments.none(64).update(latents), read_statistics("stats.npz"))
    assert found["rows"][0]["frechet_distance"]["the reference"] == pytest.approx(expected, rel=1e-2)


@pytest.mark.slow
def test_emoji_needs_nothing_else(tmp_path):
    (tmp_path / "e.txt").write_text(
        "a fox on a red background\ntwo owls on a blue background\na sun at the left\na pizza at the top, flat style\n"
    )
    given = ["--prompts", "e.txt", "--seed", "0", "1", "--json", "e.json", "--batch", "8", "--steps", "2"]
    assert main(["evaluate", *given]) == 0
    found = read_json("e.json")
    mean = found["rows"][0]["mean"]
    assert found["features"]["name"] == "emoji-classifier"
    assert mean["subject"] >= 0.75 and mean["colour"] == mean["place"] == mean["number"] == 1
    assert mean["diversity"] > 0


def test_mistakes_in_words_and_files_are_one_sentence(capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"file_name": "b.png"}\n')
    (tmp_path / "broken.jsonl").write_text("{\n")
    p = ["emoji", "--prompts", "p.txt"]
    for options, message in (
        (["emoji"], "emoji draws what a text says: give --prompts FILE, one prompt a line."),
        (["--clip", "clip"], "--clip belongs to texts: give --prompts FILE too."),
        (["emoji", "--prompts", "empty.txt"], "--prompts: empty.txt must hold one prompt a line, but it has none."),
        (["emoji", "--prompts", "gap.txt"], "gap.txt, line 2 is empty: take it out, since it asks for nothing."),
        (["emoji", "--prompts", "no.txt"], "no.txt"),
        (["emoji", "--prompts", "bad.jsonl"], "bad.jsonl, line 2 must be a JSON object with text, got"),
        (["emoji", "--prompts", "broken.jsonl"], "broken.jsonl, line 1 must be a JSON object, but is not valid JSON"),
        (["emoji", "--prompt", " "], "--prompt: a prompt must say something, but one is empty."),
        (["emoji", "--prompt", "a", "--seed", "1"], "figures need at least 2 pictures: give more prompts or seeds."),
        (["fashion-mnist-cm", "--prompts", "p.txt"], "fashion-mnist-cm draws no texts: leave --prompts out, or give"),
        (["no-model", "--prompts", "p.txt"], "no model no-model"),
        ([*p, "--seed", "1", "1"], "--seed: one seed is there twice"),
        ([*p, "--num", "3"], "--num is for models of classes: leave it out with --prompts."),
        ([*p, "--against-steps", "3"], "--against-steps is for the models of --against, which is missing."),
        ([*p, "--json", "out.txt"], "--json must end in .json, got out.txt."),
        ([*p, "--out", "out.jpg"], "--out must end in .png, got out.jpg."),
        ([*p, "--features", "clip"], "--features clip: give a CLIP too, --clip FOLDER."),
    ):
        assert message in complaint(capsys, "evaluate", *options), message


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_what_does_not_fit_the_model_is_refused_before_anything_is_compiled(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("cmjax.cli.evaluate.text_measure.compile_batches", None)
    write_npz("wide.npz", images=np.zeros((6, 8, 9, 3), np.uint8))
    write_npz("few.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    write_npz("stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "texts").mkdir()
    write_json(read_json("clip/config.json")["text_config"], "texts/config.json")
    p = ["model", "--prompts", "p.txt"]
    for options, message in (
        ([*p, "--against", "fashion-mnist-cm"], "fashion-mnist-cm draws no texts"),
        ([*p, "--against", "emoji"], "--against: emoji draws pictures of 64x64 pixels, but model of 8x8"),
        ([*p, "--clip", "no-clip"], "--clip: no model no-clip"),
        ([*p, "--clip", "texts"], "--clip: texts/config.json is for CLIPTextModelWithProjection, half a CLIP or none"),
        ([*p, "--features", "emoji-classifier"], "sees images of (64, 64, 3), got (8, 8, 3)"),
        ([*p, "--data", "wide.npz"], "--data: the pictures are (8, 9, 3), but the model draws (8, 8, 3)"),
        ([*p, "--data", "few.npz"], "--data: both halves need at least 2 pictures, got 3 in all."),
        ([*p, "--reference", "stats.npz"], "the statistics are of 3 features, but latents has 64"),
        ([*p, "--lora", "no.safetensors"], "no.safetensors"),
        ([*p, "--steps", "2000"], "--steps must be between 1 and"),
    ):
        assert message in complaint(capsys, "evaluate", *options), message
