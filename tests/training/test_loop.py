"""The trainer: it learns, it resumes to the same bits, it loses nothing, it says what is wrong."""

import dataclasses
import importlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import tiny
from toy import CONFIG, IMAGES, LABELS, RECIPE, bits
from toy import model as toy_model

import cmjax
from cmjax import training
from cmjax.training.data import batch_indices


@pytest.fixture
def model():
    return toy_model()


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_rank_promotion("allow"):  # the toy network broadcasts
        yield


def test_a_run_learns_and_reports(model, tmp_path):
    reports = []
    # one picture, and much noise: there the network's bias can say it all
    method = training.EasyConsistencyTuning(stages=(1,), proposal_mean=3.0, proposal_std=0.3)
    optimizer = training.Optimizer(learning_rate=3e-2, hold=1.0, warmup_steps=2)
    recipe = dataclasses.replace(RECIPE, method=method, steps=300, optimizer=optimizer)
    images = np.full((20, 4, 4, 1), 200, np.uint8)
    training.train(model, CONFIG, images, recipe=recipe, report_every=50, on_progress=reports.append)
    assert [r.step for r in reports] == [50, 100, 150, 200, 250, 300]
    assert reports[-1].loss < 0.2 * reports[0].loss
    assert all(r.images_per_second > 0 and r.figures == {"gap": 1.0} for r in reports)


def test_a_stopped_run_resumes_to_the_same_bits(model, tmp_path):
    class Stop(Exception):
        pass

    def stop_at(step):
        def report(progress):
            if progress.step >= step:
                raise Stop

        return report

    whole = training.train(model, CONFIG, IMAGES, LABELS, recipe=RECIPE, out=tmp_path / "whole", report_every=1)
    out = tmp_path / "parts"
    with pytest.raises(Stop):  # killed at step 9, three steps after its last checkpoint
        training.train(
            model,
            CONFIG,
            IMAGES,
            LABELS,
            recipe=RECIPE,
            out=out,
            report_every=1,
            checkpoint_every=6,
            on_progress=stop_at(9),
        )
    resumed = training.train(model, CONFIG, IMAGES, LABELS, recipe=RECIPE, out=out, resume=True, report_every=1)
    assert bits(resumed) == bits(whole)
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("whole", "parts")]
    assert [e["step"] for e in logs[1]] == list(range(1, 15))  # steps 7 to 9 are there once
    assert [e["loss"] for e in logs[0]] == [e["loss"] for e in logs[1]]
    assert [e["gap"] for e in logs[0]] == [1.0] * 6 + [0.5] * 4 + [0.25] * 4


def test_one_network_of_one_device_or_eight(model):
    # the batch is shared out among the devices: the sum of gradients is rounded in another order, no more
    eight = training.train(model, CONFIG, IMAGES, LABELS, recipe=RECIPE)
    one = training.init(model, RECIPE)
    key = jax.random.key(RECIPE.seed)
    for k in range(RECIPE.steps):
        chosen = batch_indices(RECIPE.seed, k, 20, 8)
        one, _ = training.train_step(
            one, jnp.asarray(IMAGES[chosen]), jnp.asarray(LABELS[chosen], jnp.int32), key, recipe=RECIPE, config=CONFIG
        )
    for a, b in zip(jax.tree.leaves(one.ema), jax.tree.leaves(eight.ema), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_resuming_from_nothing_is_refused(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume needs `out`"):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, resume=True)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), None, r"images must be u8\[N, H, W, C\], got float32\[20, 4, 4, 1\]"),
        (IMAGES[..., 0], None, r"images must be u8\[N, H, W, C\], got uint8\[20, 4, 4\]"),
        (IMAGES[:5], None, "batch_size is 8 but there are 5 images"),
        (IMAGES, LABELS[:7], "labels must be one for each of the 20 images"),
        (IMAGES, LABELS + 0.5, "labels must be integers from 0, got float64"),
        (IMAGES, LABELS - 1, "labels must be integers from 0, got int64 from -1"),
    ],
)
def test_data_that_does_not_fit_is_refused(model, images, labels, message):
    with pytest.raises(ValueError, match=message):
        training.train(model, CONFIG, images, labels, recipe=RECIPE)


def test_what_a_checkpoint_shows_may_be_kept(model):
    kept = []
    training.train(model, CONFIG, IMAGES, recipe=RECIPE, checkpoint_every=5, on_checkpoint=kept.append)
    assert [int(state.step) for state in kept] == [5, 10, 14]
    assert len({bits(state.ema)[0] for state in kept}) == 3


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(model, tmp_path):
    batch = IMAGES[:8] / np.float32(127.5) - 1
    poisoned = [(batch, None)] * 7 + [(batch * np.nan, None)] * 7
    with pytest.raises(FloatingPointError, match="by step 10 the loss is nan: lower the learning_rate"):
        training.train(model, CONFIG, poisoned, recipe=RECIPE, out=tmp_path, checkpoint_every=5)
    assert training.latest_step(tmp_path / "checkpoints") == 5
    resumed = training.train(model, CONFIG, [(batch, None)] * 14, recipe=RECIPE, out=tmp_path, resume=True)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(resumed.model))


def test_weights_that_are_not_finite_replace_no_checkpoint(model, tmp_path, monkeypatch):
    # the loss is of before the step: a step may leave infinity where no loss has seen it yet
    loop = importlib.import_module("cmjax.training.loop")
    step = loop.train_step

    def overflow(state, *args, **kwargs):
        state, loss = step(state, *args, **kwargs)
        return state.replace(model=jax.tree.map(lambda leaf: leaf / 0, state.model)), loss

    monkeypatch.setattr(loop, "train_step", overflow)
    with pytest.raises(FloatingPointError, match="by step 1 the weights are not finite"):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, checkpoint_every=1)
    assert training.latest_step(tmp_path / "checkpoints") is None


def test_a_damaged_log_does_not_stop_a_resumed_run(model, tmp_path):
    training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, report_every=7)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{}\n[1]\n{"step": 9, "lo')
    training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, resume=True)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()] == [7, 14]


def test_a_folder_that_holds_a_run_gets_no_second_one(model, tmp_path):
    training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, report_every=7)
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(FileExistsError, match="already holds a run; resume it, or choose another folder"):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_run_killed_before_it_showed_its_checkpoint_shows_it_on_resuming(model, tmp_path):
    def killed(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, on_checkpoint=killed)
    shown = []
    state = training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, resume=True, on_checkpoint=shown.append)
    assert [int(s.step) for s in shown] == [14] and bits(shown[0]) == bits(state)


def test_a_method_without_a_name_is_refused_before_any_work(model, tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Nameless(training.Method):
        def loss(self, learner, x0, cond, key, step, steps):
            raise AssertionError

    recipe = dataclasses.replace(RECIPE, method=Nameless())
    with pytest.raises(ValueError, match=r"Nameless has no name to be written down by: give it one, METHODS\[name\]"):
        training.train(model, CONFIG, IMAGES, recipe=recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_reports_and_checkpoints_come_now_and_then(model):
    with pytest.raises(ValueError, match="report_every must be at least 1, got 0"):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, report_every=0)


def test_an_iterable_of_batches_resumes_where_it_was(model, tmp_path):
    def source():
        for k in itertools.count():
            yield np.random.default_rng(k).normal(size=(8, 4, 4, 1)).astype(np.float32).clip(-1, 1), None

    def stop(progress):
        if progress.step == 9:
            raise KeyboardInterrupt

    whole = training.train(model, CONFIG, source(), recipe=RECIPE)
    options = {"recipe": RECIPE, "out": tmp_path, "checkpoint_every": 6, "report_every": 3}
    with pytest.raises(KeyboardInterrupt):
        training.train(model, CONFIG, source(), on_progress=stop, **options)
    resumed = training.train(model, CONFIG, source(), resume=True, **options)
    assert bits(resumed) == bits(whole)


def test_arrays_of_jax_and_lists_of_labels_will_do(model):
    one = dataclasses.replace(RECIPE, steps=1)
    a = training.train(model, CONFIG, IMAGES, LABELS, recipe=one)
    b = training.train(model, CONFIG, jnp.asarray(IMAGES), list(LABELS), recipe=one)
    assert bits(a) == bits(b)


def test_an_iterable_that_does_not_fit_is_refused(model):
    batch = np.zeros((8, 4, 4, 1), np.float32), None
    with pytest.raises(ValueError, match="the data ended before step 14"):
        training.train(model, CONFIG, [batch] * 5, recipe=RECIPE)
    with pytest.raises(ValueError, match="batch 0 of the data has 7 images; batch_size is 8"):
        training.train(model, CONFIG, [(batch[0][:7], None)], recipe=RECIPE)
    with pytest.raises(ValueError, match=r"batch 0 of the data must be u8, or f in \[-1, 1\]; got int64"):
        training.train(model, CONFIG, [(IMAGES[:8].astype(np.int64), None)], recipe=RECIPE)
    flip = dataclasses.replace(RECIPE, flip=True)
    with pytest.raises(ValueError, match=r"flip is for images, \[B, H, W, C\]; batch 0 of the data is \[8, 4\]"):
        training.train(model, CONFIG, [(np.zeros((8, 4), np.float32), None)], recipe=flip)
    with pytest.raises(ValueError, match="labels go with images in an array"):
        training.train(model, CONFIG, [batch], LABELS, recipe=RECIPE)


def test_parts_of_a_batch_have_the_gradient_of_the_whole(model):
    # the noise of the parts is another, so what is equal is a loss without noise: least squares on the images
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Plain(training.Method):
        def loss(self, learner, x0, cond, key, step, steps):
            return jnp.square(learner.model(x0, jnp.ones(8), cond) - 0.5).mean((1, 2, 3))

    states = []
    for parts in (1, 2, 8):
        recipe = dataclasses.replace(RECIPE, method=Plain(), accumulate=parts)
        state, loss = training.train_step(
            training.init(model, recipe), IMAGES[:8], LABELS[:8], jax.random.key(0), recipe=recipe, config=CONFIG
        )
        states.append((loss, state.model))
    for other in states[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), states[0], other)


def test_what_the_compiler_leaves_is_returned_once_a_run(model, monkeypatch):
    loop, returned = importlib.import_module("cmjax.training.loop"), []
    monkeypatch.setattr(loop, "return_freed_memory", lambda: returned.append(True))
    training.train(model, CONFIG, IMAGES, LABELS, recipe=dataclasses.replace(RECIPE, steps=3))
    assert returned == [True]


def test_flips_mirror_about_half_of_the_images_whole(model):
    seen = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Spy(training.Method):
        def loss(self, learner, x0, cond, key, step, steps):
            jax.debug.callback(lambda x0: seen.append(x0), x0)
            return x0.mean((1, 2, 3)) * learner.model(x0, jnp.ones(16), cond).mean()

    recipe = dataclasses.replace(RECIPE, method=Spy(), batch_size=16, flip=True)
    images = IMAGES[np.arange(16)]
    training.train_step(training.init(model, recipe), images, None, jax.random.key(0), recipe=recipe, config=CONFIG)
    jax.effects_barrier()
    plain = images.astype(np.float32) / 127.5 - 1
    same = np.isclose(seen[0], plain, atol=1e-6).all((1, 2, 3))
    mirrored = np.isclose(seen[0], plain[:, :, ::-1], atol=1e-6).all((1, 2, 3))
    assert (same ^ mirrored).all() and 3 < mirrored.sum() < 13


def test_every_average_has_its_own_decay(model):
    recipe = dataclasses.replace(RECIPE, ema_decays=(0.0, 0.5, 0.9))
    state = training.train(model, CONFIG, IMAGES, LABELS, recipe=recipe)
    assert bits(state.averages[0]) == bits(state.model) == bits(state.ema)
    assert len({bits(average)[0] for average in state.averages}) == 3


def test_a_power_function_average_weighs_late_weights_more(model, tmp_path):
    # β(k) of std 0.1 is 0 at first, so the average begins at the first step's weights, whatever was there before
    recipe = dataclasses.replace(RECIPE, ema_decays=(), ema_stds=(0.1, 0.05))
    state, _ = training.train_step(
        training.init(model, recipe), IMAGES[:8], None, jax.random.key(0), recipe=recipe, config=CONFIG
    )
    assert bits(state.averages[0]) == bits(state.model) == bits(state.averages[1])
    assert len(training.train(model, CONFIG, IMAGES, recipe=recipe, out=tmp_path).averages) == 2
    training.train(model, CONFIG, IMAGES, recipe=recipe, out=tmp_path, resume=True)


def test_parties_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="config must be a CMConfig for EasyConsistencyTuning, got TCDConfig"):
        training.train(model, cmjax.tcd.TCDConfig(), IMAGES, recipe=RECIPE)
    with pytest.raises(ValueError, match="EasyConsistencyTuning has no teacher"):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, teacher=(model, CONFIG))
    vp, other = cmjax.tcd.TCDConfig(), cmjax.tcd.TCDConfig(beta_schedule="linear")
    for name, config, teacher, message in (
        ("cd", CONFIG, model, r"teacher must be a pair \(model, config\), got a Partial"),
        (
            "cd",
            CONFIG,
            (model, vp),
            "the teacher's config must be a CMConfig for ConsistencyDistillation, got TCDConfig",
        ),
        (
            "tcd",
            vp,
            (model, CONFIG),
            "the teacher's config must be a VPConfig for TrajectoryDistillation, got CMConfig",
        ),
        ("tcd", vp, (model, other), "beta_schedule must be the teacher's, 'linear', got 'scaled_linear'"),
        ("scd", CONFIG, (model, cmjax.cm.CMConfig(sigma_data=1.0)), "sigma_data must be the teacher's, 1.0, got 0.5"),
    ):
        recipe = dataclasses.replace(RECIPE, method=training.METHODS[name]())
        with pytest.raises(ValueError, match=message):
            training.train(model, config, IMAGES, recipe=recipe, teacher=teacher)


def test_a_run_of_other_noise_levels_is_not_gone_on_with(model, tmp_path):
    training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path)
    with pytest.raises(ValueError, match=r"followed a config with sigma_data = 0.5, not 2.0"):
        training.train(model, cmjax.cm.CMConfig(sigma_data=2.0), IMAGES, recipe=RECIPE, out=tmp_path, resume=True)


def test_another_environment_is_said(model, tmp_path, monkeypatch):
    checkpoints = importlib.import_module("cmjax.training.checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "version", lambda package: "0.1")
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path)
    with pytest.warns(UserWarning, match=r"the run continues with jax 0.1 -> .*: it will not have the same bits"):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, resume=True)


def test_weights_in_half_precision_are_refused(model):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    with pytest.raises(ValueError, match="weights must be float32, in which small steps add up, got bfloat16"):
        training.train(half, CONFIG, IMAGES, LABELS, recipe=RECIPE)


def test_labels_that_the_network_has_no_class_for_are_refused():
    network = tiny.checkpoint(classes=3).model
    images, labels = np.zeros((8, 8, 8, 1), np.uint8), np.array([0, 1, 2, 3] * 2)
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\.\. 2, the model's classes, got 3"):
        training.train(network, CONFIG, images, labels, recipe=RECIPE)


def test_a_run_goes_on_with_its_own_teacher_only(model, tmp_path):
    """Other weights or other noise levels of the teacher are another teacher."""
    recipe = dataclasses.replace(RECIPE, method=training.METHODS["cd"]())
    config, other = CONFIG.of_denoiser(20), jax.tree.map(lambda leaf: leaf + 1, model)
    training.train(model, CONFIG, IMAGES, recipe=recipe, teacher=(model, config), out=tmp_path)
    for teacher in ((other, config), (model, CONFIG.of_denoiser(30))):
        with pytest.raises(ValueError, match="followed another teacher: give that one"):
            training.train(model, CONFIG, IMAGES, recipe=recipe, teacher=teacher, out=tmp_path, resume=True)
    training.train(model, CONFIG, IMAGES, recipe=recipe, teacher=(model, config), out=tmp_path, resume=True)


def test_a_number_of_python_is_a_weight_too():
    start = jax.tree_util.Partial(lambda w, x, t, cond, **_: w * x, 0.5)
    state = training.train(start, CONFIG, IMAGES, recipe=RECIPE)
    assert state.model.args[0] != 0.5


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.chain(optax.clip(1.0), optax.sgd(1e-2, momentum=0.9)), marks=pytest.mark.slow),
        pytest.param(  # a key in its state
            optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(1e-2)), marks=pytest.mark.slow
        ),
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=2)),  # looks at the loss
    ],
    ids=["momentum", "noise", "plateau"],
)
def test_an_optax_transformation_trains_and_resumes_to_the_same_bits(tmp_path, optimizer):
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer)
    given = toy_model(), CONFIG, IMAGES, LABELS
    every = {"recipe": recipe, "report_every": 7, "checkpoint_every": 7}
    whole = training.train(*given, **every, out=tmp_path / "whole")
    stopped = []

    def stop(progress):
        stopped.append(progress)
        if len(stopped) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(*given, **every, out=tmp_path / "half", on_progress=stop)
    resumed = training.train(*given, **every, out=tmp_path / "half", resume=True)
    assert bits(resumed) == bits(whole)
    assert stopped[0].learning_rate is None
    with pytest.raises(ValueError, match="followed a recipe with optimizer"):
        training.train(*given, **{**every, "recipe": RECIPE}, out=tmp_path / "half", resume=True)
    other = dataclasses.replace(RECIPE, optimizer=optax.adam(1e-3))
    with pytest.raises(ValueError, match="is of another network or optimizer"):
        training.train(*given, **{**every, "recipe": other}, out=tmp_path / "half", resume=True)


def test_the_log_has_the_learning_rate(tmp_path):
    reports = []
    training.train(toy_model(), CONFIG, IMAGES, LABELS, recipe=RECIPE, report_every=1, on_progress=reports.append)
    rates = [report.entry()["learning_rate"] for report in reports]
    np.testing.assert_allclose(rates, [float(RECIPE.optimizer.schedule(14)(k)) for k in range(14)])
    assert rates[0] == 0.0


def test_a_batch_that_does_not_divide_among_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match=r"accumulate must be a multiple of the number of processes, 3, got 8\."):
        training.train(toy_model(), CONFIG, IMAGES, LABELS, recipe=RECIPE)
