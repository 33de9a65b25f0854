"""Methods on texts: the teacher is guided from the empty text beside each, by one scale or by one for each example."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from texts import text_model

import cmjax
from cmjax import losses, schedules, training
from cmjax.guidance import WithNull
from cmjax.models import from_function
from cmjax.models.text_cond import TextCond
from cmjax.training import METHODS, Learner
from cmjax.training.methods.guidance import drawn_scales, some_left_out

VP = cmjax.tcd.TCDConfig(prediction_type="v_prediction")
RNG = np.random.default_rng(0)
X0, KEY = jnp.asarray(RNG.normal(size=(6, 3, 3, 2)), jnp.float32), jax.random.key(5)
TEXTS = jnp.asarray(RNG.normal(size=(6, 4, 2)), jnp.float32)
COND = WithNull(TextCond(TEXTS), TextCond(jnp.ones_like(TEXTS)))


def network(w, x, t, cond, key=None):
    told = cond.context.mean(1) * (1.0 if cond.guidance is None else 1.0 + 0.1 * cond.guidance[:, None])
    return jnp.sin(w * x + told[:, None, None] + 0.002 * t.astype(jnp.float32).reshape(-1, 1, 1, 1))


STUDENT, TARGET, TEACHER = (from_function(network, params=jnp.float32(w)) for w in (0.9, 0.6, 0.4))


def loss_of(name, cond=COND, **options):
    return np.asarray(loss_array(name, cond, **options))


def loss_array(name, cond=COND, **options):
    method = METHODS[name](**options)
    learner = Learner(STUDENT, TARGET, method.kind_of(VP)(prediction_type="v_prediction"), (TEACHER, VP))
    return method.loss(learner, X0, cond, KEY, jnp.int32(0), 8)


def by_hand(scale, key, student_cond=None, **options):
    """The trajectory loss with the guidance written out."""

    def guided(x, t, cond):
        full, empty = (TEACHER(x, t, one) for one in (COND.cond, COND.null_cond))
        return empty + jnp.reshape(jnp.asarray(scale, jnp.float32), (-1, 1, 1, 1)) * (full - empty)

    g, g_target, teacher = (cmjax.tcd.trajectory_fn(model, VP) for model in (STUDENT, TARGET, guided))
    return losses.trajectory_distillation(g, g_target, teacher, X0, key, cond=COND.cond, **options)


def test_the_teacher_is_guided_from_the_empty_text():
    np.testing.assert_allclose(loss_of("tcd", guidance_scale=3.0), by_hand(3.0, KEY), rtol=1e-3)
    np.testing.assert_array_equal(loss_of("tcd"), loss_of("tcd", COND.cond))  # by 1, not at all


def test_each_example_has_a_scale_of_its_own():
    key, scale_key = jax.random.split(KEY)
    scales = drawn_scales(scale_key, (2.0, 9.0), 6)
    assert len(set(np.asarray(scales).tolist())) == 6 and 2 <= scales.min() < 3 < 5 < scales.max() <= 9
    np.testing.assert_allclose(loss_of("tcd", guidance_range=(2.0, 9.0)), by_hand(scales, key), rtol=1e-3)
    for name, options in (("pcm", {"segments": 3, "to_start": True}), ("tscd", {"segments": 8})):
        own = {"phases": 3} if name == "pcm" else {}
        np.testing.assert_allclose(
            loss_of(name, guidance_range=(2.0, 9.0), skip=3, **own), by_hand(scales, key, skip=3, **options), rtol=1e-3
        )


def test_a_student_of_many_scales_is_told_them():
    told = loss_of("lcd", guidance_range=(2.0, 9.0), tell_guidance=True)
    assert not np.allclose(told, loss_of("lcd", guidance_range=(2.0, 9.0)))
    fixed, one = (
        loss_of("lcd", tell_guidance=True, **o) for o in ({"guidance_scale": 3.0}, {"guidance_range": (3, 3)})
    )
    assert fixed.shape == one.shape == (6,)
    with pytest.raises(ValueError, match="tell_guidance needs conditions with a guidance, such as a TextCond"):
        loss_of("lcd", WithNull(TEXTS, TEXTS), tell_guidance=True)


def test_continuous_time_is_a_float64_replay_with_finite_differences():
    """Timesteps as angles, a scale for each example, and the tangent along the guided teacher's velocity."""
    key, scale_key = jax.random.split(KEY)
    scales = np.float64(drawn_scales(scale_key, (2.0, 9.0), 6))
    value = jax.jit(lambda: loss_array("scd", guidance_range=(2.0, 9.0), warmup=0.0))()
    sigma_key, z_key, _ = jax.random.split(key, 3)
    angles = np.arctan2(*schedules.rates(schedules.alphas_cumprod())[::-1])
    sigma = losses.lognormal(0.5, 1.5)(sigma_key, (6,), *np.tan(angles[[0, -1]]))
    a, z = np.arctan(np.float64(sigma)), np.float64(jax.random.normal(z_key, X0.shape))
    texts = np.float64(TEXTS).mean(1)[:, None, None]

    def v(w, x, a, said):
        t = np.interp(a, angles, np.arange(1000))
        return np.sin(np.float64(np.float32(w)) * x + said + 0.002 * t.reshape(-1, 1, 1, 1))

    cos, sin, w = (part.reshape(-1, 1, 1, 1) for part in (np.cos(a), np.sin(a), scales))
    x = cos * np.float64(X0) + sin * z
    full, empty = v(0.4, x, a, texts), v(0.4, x, a, 1.0)
    dx, h = empty + w * (full - empty), 1e-6
    F = v(0.9, x, a, texts)
    slope = (v(0.9, x + h * dx, a + h, texts) - v(0.9, x - h * dx, a - h, texts)) / (2 * h)
    g = -(cos**2) * (F - dx) - cos * sin * (x + slope)
    g /= np.sqrt((g**2).sum((1, 2, 3), keepdims=True)) + 0.1
    np.testing.assert_allclose(value, (g**2).mean((1, 2, 3)), rtol=1e-3)


def test_continuous_time_leaves_the_teacher_alone():
    method, config = METHODS["scd"](guidance_scale=3.0), cmjax.lcm.LCMConfig(prediction_type="v_prediction")

    def loss(student, teacher):
        learner = Learner(student, student, config, (teacher, VP))
        return method.loss(learner, X0, COND, KEY, jnp.int32(4), 8).mean()

    own, its = jax.jit(jax.grad(loss, argnums=(0, 1)))(STUDENT, TEACHER)
    assert float(jax.tree.leaves(own)[0]) != 0.0 == float(jax.tree.leaves(its)[0])
    with pytest.raises(ValueError, match=r"beta_end must be the teacher's, 0\.012, got 0\.02"):
        method.check_teacher(dataclasses.replace(config, beta_end=0.02), VP)
    with pytest.raises(ValueError, match="the teacher's config must be a VPConfig for ContinuousDistillation, got CM"):
        method.check_teacher(config, cmjax.cm.CMConfig())
    assert method.kind_of(VP) is cmjax.lcm.LCMConfig and method.kind_of(cmjax.cm.CMConfig()) is cmjax.cm.CMConfig


def test_texts_are_dropped_for_the_empty_one():
    cond, _ = some_left_out(STUDENT, COND, jax.random.key(0), 0.5)
    kinds = [bool((a == b).all()) for a, b in zip(cond.context, COND.cond.context, strict=True)]
    assert 0 < sum(kinds) < 6
    assert all(one or (cond.context[i] == 1).all() for i, one in enumerate(kinds))
    assert np.isfinite(loss_of("vp", label_dropout=0.5)).all()
    assert not np.allclose(loss_of("vp", noise_offset=0.5), loss_of("vp"))


def test_a_grid_of_its_own_is_walked():
    np.testing.assert_allclose(
        loss_of("tcd", grid=1000, skip=20), by_hand(1.0, KEY, timesteps=np.arange(1000), skip=20), rtol=1e-3
    )
    np.testing.assert_array_equal(loss_of("tcd", grid=50), loss_of("tcd"))


def test_the_stages_of_segments_follow_one_another_in_one_program(tmp_path):
    method = training.SegmentedTrajectory(segments=(8, 2, 1), stages=(2, 1, 1))
    assert [method.figures(k, 8)["segments"] for k in range(8)] == [8] * 4 + [2] * 2 + [1] * 2
    recipe = training.Recipe(method=method, steps=8, batch_size=6)
    data = [(np.asarray(X0), COND)] * 8
    before = training.train_step._cache_size()
    state = training.train(STUDENT, VP, data, recipe=recipe, teacher=(TEACHER, VP), out=tmp_path, report_every=4)
    assert int(state.step) == 8 and training.train_step._cache_size() == before + 1
    assert [entry["segments"] for entry in training.read_log(tmp_path / "log.jsonl")] == [8, 1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tcd", {"guidance_range": (5.0,)}, r"guidance_range must be \(\) or two scales above 0"),
        ("tcd", {"guidance_range": (5.0, 2.0)}, r"guidance_range must be \(\) or two scales above 0"),
        ("lcd", {"guidance_range": (2.0, 5.0), "guidance_scale": 3.0}, "guidance_scale must be 1 where guidance_range"),
        ("pcm", {"phases": 0}, "phases must be at least 1"),
        ("tscd", {"segments": ()}, "segments must be one or more positive lengths"),
        ("tscd", {"stages": (1.0,)}, r"stages must be \(\) or one positive length for each of 4 segments"),
        ("tcd", {"grid": 0}, "grid must be at least 1"),
    ],
)
def test_numbers_that_cannot_work_are_refused(name, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        METHODS[name](**options)


def test_stages_need_steps_and_a_grid_its_timesteps():
    with pytest.raises(ValueError, match=r"stages of 3 steps last \[1, 1, 0, 1\] steps: each needs one"):
        dataclasses.replace(toy.RECIPE, method=training.SegmentedTrajectory(), steps=3)
    with pytest.raises(ValueError, match=r"grid must be at most 1000, the timesteps that there are, got 1001"):
        training.TrajectoryDistillation(grid=1001).check_teacher(VP, VP)


@pytest.mark.slow
def test_a_network_learns_to_be_told_the_scale():
    pipe = text_model()
    told = cmjax.text_to_image.tell_guidance(pipe, 8)
    x, cond = jnp.ones((2, 4, 4, 4)), pipe.encode(pipe.tokenize(["red", "fox"]))
    call = jax.jit(lambda unet, cond: unet(x, jnp.int32(500), cond))
    same = call(told.unet, cond.replace(guidance=jnp.array([2.0, 9.0])))
    np.testing.assert_allclose(same, call(pipe.unet, cond), rtol=1e-6)
    shared = {**told.unet.leaves()}
    assert shared.pop("time_embedding.cond_proj.kernel").shape == (8, 8)
    assert all(leaf is pipe.unet.leaves()[name] for name, leaf in shared.items())
    with pytest.raises(ValueError, match="must have a network that is not told the guidance scale, but its network is"):
        cmjax.text_to_image.tell_guidance(told)
    with pytest.raises(ValueError, match="dim must be even, sines and cosines, got 7"):
        cmjax.text_to_image.tell_guidance(pipe, 7)
    with pytest.raises(ValueError, match="pipe must have a whole network, without LoRAs and frozen parts"):
        cmjax.text_to_image.tell_guidance(cmjax.lora.attach(pipe, cmjax.lora.new(pipe, 2)))
