"""The trainer: it learns, it resumes to the same bits, it loses nothing, it says what is wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import training

CONFIG = cmjax.cm.CMConfig()
RECIPE = training.Recipe(stage_steps=(6, 4, 4), batch_size=8, warmup_steps=2)
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
LABELS = np.arange(20) % 3


def network(params, x, t, cond):
    if cond is not None:
        x = x + params["class"][cond][:, None, None, None]
    return params["gain"] * x + params["bias"]


@pytest.fixture
def model():
    params = {"gain": jnp.float32(0.1), "bias": jnp.zeros((4, 4, 1)), "class": jnp.zeros(3)}
    return jax.tree_util.Partial(network, params)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_rank_promotion("allow"):  # the toy network broadcasts
        yield


def test_a_run_learns_and_reports(model, tmp_path):
    reports = []
    # one picture, and much noise: there the network's bias can say it all
    recipe = dataclasses.replace(RECIPE, stage_steps=(300,), learning_rate=3e-2, proposal_mean=3.0, proposal_std=0.3)
    images = np.full((20, 4, 4, 1), 200, np.uint8)
    training.train(model, CONFIG, images, recipe=recipe, report_every=50, on_progress=reports.append)
    assert [r.step for r in reports] == [50, 100, 150, 200, 250, 300]
    assert reports[-1].loss < 0.2 * reports[0].loss
    assert all(r.images_per_second > 0 and r.gap == 1.0 for r in reports)


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
        chosen = training.batch_indices(RECIPE.seed, k, 20, 8)
        one, _ = training.train_step(
            one, jnp.asarray(IMAGES[chosen]), jnp.asarray(LABELS[chosen], jnp.int32), key, recipe=RECIPE, config=CONFIG
        )
    for a, b in zip(jax.tree.leaves(one.ema), jax.tree.leaves(eight.ema), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_every_epoch_shows_each_image_once_in_its_own_order():
    seen = np.concatenate([training.batch_indices(3, k, 10, 4) for k in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    np.testing.assert_array_equal(training.batch_indices(3, 2, 10, 4), seen[8:12])  # of (seed, step) alone
    assert list(training.batch_indices(4, 0, 10, 4)) != list(seen[:4])


def test_the_learning_rate_warms_up_holds_and_falls():
    rate = training.learning_rate(training.Recipe(stage_steps=(100, 50, 50), warmup_steps=10))
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(99)], [0, 5e-4, 1e-3, 1e-3], rtol=1e-6)
    np.testing.assert_allclose([rate(150), rate(200), rate(500)], [10**-3.5, 1e-4, 1e-4], rtol=1e-5)


def test_a_kill_while_writing_leaves_the_old_checkpoint(model, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    state = training.init(model, RECIPE)
    training.save_checkpoint(path, state, RECIPE)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        training.save_checkpoint(path, state.replace(step=jnp.int32(5)), RECIPE)
    assert int(training.load_checkpoint(path, state, RECIPE).step) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_of_another_network_or_recipe_is_refused(model, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    training.save_checkpoint(path, training.init(model, RECIPE), RECIPE)
    other = jax.tree_util.Partial(network, {"gain": jnp.zeros(2), "bias": jnp.zeros((4, 4, 1)), "class": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"of another network or optimizer: .*gain"):
        training.load_checkpoint(path, training.init(other, RECIPE), RECIPE)
    with pytest.raises(ValueError, match=r"followed a recipe with seed = 0, not 1"):
        training.load_checkpoint(path, training.init(model, RECIPE), dataclasses.replace(RECIPE, seed=1))


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


def test_a_recipe_without_steps_is_refused():
    with pytest.raises(ValueError, match="stage_steps must be one or more positive"):
        training.Recipe(stage_steps=(10, 0))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        training.Recipe(batch_size=0)
    with pytest.raises(ValueError, match=r"initial_gap must lie in \(0, 1\], got 2"):
        training.Recipe(initial_gap=2.0)


def test_what_a_checkpoint_shows_may_be_kept(model):
    kept = []
    training.train(model, CONFIG, IMAGES, recipe=RECIPE, checkpoint_every=5, on_checkpoint=kept.append)
    assert [int(state.step) for state in kept] == [5, 10, 14]
    assert len({bits(state.ema)[0] for state in kept}) == 3


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(model, tmp_path):
    training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path)
    good = (tmp_path / "checkpoint.safetensors").read_bytes()
    poisoned = jax.tree.map(lambda leaf: leaf * np.nan, model)
    with pytest.raises(FloatingPointError, match="by step 5 the weights are not finite: lower the learning_rate"):
        training.train(poisoned, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, checkpoint_every=5)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == good


def test_a_damaged_log_does_not_stop_a_resumed_run(model, tmp_path):
    training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, report_every=7)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{}\n[1]\n{"step": 9, "lo')
    training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, resume=True)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()] == [7, 14]


def test_a_damaged_checkpoint_is_said(model, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("final_learning_rate", -1e-3),
        ("clip_norm", 0),
        ("proposal_std", -1.0),
        ("huber_c", 0.0),
        ("ema_decay", 2.0),
        ("warmup_steps", -1),
        ("seed", 2**40),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must "):
        training.Recipe(**{name: value})


def test_reports_and_checkpoints_come_now_and_then(model):
    with pytest.raises(ValueError, match="report_every must be at least 1, got 0"):
        training.train(model, CONFIG, IMAGES, recipe=RECIPE, report_every=0)
