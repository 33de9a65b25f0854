"""Training of autoencoders: resume to the same bits, a loss that falls, and what is refused."""

import dataclasses

import numpy as np
import pytest
import toy

from cmjax import training

RECIPE = dataclasses.replace(toy.RECIPE, method=training.Autoencoding(kl=1e-3))


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path):
    whole = training.train(toy.autoencoder(), None, toy.IMAGES, recipe=RECIPE, out=tmp_path / "whole")

    def stop(state):
        if int(state.step) == 5:
            raise KeyboardInterrupt

    given = {"recipe": RECIPE, "out": tmp_path / "half", "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        training.train(toy.autoencoder(), None, toy.IMAGES, **given, on_checkpoint=stop)
    resumed = training.train(toy.autoencoder(), None, toy.IMAGES, **given, resume=True)
    assert toy.bits(resumed) == toy.bits(whole)
    other = dataclasses.replace(RECIPE, method=training.Autoencoding(kl=1e-2))
    with pytest.raises(ValueError, match=r"followed a recipe with autoencoder.kl = 0.001, not 0.01"):
        training.train(toy.autoencoder(), None, toy.IMAGES, **{**given, "recipe": other}, resume=True)


def test_an_autoencoder_learns():
    reports = []
    optimizer = training.Optimizer(learning_rate=3e-2, warmup_steps=2, hold=1.0)
    recipe = dataclasses.replace(RECIPE, method=training.Autoencoding(edges=0.0), steps=100, optimizer=optimizer)
    images = np.full((16, 4, 4, 1), 230, np.uint8)
    training.train(toy.autoencoder(), None, images, recipe=recipe, report_every=25, on_progress=reports.append)
    assert reports[-1].loss < 0.7 * reports[0].loss


def test_another_model_or_a_config_is_refused():
    with pytest.raises(ValueError, match="config must be None for Autoencoding, got CMConfig"):
        training.train(toy.autoencoder(), toy.CONFIG, toy.IMAGES, recipe=RECIPE)
    with pytest.raises(ValueError, match=r"model must be an autoencoder, such as .*, got a Partial"):
        training.train(toy.model(), None, toy.IMAGES, recipe=RECIPE)
    recipe = dataclasses.replace(RECIPE, method=training.EasyConsistencyTuning())
    with pytest.raises(ValueError, match="config must be a CMConfig for EasyConsistencyTuning, got NoneType"):
        training.train(toy.model(), None, toy.IMAGES, recipe=recipe)
