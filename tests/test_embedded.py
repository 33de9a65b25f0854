"""The models in the package: a classifier sees what was asked for, in pictures that are neither blurs nor noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.evaluation import load_extractor

STEPS = {"fashion-mnist-cm": 2, "fashion-mnist-tcd": 4}


@pytest.mark.parametrize("name", ["fashion-mnist-cm", pytest.param("fashion-mnist-tcd", marks=pytest.mark.slow)])
def test_a_model_of_the_package_draws_what_it_is_asked_for(name):
    model, config = cmjax.load(name)
    state = cmjax.samplers.sampler_of(config).init(config, STEPS[name])
    labels = jnp.arange(100) % 10
    draw = jax.jit(cmjax.generate, static_argnames="shape")
    images = draw(model, state, jax.random.split(jax.random.key(0), 100), shape=(100, 28, 28, 1), cond=labels)
    seen = load_extractor("fashion-mnist-classifier")(images)
    assert (np.asarray(seen.logits).argmax(1) == np.asarray(labels)).mean() >= 0.75  # of real pictures .9
    x = np.asarray(images)[..., 0]
    edges = np.abs(4 * x[:, 1:-1, 1:-1] - x[:, 1:-1, :-2] - x[:, 1:-1, 2:] - x[:, :-2, 1:-1] - x[:, 2:, 1:-1]).mean()
    assert 0.33 < edges < 0.8  # of the test pictures .48; of class means .11
