"""The recipes that benchmarks time in plain PyTorch are those of the methods: the same losses and gradients."""

from __future__ import annotations

import importlib
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unets
from shapes import shaped

from cmjax import training
from cmjax.io.weights import file_tensors, load_weights
from cmjax.models import UNet, from_nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# Later methods have no twin there yet.
TWINS = ("edm", "vp", "ect", "ict", "ct", "cd", "sct", "scd", "pd", "tcd", "lcd")
STEPS = 12000  # past the end of a run curricula stay where they ended: there a recipe's numbers are


@pytest.fixture(scope="module")
def theirs(pytestconfig: pytest.Config) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
        return importlib.import_module("training_torch")


class Replayed:
    """A source of random numbers that gives out recorded ones, in their order and whatever they are asked to be."""

    def __init__(self, recorded):
        self.recorded = iter(recorded)

    def __getattr__(self, name):
        return lambda *args, **kwargs: self._next()

    def _next(self):
        value = np.array(next(self.recorded))
        value = value.astype(np.int64) if value.dtype.kind == "i" else value
        return torch.from_numpy(value.transpose(0, 3, 1, 2).copy() if value.ndim == 4 else value)


@pytest.fixture
def recorded(monkeypatch):
    """All that `jax.random` draws, in order."""
    draws = []

    def recording(draw):
        return lambda *args, **kwargs: draws.append(draw(*args, **kwargs)) or draws[-1]

    for name in ("normal", "uniform", "truncated_normal", "randint"):
        monkeypatch.setattr(jax.random, name, recording(getattr(jax.random, name)))
    return draws


def pair(seed):
    """One small network with attention, on both sides."""
    options = unets.SMALLEST | {"down_block_types": ("AttnDownBlock2D",), "in_channels": 1, "out_channels": 1}
    config = unets.config(**options, sample_size=8, attention_head_dim=4, resnet_time_scale_shift="scale_shift")
    torch.manual_seed(seed)
    net = diffusers.UNet2DModel.from_config(config.to_dict()).eval()
    abstract = shaped(lambda rngs: UNet(config, rngs=rngs))
    return net, from_nnx(load_weights(abstract, {key: value.numpy() for key, value in net.state_dict().items()}))


def test_every_recipe_in_plain_pytorch_is_held(theirs):
    assert set(theirs.RECIPES) == set(TWINS)


@pytest.mark.parametrize("name", TWINS)
def test_a_recipe_in_plain_pytorch_has_the_loss_and_the_gradient_of_its_method(name, theirs, recorded):
    method, config = training.METHODS[name](), training.METHODS[name].config_type()
    (net, model), (their_target, target), (their_teacher, teacher) = (pair(seed) for seed in range(3))
    decay = method.target_decay(STEPS, STEPS)
    assert theirs.TARGETS.get(name) == (decay if decay is None else pytest.approx(float(decay), abs=1e-4))
    assert (name in theirs.TAUGHT) == method.needs_teacher
    x0 = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    labels = np.array([0, 3, 4])

    @jax.jit
    def ours(model, target, teacher):
        def objective(model):
            recorded.clear()  # of what the networks' weights took
            taught = (teacher, config if isinstance(config, method.teacher_type) else method.teacher_type())
            taught = taught if method.needs_teacher else None
            learner = training.methods.Learner(model, model if decay is None else target, config, taught)
            loss = method.loss(learner, jnp.asarray(x0), jnp.asarray(labels), jax.random.key(1), STEPS, STEPS)
            return loss.mean(), (loss, tuple(recorded))

        return jax.value_and_grad(objective, has_aux=True)(model)

    (_, (loss, draws)), gradient = ours(model, target, teacher)
    if name in theirs.FORWARD:
        theirs.attend_contiguously(net)
    learner = theirs.Learner(
        net, net if decay is None else their_target, their_teacher if method.needs_teacher else None
    )
    images = torch.from_numpy(x0.transpose(0, 3, 1, 2).copy())
    their_loss = theirs.RECIPES[name](learner, images, torch.from_numpy(labels), Replayed(draws))
    their_loss.mean().backward()

    np.testing.assert_allclose(loss, their_loss.detach().numpy(), rtol=1e-4)
    for key, value in file_tensors(gradient.module).items():
        expected = net.get_parameter(key).grad.numpy()
        assert np.abs(value - expected).max() <= 1e-3 * np.abs(expected).max() + 1e-6, key
