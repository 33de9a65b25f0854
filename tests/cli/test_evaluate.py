"""`cmjax evaluate`: the figures of what `cmjax sample` draws, beside those of real images, and its complaints."""

import json
import os
import sys

import jax
import numpy as np
import pytest
import tiny
from commands import complaint

import cmjax
from cmjax.cli import main
from cmjax.evaluation import Moments, frechet_distance, halves, precision_recall, read_statistics
from cmjax.io import write_npz

EYES = '''
import jax.numpy as jnp
from cmjax._struct import Struct
from cmjax.evaluation import Features

class Projection(Struct):
    matrix: object

    def __call__(self, images):
        return Features(images.reshape(len(images), -1) @ self.matrix, images[:, 0, :3, 0])

def pixels():
    """Sixty-four features are the image, and its first three pixels tell three classes apart."""
    return Projection(jnp.eye(64))

def few():
    return lambda images: Features(images[:, 0, :2, 0])

def flat():
    return lambda images: images.reshape(len(images), -1)

def blind():
    return lambda images: Features(images[:, 0, :, 0] / 0.0)

def number():
    return 3

def colours():
    return lambda images: Features(images @ jnp.ones((3, 2)))
'''
PIXELS = ["--features", "evaluate_eyes:pixels"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in a folder of its own, with a model, data, and extractors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    cmjax.save(tiny.checkpoint(), "model")
    with open("evaluate_eyes.py", "w") as file:
        file.write(EYES)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    write_npz("data.npz", images=images, labels=np.arange(40) % 3)


def evaluate(*options):
    """In batches of 4, so that most tests run the same compiled programs."""
    given = ["--data", "data.npz", "--batch", "4", "--json", "out.json", *PIXELS]
    assert main(["evaluate", "model", *given, *options]) == 0
    with open("out.json") as file:
        return json.load(file)


def seen(images):
    return (images.reshape(len(images), -1).astype(np.float32) / np.float32(127.5) - 1).astype(np.float64)


def expected(features, real):
    distance = frechet_distance(Moments.none(64).update(features), Moments.none(64).update(real))
    n = min(len(features), len(real))
    return distance, *precision_recall(real[:n], features[:n])


@pytest.mark.slow
def test_the_figures_are_those_of_what_sample_draws(capsys):
    """By the library's functions, from the arrays that another command wrote; batches of 4 leave 3 over."""
    found = evaluate("--num", "11", "--seed", "5")
    said = capsys.readouterr().out
    assert main(["sample", "--model", "model", "--num", "11", "--seed", "5", "--batch", "4", "--out", "drawn.npz"]) == 0
    drawn, data = np.load("drawn.npz"), np.load("data.npz")
    half, others = halves(data["labels"], 40)
    figures = found["samples"][0]
    names = ("frechet_distance", "precision", "recall")
    real = seen(data["images"][half])
    for got, features in ((figures, seen(drawn["images"])), (found["real"], seen(data["images"][others[:11]]))):
        assert [got[name] for name in names] == pytest.approx(expected(features, real), rel=1e-3)
    guesses = drawn["images"][:, 0, :3, 0].argmax(axis=-1)
    assert figures["class_accuracy"] == pytest.approx((guesses == drawn["labels"]).mean())
    guesses = data["images"][others[:11], 0, :3].argmax(axis=-1)
    assert found["real"]["class_accuracy"] == pytest.approx((guesses == data["labels"][others[:11]]).mean())
    assert (found["sampler"], found["steps"], found["seeds"], found["images_a_seed"]) == ("cm", 2, [5], 11)
    assert found["extractor"] == {"name": PIXELS[1], "features": 64, "classes": 3}
    assert found["data"] == {"path": "data.npz", "split": "test", "images": 40, "labels": True}
    assert found["notes"] == ["no more images than features (64): the distance is far too large; take more"]
    for text in ("Frechet distance", "precision", "recall", "class accuracy", "11 of seed 5", "64 features, 3 classes"):
        assert text in said
    assert sorted(os.listdir()) == ["data.npz", "drawn.npz", "evaluate_eyes.py", "model", "out.json"]


@pytest.mark.slow
def test_seeds_are_drawn_one_by_one_and_batches_change_nothing(capsys):
    several = evaluate("--num", "10", "--seed", "1", "2")
    for i, batch in enumerate(("4", "10")):
        alone = evaluate("--num", "10", "--seed", str(i + 1), "--batch", batch)
        for name, value in alone["samples"][0].items():
            assert several["samples"][i][name] == pytest.approx(value, rel=1e-3), name
    one, two = (figures["frechet_distance"] for figures in several["samples"])
    assert one != two
    assert several["mean"]["frechet_distance"] == pytest.approx((one + two) / 2)
    assert several["standard_deviation"]["frechet_distance"] == pytest.approx(abs(one - two) / 2**0.5)
    assert alone["standard_deviation"]["frechet_distance"] is None
    assert "samples ± std" in capsys.readouterr().out


@pytest.mark.slow
def test_statistics_are_kept_and_used_again():
    evaluate("--num", "8", "--save-statistics", "stats.npz")
    saved, everything = read_statistics("stats.npz"), Moments.none(64).update(seen(np.load("data.npz")["images"]))
    np.testing.assert_allclose(saved.mean, everything.mean, atol=1e-6)
    np.testing.assert_allclose(saved.covariance, everything.covariance, atol=1e-6)
    with_both = evaluate("--num", "8", "--reference", "stats.npz")
    options = [
        "evaluate",
        "model",
        "--reference",
        "stats.npz",
        "--num",
        "8",
        "--batch",
        "4",
        *PIXELS,
        "--json",
        "alone.json",
    ]
    assert main(options) == 0
    with open("alone.json") as file:
        alone = json.load(file)
    assert alone["real"] is alone["data"] is alone["mean"]["precision"] is None
    assert alone["mean"]["frechet_distance"] == pytest.approx(with_both["mean"]["frechet_distance"], rel=1e-6)
    assert main(["sample", "--model", "model", "--num", "8", "--batch", "4", "--out", "drawn.npz"]) == 0
    found = frechet_distance(Moments.none(64).update(seen(np.load("drawn.npz")["images"])), saved)
    assert alone["mean"]["frechet_distance"] == pytest.approx(found, rel=1e-3)


@pytest.mark.slow
def test_data_without_labels_and_an_extractor_without_classes():
    write_npz("data.npz", images=np.load("data.npz")["images"])
    found = evaluate("--num", "30")
    assert found["real"]["class_accuracy"] is None
    assert found["real"]["images"] == 20
    assert found["samples"][0]["class_accuracy"] is not None
    notes = " ".join(found["notes"])
    assert "real figures are of 20 images" in notes
    assert "the data has no labels: no class accuracy of real images" in notes
    found = evaluate("--features", "evaluate_eyes:few")
    assert found["images_a_seed"] == 20  # as many as there are real ones to compare
    assert found["notes"] == ["no class accuracy: the model has 3 classes, the extractor none"]
    assert found["samples"][0]["class_accuracy"] is None


def test_mistakes_in_evaluating(capsys):
    images = np.load("data.npz")["images"]
    write_npz("wide.npz", images=np.zeros((9, 8, 9), np.uint8))
    write_npz("small.npz", images=images[:6])
    write_npz("labels.npz", images=images, labels=np.arange(40) % 4)
    write_npz("train.npz", train_images=images)
    write_npz("stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    data = ["--data", "data.npz"]
    for options, message in (
        ([], "say what the images are compared with: --data, --reference, or both."),
        (["--data", "no.npz", *PIXELS], "no.npz does not exist"),
        (["--data", "train.npz", *PIXELS], "it must hold an array named 'test_images', but it holds train_images"),
        (["--data", "wide.npz", *PIXELS], "--data: the images are (8, 9, 1), but the model makes (8, 8, 1)"),
        (["--data", "labels.npz", *PIXELS], "--data: the labels go to 3, but the model has 3 classes, 0 ... 2."),
        (["--data", "small.npz", *PIXELS], "--data: half of it, 3 images, must be more than the 3 neighbours"),
        ([*data, "--num", "3", *PIXELS], "--num must be more than the 3 neighbours of precision and recall, got 3."),
        ([*data, "--seed", "1", "1", *PIXELS], "--seed: one seed is there twice"),
        (["--reference", "no.npz", *PIXELS], "there is no file of statistics no.npz"),
        (["--reference", "data.npz", *PIXELS], "data.npz is not an .npz file with arrays mu f[d]"),
        (["--reference", "stats.npz", *PIXELS], "the statistics are of 3 features, but evaluate_eyes:pixels has 64"),
        (["--reference", "stats.npz", "--save-statistics", "a.npz"], "--save-statistics: they are those of the images"),
        (data, "sees images of (28, 28, 1), got (8, 8, 1). Name an extractor of your own: --features package."),
        ([*data, "--features", "inception"], "'emoji-classifier' or a 'module:make'"),
        ([*data, "--features", "no_such_module:make"], "--features: No module named 'no_such_module'"),
        ([*data, "--features", "evaluate_eyes:no"], "the module evaluate_eyes has nothing named 'no'"),
        ([*data, "--features", "evaluate_eyes:PIXELS"], "has nothing named 'PIXELS'"),
        ([*data, "--features", "evaluate_eyes:number"], "must return an extractor, which can be called, got a int"),
        ([*data, "--features", "evaluate_eyes:flat"], "must return cmjax.evaluation.Features, got ShapeDtypeStruct"),
        ([*data, "--features", "evaluate_eyes:colours"], "--features: dot_general requires contracting dimensions"),
        ([*data, "--json", "out.txt"], "--json must end in .json, got out.txt."),
        ([*data, "--json", "missing/out.json"], "--json: cannot write missing/out.json: the folder missing does not"),
        ([*data, "--save-statistics", "./data.npz"], "--save-statistics: ./data.npz is also the file of --data, which"),
        ([*data, "--save-statistics", "stats"], "--save-statistics must end in .npz, got stats."),
        ([*data, "--sampler", "tcd", "--steps", "2000", *PIXELS], ": --steps must be between 1 and"),
    ):
        assert message in complaint(capsys, "evaluate", "model", *options)


def test_nan_of_an_extractor_or_a_model_is_said(capsys):
    said = complaint(
        capsys, "evaluate", "model", "--data", "data.npz", "--batch", "4", "--features", "evaluate_eyes:blind"
    )
    assert "--features: the extractor's features of 4 of 4 images are NaN or infinite." in said
    model, config = tiny.checkpoint()
    cmjax.save((jax.tree.map(lambda leaf: leaf * np.nan, model), config), "broken")
    said = complaint(capsys, "evaluate", "broken", "--data", "data.npz", "--batch", "4", "--json", "a.json", *PIXELS)
    assert "the model: 4 of 4 images hold NaN or infinity." in said
