"""`cmjax train`: a run and its folder, resume to the same bits, recipes and networks, and its complaints."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
import tiny
from commands import complaint
from PIL import Image

import cmjax
from cmjax.cli import main, parse, train
from cmjax.cli.errors import UsageError
from cmjax.cli.labels import match_classes
from cmjax.cli.open_model import load_source
from cmjax.cli.run_config import compute_dtype
from cmjax.cli.run_config import run_config as settled
from cmjax.io import Checkpoint, read_images


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data():
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8), np.uint8)
    np.savez("data.npz", images=images, labels=np.arange(32) % 2)
    with open("network.json", "w") as file:
        json.dump(tiny.checkpoint().model.config.to_dict(), file)
    return "data.npz"


TINY = ["ect", "--steps", "10", "--batch", "4", "--network", "network.json"]


@pytest.mark.slow
def test_train_then_sample_then_resume(data, capsys):
    names = ["--label-names", "first one", "second"]
    assert main(["train", "--data", data, "--out", "run", *TINY, *names, "--checkpoint-every", "5"]) == 0
    assert sorted(os.listdir("run")) == ["checkpoints", "curves.png", "log.jsonl", "model", "run.json", "samples"]
    assert sorted(os.listdir("run/samples")) == ["0000005.png", "0000010.png"]
    assert cmjax.io.label_names("run/model") == ("first one", "second")
    assert main(["sample", "--model", "run/model", "--num", "4", "--out", "drawn.npz"]) == 0
    assert np.load("drawn.npz")["images"].shape == (4, 8, 8, 1)
    said = complaint(capsys_cleared(capsys), "train", "--data", data, "--out", "run", *TINY)
    assert "already holds a run; add --resume" in said
    said = complaint(capsys, "train", "--data", data, "--out", "run", "--resume", "--batch", "8")
    assert "the run to resume has batch_size = 4, not 8: leave out --batch." in said
    np.savez("other.npz", images=np.zeros((32, 8, 8), np.uint8), labels=np.arange(32) % 2)
    assert "--resume: the run had other data" in complaint(
        capsys, "train", "--data", "other.npz", "--out", "run", "--resume"
    )

    said = complaint(capsys, "train", "--data", data, "--out", "run", "--resume", "--init", "run/model")
    assert "--init: a resumed run continues from its own weights" in said

    assert main(["train", "--data", data, "--out", "run", "--resume"]) == 0
    assert "10/10 nothing to do: the run was finished" in " ".join(capsys.readouterr().out.split())

    with open("tune.toml", "w") as file:  # no learning: what comes out is what went in
        file.write("[ect]\ninitial_gap = 0.25\n[optimizer]\nlearning_rate = 1e-30\nfinal_learning_rate = 1e-30\n")
    tune = ["tune.toml", "--init", "run/model", "--steps", "4", "--batch", "4"]
    assert main(["train", *tune, "--data", data, "--out", "tuned"]) == 0
    before, after = (cmjax.load(f"{run}/model").model for run in ("run", "tuned"))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def capsys_cleared(capsys):
    capsys.readouterr()
    return capsys


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(data, monkeypatch):
    options = ["--checkpoint-every", "5"]
    assert main(["train", "--data", data, "--out", "whole", *TINY, *options]) == 0

    def stop(self, state):
        keep(self, state)
        if int(state.step) == 5:
            raise KeyboardInterrupt

    keep = train._CheckpointWriter.__call__
    with monkeypatch.context() as patch:
        patch.setattr(train._CheckpointWriter, "__call__", stop)
        assert main(["train", "--data", data, "--out", "parts", *TINY, *options]) == 130
    assert main(["train", "--data", data, "--out", "parts", "--resume", *options]) == 0
    whole, parts = (
        np.fromfile(f"{run}/model/unet/diffusion_pytorch_model.safetensors", np.uint8) for run in ("whole", "parts")
    )
    np.testing.assert_array_equal(whole, parts)


def test_mistakes_in_training(data, capsys):
    os.mkdir("empty")
    np.savez("floats.npz", images=np.zeros((2, 8, 8)))
    with open("wrong.json", "w") as file:
        json.dump({"speed": 2}, file)
    with open("list.json", "w") as file:
        file.write("[]")
    with open("text.json", "w") as file:
        json.dump({"optimizer": {"learning_rate": "fast"}}, file)
    os.mkdir("pictures")
    os.makedirs("used/model")
    open("used/model/notes.txt", "w").close()
    cmjax.save(tiny.checkpoint(classes=2), "cm")
    cmjax.save(tiny.checkpoint(classes=2, config=cmjax.tcd.TCDConfig(prediction_type="sample")), "vp")
    cmjax.save(vp(), "other")
    os.mkdir("letters")
    open("letters/a.txt", "w").close()
    for name, said in (("typo", "sigma_mx = 80.0"), ("range", "sigma_min = -1.0")):
        with open(f"{name}.toml", "w") as file:
            file.write(f'[scheduler]\n_class_name = "CMStochasticIterativeScheduler"\n{said}\n')
    for argv, message in (
        (["--data", "no.npz", "--out", "run"], "no.npz does not exist"),
        (["--data", "empty", "--out", "run"], "holds no images"),
        (["--data", "floats.npz", "--out", "run"], "must be u8"),
        (["--data", data, "--out", "run", "--resume"], "no checkpoint to continue from in run"),
        (["--data", data, "--out", "run", "--batch", "33"], "needs more images than the 32 in the data"),
        (
            ["--data", data, "--out", "run", "--label-names", "a"],
            "--label-names: the data has 2 classes, but there are 1 names",
        ),
        (["--data", data, "--out", "missing/run"], "the folder missing does not exist"),
        (["--data", data, "--out", data], "is a file, not a folder"),
        (["--data", data, "--out", "run", "--channels", "9"], "must be a multiple of norm_num_groups"),
        (["--data", data, "--out", "run", "--network", "no.json"], "no.json does not exist"),
        (["--data", data, "--out", "run", "wrong.json"], "wrong.json has unknown names: speed"),
        (["--data", data, "--out", "run", "list.json"], "list.json must hold a JSON object"),
        (["--data", data, "--out", "run", "text.json"], "learning_rate must be a finite number, got 'fast'"),
        (
            ["--data", "pictures", "--out", "pictures/run"],
            "lies in the data, pictures, which would then hold",
        ),
        (["--data", data, "--out", "used"], "used/model holds other files than a model's"),
        (
            ["--data", data, "--out", "run", "--init", "vp"],
            "--init: ect needs a model of noise levels, such as `edm` makes, but this one is of timesteps",
        ),
        (["--data", data, "--out", "run", "--batch", "4", "--teacher", "cm"], "--teacher: this recipe has none"),
        (
            ["tcd", "--data", data, "--out", "run", "--batch", "4", "--teacher", "cm", "--channels", "8"],
            "--teacher: tcd needs a model of timesteps, such as `vp` makes, but this one is of noise levels",
        ),
        (
            ["tcd", "--data", data, "--out", "run", "--batch", "4", "--teacher", "vp", "--init", "other"],
            "--teacher: beta_schedule must be the teacher's, 'scaled_linear', got 'linear'",
        ),
        (["ect", "--data", data, "--out", "run", "--batch", "4", "--teacher", "vp"], "--teacher: this recipe has none"),
        (["typo.toml", "--data", data, "--out", "run"], "unknown names: sigma_mx. Did you mean sigma_max?"),
        (["range.toml", "--data", data, "--out", "run", "--batch", "4"], "sigma_min"),
        (
            ["--data", data, "--out", "run", "--batch", "4", "--channels", *"88888"],
            "pictures of 8x8 cannot be halved 4",
        ),
        (["--data", data, "--out", "letters"], "letters holds files that belong to no run; choose another folder"),
        (["ict", "--data", data, "--out", "run", "--steps", "4"], "--steps must be at least 8"),
        (["etc", "--data", data, "--out", "run"], "there is no recipe 'etc': give a TOML file, or one of"),
    ):
        assert message in complaint(capsys, "train", *argv)
        assert not os.path.exists("run")


def settle(*options, start=None, teacher=None, run=None):
    arguments = parse(["train", *options, "--data", "data.npz", "--out", "run"])
    return settled(arguments, read_images("data.npz"), run, start, teacher)


def vp(classes=2, seed=0, **changes):
    return tiny.checkpoint(classes=classes, seed=seed, config=cmjax.tcd.TCDConfig(beta_schedule="linear", **changes))


def test_a_student_keeps_its_teachers_noise_levels(data):
    teacher = vp()
    assert settle("tcd", teacher=teacher).config == teacher.config
    assert settle("tcd", "--channels", "16", teacher=teacher).config == teacher.config
    assert settle("lcd", "--network", "network.json", teacher=teacher).config.beta_schedule == "linear"
    for start in (None, vp()):
        with pytest.raises(ValueError, match="--teacher: the model has 1 classes, but the data has 2"):
            settle("tcd", "--channels", "16", start=start, teacher=vp(classes=1))
    with pytest.raises(ValueError, match="--teacher: the model has no classes, but the data has 2: --no-classes"):
        settle("tcd", teacher=vp(classes=None))
    assert settle("tcd", teacher=vp(classes=3)).network.num_class_embeds == 3
    assert settle("tcd", "--channels", "16", teacher=vp(classes=3)).network.num_class_embeds == 2


@pytest.mark.slow
def test_a_model_is_tuned_on_some_of_its_classes():
    """The data's folders name two of the model's three classes, in another order; every class keeps its number."""
    cmjax.save(tiny.checkpoint(classes=3), "three", label_names=["Coat", "Bag", "Ant"])
    for name in ("ant", "bag"):
        os.makedirs(f"data/{name}")
        for i in range(4):
            Image.fromarray(np.full((8, 8), 60 * i, np.uint8)).save(f"data/{name}/{i}.png")
    seen = []

    def keep(self, *args):
        seen.append((np.unique(self.shown).tolist(), self.names))

    options = ["--data", "data", "--steps", "4", "--batch", "4", "--checkpoint-every", "4"]
    assert main(["train", "ect", "--init", "three", "--out", "run", *options]) == 0
    assert cmjax.load("run/model").model.config.num_class_embeds == 3
    assert cmjax.io.label_names("run/model") == ("Coat", "Bag", "Ant")
    with open("run/run.json") as file:
        assert json.load(file)["classes"] == [2, 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train._CheckpointWriter, "__call__", keep)
        assert main(["train", "--out", "run", "--resume", "--data", "data"]) == 0  # the same data, found again
    assert seen == [([1, 2], ("Coat", "Bag", "Ant"))]


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        (None, None, (None, None)),
        (None, ["a", "b", "c"], (None, ("a", "b", "c"))),
        (["x", "y"], None, (None, ("x", "y", "2"))),
        (["a", "B"], ["a", "b", "c"], (None, ("a", "b", "c"))),
        (["c", "a"], ["a", "b", "c"], ((2, 0), ("a", "b", "c"))),
        (["x", "y", "z"], ["a", "b", "c"], (None, ("x", "y", "z"))),
    ],
)
def test_classes_are_matched_by_name_or_by_number(data, model, expected):
    assert match_classes(data, 2 if data is None else len(data), model, 3) == expected


def test_a_class_that_the_model_does_not_have_is_said():
    with pytest.raises(UsageError, match="the data's class 'x' is not one of the model's: a, b, c"):
        match_classes(["a", "x"], 2, ["a", "b", "c"], 3)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["nested", "flat"])
def test_a_ddpm_folder_is_a_teacher_and_no_model_to_draw_from(layout, capsys):
    """Keys that its scheduler's file leaves out are the scheduler's defaults, and not those of TCD's."""
    cmjax.save(tiny.checkpoint(classes=None, config=cmjax.tcd.TCDConfig()), "ddpm")
    with open("ddpm/scheduler/scheduler_config.json", "w") as file:
        json.dump({"_class_name": "DDPMScheduler", "beta_end": 0.03, "variance_type": "fixed_small"}, file)
    if layout == "flat":
        for part in ("unet", "scheduler"):
            for name in os.listdir(f"ddpm/{part}"):
                os.rename(f"ddpm/{part}/{name}", f"ddpm/{name}")
            os.rmdir(f"ddpm/{part}")
    teacher = load_source("ddpm", dtype="float32")
    assert (teacher.config.beta_schedule, teacher.config.beta_start, teacher.config.beta_end) == ("linear", 1e-4, 0.03)
    assert teacher.config.clip_sample and teacher.config.prediction_type == "epsilon"
    remedy = "ddpm is a diffusion model (DDPMScheduler), which takes many steps. Distil it into one of a few steps: "
    for argv in (["sample", "--model", "ddpm"], ["inspect", "ddpm"]):
        assert f"{remedy}cmjax train tcd --teacher ddpm --data DATA" in complaint(capsys, *argv)
    if layout == "nested":
        np.savez("plain.npz", images=np.zeros((8, 8, 8), np.uint8))
        options = ["--data", "plain.npz", "--steps", "1", "--batch", "4", "--checkpoint-every", "1"]
        assert main(["train", "tcd", "--teacher", "ddpm", "--out", "run", *options]) == 0
        assert cmjax.load("run/model").config.beta_end == 0.03


def test_a_student_begins_as_a_copy_of_a_teacher_of_its_network(data):
    teacher, start = vp(), vp(seed=1)
    assert train._first_model(settle("tcd", teacher=teacher), None, teacher) == (teacher.model, "the teacher's")
    assert train._first_model(settle("tcd", start=start, teacher=teacher), start, teacher) == (start.model, "of --init")
    wider = settle("tcd", "--channels", "16", teacher=teacher)
    model, origin = train._first_model(wider, None, teacher)
    assert origin == "new" and model.config.block_out_channels == (16,)
    other = Checkpoint(teacher.model, dataclasses.replace(teacher.config, prediction_type="v_prediction"))
    assert (
        train._first_model(settle("tcd", teacher=teacher), None, other)[1] == "new"
    )  # its weights mean something else


def test_a_model_to_start_from_keeps_its_own_noise_levels(data):
    start = vp(prediction_type="epsilon")
    assert settle("vp", start=start).config == start.config  # whatever the recipe's [scheduler] says
    assert settle("vp").config.prediction_type == "v_prediction"


def test_a_run_goes_on_with_its_own_teacher_and_dtype(data):
    teacher = vp()
    run = settle("tcd", "--dtype", "bfloat16", teacher=teacher).to_dict(read_images(data), teacher, started=False)
    assert settle("--resume", teacher=teacher, run=run).dtype == "bfloat16"
    with pytest.raises(ValueError, match="--teacher: the run to resume was of another teacher; give that one"):
        settle("--resume", teacher=vp(seed=1), run=run)
    assert compute_dtype(None, run) == "bfloat16"  # of the teacher too
    with pytest.raises(ValueError, match="the run to resume has dtype = bfloat16, not float32: leave out --dtype"):
        compute_dtype("float32", run)


def test_a_network_and_a_recipe_may_be_files(data):
    with open("recipe.toml", "w") as file:
        file.write("steps = 400\nbatch_size = 4\n[ect]\nstages = [300, 100]\nhuber_c = 0.1\n")
    recipe, unet_config, _, dtype = settle("recipe.toml", "--network", "network.json", "--seed", "7", "--steps", "10")
    assert (unet_config.block_out_channels, unet_config.num_class_embeds, unet_config.sample_size) == ((8,), 2, 8)
    assert (recipe.batch_size, recipe.method.huber_c, recipe.seed, recipe.steps) == (4, 0.1, 7, 10)
    assert recipe.method.stage_steps(10) == (8, 2)
    assert dtype == "float32"


def test_a_recipe_may_describe_the_network_and_the_noise_levels(data):
    with open("recipe.toml", "w") as file:
        network = {k: v for k, v in tiny.checkpoint().model.config.to_dict().items() if v is not None}
        lines = [f"{name} = {json.dumps(value)}" for name, value in network.items()]
        scheduler = '_class_name = "CMStochasticIterativeScheduler"\nsigma_max = 40.0'
        file.write("\n".join(["[network]", *lines, "[scheduler]", scheduler]))
    _, unet_config, config, _ = settle("recipe.toml")
    assert (unet_config.block_out_channels, config.sigma_max) == ((8,), 40.0)
    assert settle("recipe.toml", "--channels", "16").network.block_out_channels == (16,)


def test_a_run_goes_on_with_the_network_and_the_noise_levels_of_its_recipe(data):
    read = read_images(data)
    plain = settle("ect", "--channels", "16").to_dict(read, None, started=False)
    with open("levels.toml", "w") as file:
        file.write('[scheduler]\n_class_name = "CMStochasticIterativeScheduler"\nsigma_max = 40.0\n')
    with pytest.raises(ValueError, match=r"the run to resume has sigma_max = 80\.0, not 40\.0: leave out RECIPE"):
        settle("levels.toml", run=plain)
    with open("network.toml", "w") as file:
        given = {name: value for name, value in plain["network"].items() if value is not None}
        file.write("\n".join(["[network]", *(f"{name} = {json.dumps(value)}" for name, value in given.items())]))
    assert settle("network.toml", run=plain).network.block_out_channels == (16,)
    other = plain | {"network": plain["network"] | {"layers_per_block": 2}}
    with pytest.raises(ValueError, match="the run to resume has layers_per_block = 2, not 1"):
        settle("network.toml", run=other)
    begun = settle("ect", start=tiny.checkpoint(classes=2)).to_dict(read, None, started=True)
    assert settle("levels.toml", run=begun).config.sigma_max == 80.0  # the model's, as when it began


@pytest.mark.parametrize(
    ("size", "options", "widths"),
    [
        ((28, 28), [], (16, 48, 96)),  # 28, 14, 7
        ((32, 48), [], (16, 48, 96, 144)),  # 32 x 48 ... 4 x 6
        ((9, 9), [], (16,)),
        ((28, 28), ["--channels", "8", "24"], (8, 24)),
    ],
)
def test_the_network_suits_the_images(size, options, widths):
    np.savez("data.npz", images=np.zeros((2, *size, 3), np.uint8))
    _, unet_config, *_ = settle(*options)
    assert unet_config.add_attention
    assert unet_config.block_out_channels == widths
    assert unet_config.sample_size == (size[0] if size[0] == size[1] else size)
    assert (unet_config.in_channels, unet_config.out_channels, unet_config.num_class_embeds) == (3, 3, None)
    assert all(side % unet_config.downsampling == 0 for side in size)


def test_photographs_of_odd_sizes_get_no_attention_that_no_memory_holds():
    np.savez("data.npz", images=np.zeros((1, 333, 500, 3), np.uint8))
    _, unet_config, *_ = settle()
    assert not unet_config.add_attention
    assert unet_config.down_block_types == ("DownBlock2D",)


@pytest.mark.slow
def test_a_teacher_is_drawn_from_as_the_denoiser_it_is(data, capsys):
    tiny_run = [*TINY[1:], "--data", data, "--checkpoint-every", "10"]
    assert main(["train", "edm", *tiny_run, "--out", "teacher"]) == 0
    assert cmjax.load("teacher/model").config.denoiser_steps == 20
    capsys.readouterr()
    assert main(["sample", "--model", "teacher/model", "--num", "2", "--out", "drawn.npz"]) == 0
    assert "20 (a denoiser, by DDIM)" in capsys.readouterr().out
    start = ["--steps", "2", "--batch", "4", "--data", data]
    for student in (
        ["cd", "--teacher", "teacher/model", "--out", "cd"],
        ["ect", "--init", "teacher/model", "--out", "ect"],
    ):
        assert main(["train", *student, *start]) == 0
        assert cmjax.load(f"{student[-1]}/model").config.denoiser_steps is None
