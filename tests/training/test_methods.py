"""Every method in the trainer: one value per example, a teacher where there is one, and no recompilation on the way."""

import dataclasses

import jax
import numpy as np
import pytest
import toy

import cmjax
from cmjax import training

RUNS = {name: kind() for name, kind in training.METHODS.items()}


def small(name):
    """A run of a method that is over in sixteen steps."""
    return dataclasses.replace(toy.RECIPE, method=RUNS[name], steps=16, batch_size=4)


def model_of(name):
    return toy.model() if name in toy.SAMPLED else toy.autoencoder()


def teacher_of(name):
    method = RUNS[name]
    own = issubclass(method.config_type, method.teacher_type)  # or noise levels of another class
    return (toy.model(), (method.config_type if own else method.teacher_type)()) if method.needs_teacher else None


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_every_method_moves_the_weights_stays_finite_and_is_traced_once(name, tmp_path, monkeypatch):
    method, traces = RUNS[name], []
    loss = type(method).loss
    monkeypatch.setattr(type(method), "loss", lambda *args, **kwargs: traces.append(1) or loss(*args, **kwargs))
    with jax.numpy_rank_promotion("allow"):
        state = training.train(
            model_of(name), method.config_type(), toy.IMAGES, toy.LABELS,
            recipe=small(name), teacher=teacher_of(name), out=tmp_path, report_every=8,
        )  # fmt: skip
    assert len(traces) == 1
    before, after = jax.tree.leaves(model_of(name)), jax.tree.leaves(state.model)
    assert all(np.isfinite(leaf).all() for leaf in after)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, after, strict=True))
    entries = training.read_log(tmp_path / "log.jsonl")
    assert [entry["step"] for entry in entries] == [8, 16]
    assert entries[0].keys() == {"step", "loss", "images_per_second", "learning_rate", *method.figures(0, 16)}


@pytest.mark.parametrize("name", [name for name, method in RUNS.items() if method.needs_teacher])
def test_a_method_with_a_teacher_needs_it(name):
    with pytest.raises(ValueError, match=f"{type(RUNS[name]).__name__} distils a teacher: give teacher="):
        training.train(toy.model(), RUNS[name].config_type(), toy.IMAGES, recipe=small(name))


def test_the_target_of_the_first_recipe_lags_behind():
    state = training.init(toy.model(), small("ct"))
    assert state.target is not None and training.init(toy.model(), small("ect")).target is None
    with jax.numpy_rank_promotion("allow"):
        state, _ = training.train_step(
            state, toy.IMAGES[:4], None, jax.random.key(0), recipe=small("ct"), config=toy.CONFIG
        )
    start, model, target = (np.asarray(tree.args[0]["bias"]) for tree in (toy.model(), state.model, state.target))
    decay = float(RUNS["ct"].target_decay(0, 16))
    np.testing.assert_allclose(target, decay * start + (1 - decay) * model, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (training.METHODS["cd"], "num_scales", 1),
        (training.METHODS["cd"], "decay", 1.0),
        (training.METHODS["pd"], "num_steps", 0),
        (training.METHODS["edm"], "proposal_std", 0.0),
    ],
)
def test_numbers_that_cannot_work_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name} must "):
        kind(**{name: value})


def test_each_halving_follows_the_student_of_the_one_before():
    """At a stage's end the target becomes the student, and in no other step does it move."""
    method = training.ProgressiveDistillation(num_steps=2, stages=(2.0, 1.0, 1.0))
    recipe = dataclasses.replace(small("pd"), method=method, steps=8)
    assert [method.figures(k, 8)["num_steps"] for k in range(8)] == [8, 8, 8, 8, 4, 4, 2, 2]
    state, targets, models = training.init(toy.model(), recipe), [], []
    teacher = jax.tree.map(lambda leaf: leaf + 0.5, toy.model())
    with jax.numpy_rank_promotion("allow"):
        for _ in range(8):
            state, _ = training.train_step(
                state, toy.IMAGES[:4], None, jax.random.key(0), teacher,
                recipe=recipe, config=toy.CONFIG, teacher_config=toy.CONFIG,
            )  # fmt: skip
            targets.append(toy.bits(state.target))
            models.append(toy.bits(state.model))
    assert targets == [toy.bits(toy.model())] * 3 + [models[3]] * 2 + [models[5]] * 3


def test_later_halvings_ask_the_student_and_not_the_teacher():
    method = training.ProgressiveDistillation(num_steps=1, stages=(1.0, 1.0))
    x0, key = toy.IMAGES[:4] / np.float32(127.5) - 1, jax.random.key(0)

    @jax.jit
    def loss(teacher, target, step):
        learner = training.Learner(toy.model(), target, toy.CONFIG, (teacher, toy.CONFIG))
        return method.loss(learner, x0, None, key, step, 4)

    with jax.numpy_rank_promotion("allow"):
        one, other = toy.model(), jax.tree.map(lambda leaf: leaf + 0.5, toy.model())
        first, second = loss(one, other, 0), loss(one, other, 2)
        np.testing.assert_array_equal(first, loss(one, one, 0))
        np.testing.assert_array_equal(second, loss(other, other, 2))
        assert (first != loss(other, other, 0)).all() and (second != loss(one, one, 2)).all()


def test_more_halvings_than_steps_are_refused():
    method = training.ProgressiveDistillation(stages=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"stages \[1.0, 1.0, 1.0\] of 2 steps last \[1, 0, 1\] steps: each needs one"):
        dataclasses.replace(toy.RECIPE, method=method, steps=2)


def test_the_rate_falls_in_each_halving_and_once_in_other_runs():
    method = training.ProgressiveDistillation(stages=(1.0, 2.0))
    assert method.spans(30) == (10, 20) and RUNS["ect"].spans(30) == (30,)
    optimizer = training.Optimizer(learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=0, hold=0.0)
    rate = optimizer.schedule(*method.spans(30))
    np.testing.assert_allclose([rate(k) for k in (0, 5, 10, 20, 30)], [1e-3, 1e-4, 1e-3, 1e-4, 1e-5], rtol=1e-5)


def test_gradients_of_any_norm_pass_where_none_are_clipped():
    grads = {"w": np.full(4, 1e6, np.float32)}
    plain, clipped = (training.Optimizer(clip_norm=norm).transformation(9) for norm in (0.0, 1.0))
    moments = [jax.tree.leaves(t.update(grads, t.init(grads), grads)[1]) for t in (plain, clipped)]
    largest = [max(float(np.abs(leaf).max()) for leaf in leaves) for leaves in moments]
    assert largest[0] > 1e5 and largest[1] < 10


def test_nothing_is_followed_by_distances_of_no_length():
    """0 says in a file what None says in Python: no average as the target, no length of the Huber distance."""
    assert training.METHODS["tcd"](decay=0.0).target_decay(0, 9) is None
    learner = training.Learner(toy.model(), toy.model(), RUNS["lcd"].config_type(), teacher_of("lcd"))
    x0 = toy.IMAGES[:4] / np.float32(127.5) - 1
    with jax.numpy_rank_promotion("allow"):
        zero, none = (
            training.METHODS["lcd"](huber_c=c).loss(learner, x0, None, jax.random.key(0), 0, 9) for c in (0.0, None)
        )
    np.testing.assert_array_equal(zero, none)


def test_a_teacher_may_be_of_an_ordinary_sampler():
    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    method = training.METHODS["tcd"]()
    method.check_teacher(cmjax.tcd.TCDConfig(), cmjax.ddim.DDIMConfig(**table))
    with pytest.raises(ValueError, match=r"beta_end must be the teacher's, 0.02, got 0.012"):
        method.check_teacher(cmjax.tcd.TCDConfig(), cmjax.ddim.DDIMConfig(**(table | {"beta_end": 0.02})))
    with pytest.raises(ValueError, match="the teacher's config must be a VPConfig for TrajectoryDistillation"):
        method.check_teacher(cmjax.tcd.TCDConfig(), cmjax.cm.CMConfig())
