"""Teachers that learn without labels too, and students of a guided teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

import cmjax
from cmjax import losses, training
from cmjax.training import METHODS, Learner
from cmjax.training.methods.guidance import guided, no_label, some_left_out

NETWORK = tiny.checkpoint(classes=3).model
VP = cmjax.tcd.TCDConfig(prediction_type="v_prediction")
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)), jnp.float32)
LABELS = jnp.array([0, 2, 1, 2])


def test_a_share_of_the_labels_is_left_out():
    labels = jnp.arange(6000) % 3
    mixtures = np.asarray(some_left_out(NETWORK, labels, jax.random.key(0), 0.2)[0])
    left_out = (mixtures == np.float32(1 / 3)).all(1)
    assert left_out.mean() == pytest.approx(0.2, abs=0.02)
    np.testing.assert_array_equal(mixtures[~left_out].argmax(1), np.asarray(labels)[~left_out])
    np.testing.assert_allclose(mixtures.sum(1), 1.0, rtol=1e-6)
    assert (mixtures[~left_out].max(1) == 1).all()


def test_nothing_is_left_out_of_a_share_of_none():
    cond, key = some_left_out(NETWORK, LABELS, jax.random.key(0), 0.0)
    assert cond is LABELS and key == jax.random.key(0)


def test_a_mixture_of_one_class_is_that_class():
    mixtures = jax.nn.one_hot(LABELS, 3)
    call = jax.jit(lambda cond: NETWORK(IMAGES, jnp.float32(3.0), cond))
    np.testing.assert_allclose(call(mixtures), call(LABELS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_teacher_is_guided_away_from_no_label(scale):
    (teacher, config), labels = guided((NETWORK, VP), LABELS, scale)
    assert config is VP
    ours = jax.jit(lambda labels: teacher(IMAGES, jnp.int32(500), labels))(labels)
    none = jnp.broadcast_to(no_label(3), (4, 3))
    apart = jax.jit(lambda cond: NETWORK(IMAGES, jnp.int32(500), cond))
    np.testing.assert_allclose(ours, apart(none) + scale * (apart(LABELS) - apart(none)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tcd", "lcd", "cd"])
def test_students_follow_the_guided_teacher(name):
    """At the lowest level of a one-level grid and so on, only the teacher differs: with a scale of 1 nothing does."""
    config = METHODS[name].config_type(**({} if name == "cd" else {"prediction_type": "v_prediction"}))
    learner = Learner(NETWORK, NETWORK, config, (NETWORK, config if name != "lcd" else VP))

    def loss(**options):
        method = METHODS[name](**options)
        return jax.jit(lambda: method.loss(learner, IMAGES, LABELS, jax.random.key(0), jnp.int32(0), 10))()

    plain = loss()
    np.testing.assert_array_equal(loss(guidance_scale=1.0), plain)
    assert (np.asarray(loss(guidance_scale=4.0)) != np.asarray(plain)).any()


@pytest.mark.slow
def test_the_guided_loss_is_that_of_the_paper_s_teacher():
    learner = Learner(NETWORK, NETWORK, VP, (NETWORK, VP))
    key = jax.random.key(1)
    ours = METHODS["tcd"](guidance_scale=2.5).loss(learner, IMAGES, LABELS, key, jnp.int32(0), 10)
    g = cmjax.tcd.trajectory_fn(NETWORK, VP)
    labels = jax.nn.one_hot(LABELS, 3)
    teacher = cmjax.tcd.trajectory_fn(cmjax.guidance.classifier_free(NETWORK, 2.5, jnp.full((3,), 1 / 3)), VP)
    theirs = losses.trajectory_distillation(g, g, teacher, IMAGES, key, cond=labels)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(("name", "option"), [("edm", "label_dropout"), ("vp", "label_dropout")])
def test_teachers_leave_labels_out(name, option):
    config = METHODS[name].config_type()
    learner = Learner(NETWORK, NETWORK, config)

    def loss(share):
        method = METHODS[name](**{option: share})
        return method.loss(learner, IMAGES, LABELS, jax.random.key(0), jnp.int32(0), 10)

    assert (np.asarray(loss(0.9)) != np.asarray(loss(1e-9))).any()


@pytest.mark.parametrize(
    ("model", "labels"), [(NETWORK, None), (toy.model(), LABELS), (tiny.checkpoint(classes=None).model, LABELS)]
)
def test_without_labels_or_classes_it_is_refused(model, labels):
    with pytest.raises(ValueError, match="label_dropout needs labels, and a "):
        some_left_out(model, labels, jax.random.key(0), 0.1)
    with pytest.raises(ValueError, match="guidance_scale needs labels"):
        guided((model, VP), labels, 2.0)


@pytest.mark.parametrize(("name", "values"), [("label_dropout", [-0.1, 1.0]), ("guidance_scale", [0.0, -1.0])])
def test_numbers_that_cannot_work_are_refused(name, values):
    for method in METHODS.values():
        if hasattr(method(), name):
            for value in values:
                with pytest.raises(ValueError, match=f"{name} must"):
                    method(**{name: value})
    assert sum(hasattr(method(), name) for method in training.METHODS.values()) >= 2
