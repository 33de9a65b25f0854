"""`cmjax edit`: what is known of a picture is in the file that is written, and its complaints."""

import functools
import os
import re

import jax
import numpy as np
import pytest
import tiny
from commands import complaint
from PIL import Image

import cmjax
from cmjax.cli import main
from cmjax.editing.colours import LUMA

NAMES = ["Coat", "Ankle boot", "Bag"]
TASKS = ("inpaint", "colorize", "upscale", "denoise", "stroke", "interpolate")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A grey model with classes, and one of colours without; the programs compiled for them are kept meanwhile."""
    folder = tmp_path_factory.mktemp("models")
    cmjax.save(tiny.checkpoint(), folder / "grey", label_names=NAMES)
    cmjax.save(tiny.checkpoint(channels=3, classes=None), folder / "rgb")
    cmjax.save(tiny.checkpoint(channels=4, classes=None), folder / "latent")
    cmjax.save(tiny.checkpoint(config=cmjax.tcd.TCDConfig(prediction_type="sample")), folder / "vp")
    return folder


@pytest.fixture(autouse=True)
def pictures(models, tmp_path, monkeypatch):
    """Each test in a folder of its own, with pictures."""
    monkeypatch.chdir(tmp_path)
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)  # programs for several take longer to compile
    for name in ("grey", "rgb", "latent", "vp"):
        os.symlink(models / name, name)
    rng = np.random.default_rng(0)
    write("a.png", rng.integers(0, 256, (8, 8)))
    write("b.png", rng.integers(0, 256, (8, 8)))
    write("color.png", rng.integers(0, 256, (8, 8, 3)))
    write("large.png", rng.integers(0, 256, (16, 24)))
    write("small.png", rng.integers(0, 256, (4, 4)))
    write("tiny.png", rng.integers(0, 256, (2, 2)))
    write("small-color.png", rng.integers(0, 256, (2, 2, 3)))
    write("mask.png", MASK * 255)
    write("black.png", MASK * 0)
    write("white.png", MASK * 0 + 255)
    write("ramp.png", np.linspace(0, 255, 64).reshape(8, 8))
    write("cut.png", np.dstack([read("color.png"), 255 - 255 * MASK]))


MASK = np.zeros((8, 8), int)
MASK[2:6, 3:8] = 1
HOLE = MASK.astype(bool)
walk = jax.jit(cmjax.sample)


def write(name, levels):
    Image.fromarray(np.asarray(levels).astype(np.uint8)).save(name)


def read(name):
    return np.asarray(Image.open(name)).astype(int)


def edit(task, *options, model="grey", out="out"):
    labels = ["--labels", "Bag"] if model == "grey" and "--labels" not in options else []
    assert main(["edit", task, *options, *labels, "--model", model, "--out", out]) == 0
    return sorted(os.listdir(out)) if os.path.isdir(out) else None


# ---- what is known stays ---------------------------------------------------------------------------------------------


def test_inpaint_keeps_every_known_pixel(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", jax.devices)
        assert len(jax.local_devices()) >= 6
        _inpaint_on_all_devices(capsys)


def _inpaint_on_all_devices(capsys):
    steps = ["--steps", "3"]
    files = edit("inpaint", "a.png", "b.png", "--mask", "mask.png", *steps)
    assert files == [f"{name}-{i}.png" for name in "ab" for i in (1, 2, 3)] + ["strip.png"]
    said = capsys.readouterr().out
    for pattern in (
        r"model +grey",
        r"sampler +cm",
        r"steps +3",
        r"compile +[\d.]+ s",
        r"speed +\S+ s a pic",
        r"file +out",
    ):
        assert re.search(pattern, said), said
    for name in "ab":
        results = [read(f"out/{name}-{i}.png") for i in (1, 2, 3)]
        for result in results:
            np.testing.assert_array_equal(result[~HOLE], read(f"{name}.png")[~HOLE])
        assert (results[0] != results[1])[HOLE].mean() > 0.5 and (results[1] != results[2])[HOLE].mean() > 0.5
    strip = Image.open("out/strip.png")
    assert strip.mode == "L" and strip.size[0] > 5 * 66 and strip.size[1] > 2 * 66

    # The same seed gives the same file; other pictures beside one, or fewer variants, change nothing.
    edit("inpaint", "a.png", "b.png", "--mask", "mask.png", *steps, out="again")
    for file in files:
        with open(f"out/{file}", "rb") as one, open(f"again/{file}", "rb") as other:
            assert one.read() == other.read()
    edit("inpaint", "b.png", "--mask", "mask.png", *steps, "--num", "2", out="alone")
    for i in (1, 2):
        assert np.abs(read(f"alone/b-{i}.png") - read(f"out/b-{i}.png")).max() <= 1
    edit("inpaint", "b.png", "--mask", "mask.png", *steps, "--num", "2", "--seed", "1", out="seed")
    assert (read("seed/b-1.png") != read("out/b-1.png"))[HOLE].mean() > 0.5


def test_transparent_pixels_are_a_hole():
    edit("inpaint", "cut.png", "--steps", "1", "--num", "1", model="rgb")
    result, given = read("out/cut-1.png"), read("color.png")
    np.testing.assert_array_equal(result[~HOLE], given[~HOLE])
    assert (result != given)[HOLE].any(-1).mean() > 0.5
    strip = read("out/strip.png")
    assert (strip == 255).all(-1).any() and (strip == 128).all(-1).any()  # laid on white; unknown pixels are mid-grey


def test_a_soft_mask_mixes():
    edit("inpaint", "a.png", "--mask", "ramp.png", "--soft", "--steps", "1", "--num", "1")
    difference = np.abs(read("out/a-1.png") - read("a.png"))
    assert difference[0, 0] == 0
    assert difference[0].mean() < difference[-1].mean()


@pytest.mark.parametrize("given", ["color.png", "a.png", "cut.png"])
def test_colorize_keeps_the_luminance(given):
    edit("colorize", given, "--steps", "1", "--num", "2", model="rgb")
    weights = np.array(LUMA) / sum(LUMA)
    name = given.removesuffix(".png")
    levels = read("a.png") if given == "a.png" else read("color.png") @ weights
    if given == "cut.png":
        levels = np.where(HOLE, 255, levels)
    for i in (1, 2):
        result = read(f"out/{name}-{i}.png")
        assert np.abs(result @ weights - levels).max() <= 1
        if given != "cut.png":
            assert np.ptp(result, axis=-1).mean() > 10
    assert (read(f"out/{name}-1.png") != read(f"out/{name}-2.png")).mean() > 0.3


@pytest.mark.parametrize(("given", "model", "factor"), [("small.png", "grey", 2), ("small-color.png", "rgb", 4)])
def test_upscale_keeps_the_means_of_blocks(given, model, factor):
    edit("upscale", given, "--steps", "1", "--num", "2", model=model)
    name, low = given.removesuffix(".png"), read(given)
    for i in (1, 2):
        result = read(f"out/{name}-{i}.png").astype(float)
        blocks = result.reshape(8 // factor, factor, 8 // factor, factor, *result.shape[2:])
        assert np.abs(blocks.mean((1, 3)) - low).max() <= 1
        assert blocks.std((1, 3)).mean() > 1


def test_upscale_shrinks_first_if_asked():
    edit("upscale", "large.png", "--factor", "2", "--resize", "--steps", "1", "--num", "1")
    small = read("large.png")[:, 4:20].reshape(4, 4, 4, 4).mean((1, 3))
    means = read("out/large-1.png").reshape(4, 2, 4, 2).mean((1, 3))
    assert np.abs(means - small).max() <= 1


def test_denoise_is_one_call_of_the_model(capsys):
    edit("denoise", "a.png", "b.png", "--sigma", "0.3", "--labels", "Bag", "Coat")
    assert re.search(r"steps +1 ", capsys.readouterr().out)
    model, config = cmjax.load("grey")
    state = cmjax.cm.init(config, sigmas=[0.3])
    x = (np.stack([read("a.png"), read("b.png")]) / 127.5 - 1).astype(np.float32)[..., None]
    clean = walk(model, state, x, jax.random.key(0), np.array([2, 0]))
    for name, wanted in zip("ab", cmjax.io.to_uint8(np.asarray(clean)), strict=True):
        assert np.abs(read(f"out/{name}-1.png") - wanted[..., 0]).max() <= 1


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ([], {"sigmas": [5.38, 2.24]}),
        (["--sigmas", "3,0.5"], {"sigmas": [3.0, 0.5]}),
        pytest.param(["--strength", "0.5"], {"num_steps": 2, "strength": 0.5}, marks=pytest.mark.slow),
        pytest.param(["--steps", "2"], {"sigmas": [5.38, 2.24]}, marks=pytest.mark.slow),
        (["--steps", "3"], {"num_steps": 3, "strength": 0.6}),
    ],
)
def test_stroke_redraws_from_the_noised_picture(options, path):
    edit("stroke", "a.png", "--num", "2", *options)
    model, config = cmjax.load("grey")
    state = cmjax.cm.init(config, **path)
    keys = jax.vmap(lambda v: jax.random.fold_in(jax.random.key(0), v))(np.arange(2))
    k_x, k_z = jax.vmap(jax.random.split, out_axes=1)(keys)
    x0 = np.repeat((read("a.png") / 127.5 - 1).astype(np.float32)[None, ..., None], 2, 0)
    drawn = walk(model, state, cmjax.add_noise(state, x0, k_x), k_z, np.array([2, 2]))
    for i, wanted in enumerate(cmjax.io.to_uint8(np.asarray(drawn)), 1):
        assert np.abs(read(f"out/a-{i}.png") - wanted[..., 0]).max() <= 1


@pytest.mark.parametrize(
    "options", [["--sampler", "tcd", "--eta", "0.5"], pytest.param(["--sampler", "lcm"], marks=pytest.mark.slow)]
)
def test_other_samplers_keep_what_is_known_too(options, capsys):
    edit("inpaint", "a.png", "--mask", "mask.png", "--num", "1", *options)
    said = capsys.readouterr().out
    assert re.search(rf"sampler +{options[1]}", said) and re.search(r"steps +8", said)
    np.testing.assert_array_equal(read("out/a-1.png")[~HOLE], read("a.png")[~HOLE])


def test_the_default_path_is_the_whole_grid(capsys):
    edit("inpaint", "a.png", "--mask", "mask.png", "--num", "1")
    assert re.search(r"steps +40", capsys.readouterr().out)


def test_stroke_by_strength_with_a_vp_model(capsys):
    edit("stroke", "a.png", "--num", "1", "--labels", "1", "--steps", "3", "--strength", "0.2", model="vp")
    said = capsys.readouterr().out
    assert re.search(r"sampler +tcd", said) and re.search(r"steps +3", said)


# ---- interpolate -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_path_starts_at_the_seeds_own_picture():
    files = edit("interpolate", "--seeds", "3", "5", "--num", "4")
    assert files == ["000.png", "001.png", "002.png", "003.png", "strip.png"]
    draw_first(3, "Bag")
    assert np.abs(read("out/000.png") - read("seed3/00000-class2.png")).max() <= 1
    assert (read("out/003.png") != read("out/000.png")).mean() > 0.3


@pytest.mark.slow
def test_one_seed_goes_from_class_to_class():
    edit("interpolate", "--seeds", "3", "--labels", "Coat", "Bag", "--num", "4")
    for file, label in (("000.png", "Coat"), ("003.png", "Bag")):
        draw_first(3, label)
        assert np.abs(read(f"seed3/00000-class{NAMES.index(label)}.png") - read(f"out/{file}")).max() <= 1
    assert (read("out/000.png") != read("out/003.png")).any()
    assert (read("out/001.png") != read("out/002.png")).any()


def draw_first(seed, label):
    """The first picture that `cmjax sample` draws."""
    argv = ["sample", "--model", "grey", "--labels", label, "--num", "1", "--seed", str(seed)]
    assert main([*argv, "--out", f"seed{seed}"]) == 0


@pytest.mark.slow
def test_four_seeds_are_the_corners_of_a_grid():
    size = ["--rows", "2", "--columns", "3", "--steps", "1"]
    edit("interpolate", "--seeds", "1", "2", "3", "4", *size, model="rgb", out="grid.png")
    assert Image.open("grid.png").size == (3 * 66 + 2, 2 * 66 + 2)
    edit("interpolate", "--seeds", "1", "2", "3", "4", *size, model="rgb")
    assert len(os.listdir("out")) == 7
    edit("interpolate", "--seeds", "3", "4", "--num", "3", "--steps", "1", model="rgb", out="bottom")
    for i in range(3):
        assert np.abs(read(f"bottom/00{i}.png") - read(f"out/00{i + 3}.png")).max() <= 1


# ---- pictures of all kinds -------------------------------------------------------------------------------------------


def test_pictures_of_all_kinds_meet_the_models_size_and_channels(capsys):
    levels = np.array([0, 20_000, 40_000, 65_535], np.uint16).repeat(16).reshape(8, 8)
    Image.fromarray(levels).save("deep.png")
    Image.open("color.png").quantize(16).save("palette.png")
    image = Image.open("large.png")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save("turned.png", exif=exif)
    names = ["deep.png", "palette.png", "turned.png", "color.png", "cut.png"]
    edit("stroke", *names, "--num", "1", "--sigmas", "0.002", "--resize", "--labels", *"00122")
    said = " ".join(capsys.readouterr().out.split())
    for note in (
        "palette.png was made grey, as the model's pictures are",
        "color.png was made grey",
        "turned.png was resized from 16x24 to 8x8",
        "cut.png is transparent, and was laid on white",
    ):
        assert note in said
    # At the least noise level the model gives back what it is given, to the noise's half a grey level.
    assert np.abs(read("out/deep-1.png") - np.round(levels / 257)).max() <= 2
    color = read("color.png") @ (np.array(LUMA) / sum(LUMA))
    assert np.abs(read("out/color-1.png") - color).max() <= 2
    assert np.abs(read("out/cut-1.png") - np.where(HOLE, 255, color)).max() <= 2
    turned = np.rot90(read("large.png"), -1)[4:20].reshape(8, 2, 8, 2).mean((1, 3))
    assert np.abs(read("out/turned-1.png") - turned).max() <= 2


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked_up():
    return functools.cache(cmjax.load)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("inpaint a.png", "a.png has no transparent pixels to fill: give --mask"),
        ("inpaint a.png --mask no.png", "--mask: no.png does not exist."),
        ("inpaint no.png --mask mask.png", "cmjax edit inpaint: no.png does not exist."),
        ("inpaint small.png --mask mask.png", "--mask: mask.png is 8x8, but small.png is 4x4: a mask must have"),
        ("inpaint large.png --mask large.png --soft", "large.png is 24x16, but must be 8x8: --resize"),
        (
            "inpaint a.png --mask ramp.png",
            "ramp.png is neither black nor white, as a mask, in 75% of its pixels: --soft",
        ),
        ("inpaint a.png --mask black.png", "black.png leaves nothing to fill"),
        ("inpaint a.png --mask white.png", "white.png leaves nothing known"),
        ("inpaint a.png --mask mask.png mask.png", "--mask: give one for all pictures or one each, 1, got 2."),
        ("inpaint a.png --mask mask.png --labels 1 2", "--labels: give one for all pictures or one each, 1, got 2."),
        ("inpaint a.png --mask mask.png --labels 3", "--labels: unknown label '3'"),
        ("inpaint a.png --mask mask.png --labels", "expected at least one argument"),
        (
            "inpaint a.png --mask mask.png --out a.png",
            "a.png is one of the input pictures, which would be lost.",
        ),
        ("inpaint a.png --mask mask.png --out mask.png", "--out: mask.png is one of the input pictures"),
        ("inpaint a.png --mask mask.png --out a.npz", "--out must end in .png, or be a folder, got a.npz."),
        ("inpaint a.png --mask mask.png --out no/a.png", "the folder no does not exist"),
        ("inpaint a.png --mask mask.png --steps 41", ": --steps must be between 1 and"),
        (
            "inpaint a.png --mask mask.png --eta 0.3",
            "--eta is for the samplers tcd, flow, ctm, meanflow, ddim",
        ),
        ("inpaint a.png --mask mask.png --num 9999999999", "argument --num: must be less than 2^31"),
        (f"inpaint {'a' * 300}.png --mask mask.png", "aaa.png: File name too long."),
        ("inpaint a.png --mask mask.png --num 0", "argument --num: must be a whole number of at least 1"),
        ("inpaint mask.png.txt --mask mask.png", "mask.png.txt does not exist."),
        (
            "inpaint --mask mask.png a.png",
            "are required: IMAGE; pictures come first, before options of several values.",
        ),
        ("colorize a.png", "--model must be one that makes colour pictures, but this one makes grey ones."),
        ("upscale a.png", "a.png is 8x8, which is not a whole fraction of the model's 8x8: --factor F --resize"),
        ("upscale large.png", "large.png is 24x16, which is not a whole fraction"),
        ("upscale a.png --factor 2", "a.png is 8x8, but must be 4x4: --resize crops and resizes."),
        ("upscale small.png --factor 3", "--factor must divide the model's size, 8x8, got 3."),
        ("upscale small.png --factor 1", "--factor must be at least 2, got 1."),
        ("upscale small.png tiny.png", "the pictures are of several sizes, to be enlarged [2, 4] times"),
        ("denoise a.png", "the following arguments are required: --sigma"),
        ("denoise a.png --sigma 90", ": --sigma must lie in [sigma_min, sigma_max] = [0.002, 80], got 90."),
        ("denoise a.png --sigma nan", ": --sigma must lie in"),
        ("denoise a.png --sigma 0.1 --model vp", "the sampler cm needs a sigma-space consistency model"),
        ("stroke a.png --sigmas 1 2", ": --sigmas must be strictly decreasing"),
        (
            "stroke a.png --sigmas 1 --sampler lcm",
            "euler_ancestral and heun, but the sampler is lcm.",
        ),
        ("stroke a.png --sigmas 1 --strength 0.5", "--strength shortens a grid of noise levels, but --sigmas names"),
        ("stroke a.png --sigmas 1 --steps 2", "not allowed with argument"),
        ("stroke a.png --strength 1.5", ": --strength must lie in (0, 1], got 1.5."),
        ("stroke a.png --strength 0", ": --strength must lie in (0, 1], got 0.0."),
        ("stroke a.png --strength 0.01", ": --strength = 0.01 leaves none of 40"),
        ("interpolate --seeds 1 2 3", "--seeds: give two seeds for a row of pictures, or four for a grid, got 3."),
        ("interpolate --seeds 1", "--seeds: one seed leads nowhere, unless from class to class"),
        ("interpolate --seeds 1 2 --rows 2", "--rows belongs to four seeds, got 2."),
        ("interpolate --num 1", "must be at least 2"),
        ("interpolate --labels 0 1 2", "--labels: give one class, or two"),
        ("", "the following arguments are required: TASK"),
        ("paint a.png", "invalid choice: 'paint'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(argv, message, capsys, monkeypatch, looked_up):
    monkeypatch.setattr(cmjax, "load", looked_up)  # once for all of them: it takes half a second
    task, *options = argv.split() or [None]
    given = [] if task in (None, "paint") else ["--model", "grey"]
    labels = ["--labels", "Bag"] if given and "--labels" not in options else []
    options = [*options, *([] if "--model" in options else given), *labels]
    assert message in complaint(capsys, "edit", *([task] if task else []), *(options if task else []))


@pytest.mark.parametrize("task", ["denoise a.png --sigma 0.5", "interpolate"])
def test_a_model_with_classes_wants_labels(task, capsys):
    said = complaint(capsys, "edit", *task.split(), "--model", "grey")
    assert "--labels: say what" in said and "the model has classes: Coat, Ankle boot, Bag." in said
    assert "--labels: the model has no classes." in complaint(
        capsys, "edit", *task.split(), "--model", "rgb", "--labels", "0"
    )


def test_files_that_are_no_picture(capsys):
    with open("text.png", "w") as file:
        file.write("no picture")
    with open("color.png", "rb") as whole, open("half.png", "wb") as half:
        half.write(whole.read()[:100])
    Image.open("a.png").save("moving.gif", save_all=True, append_images=[Image.open("b.png")])
    for name, message in (
        ("text.png", "text.png is not a picture"),
        ("half.png", "half.png is damaged"),
        ("moving.gif", "moving.gif has 2 frames"),
        (".", ". is a folder"),
        *((name, f"{name} is a pipe or a device") for name in special_files()),
    ):
        said = complaint(capsys, "edit", "stroke", name, "--model", "rgb")
        assert said.startswith(f"cmjax edit stroke: {message}")
        said = complaint(capsys, "edit", "inpaint", "color.png", "--mask", name, "--model", "rgb")
        assert said.startswith(f"cmjax edit inpaint: --mask: {message}")


def test_a_link_that_leads_to_itself_is_written_over():
    os.symlink("loop.png", "loop.png")
    edit("denoise", "a.png", "--sigma", "0.3", out="loop.png")
    assert Image.open("loop.png").format == "PNG"


def special_files():
    """What would keep a reader waiting for ever, where there is such a thing."""
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.png")
        yield "pipe.png"
    if os.path.exists("/dev/zero"):
        yield "/dev/zero"


def test_a_suffix_may_be_in_capitals():
    edit("denoise", "a.png", "--sigma", "0.3", out="STRIP.PNG")
    edit("interpolate", "--num", "2", "--steps", "1", out="Row.Png")
    for name in ("STRIP.PNG", "Row.Png"):
        assert Image.open(name).format == "PNG"


def test_a_model_of_latents_is_refused(capsys):
    said = complaint(capsys, "edit", "stroke", "a.png", "--model", "latent")
    assert "the model makes images of 4 channels, but pictures have 1 or 3." in said


def test_a_model_that_gives_nan_is_said_and_nothing_is_written(capsys):
    model, config = tiny.checkpoint(classes=None)
    cmjax.save((jax.tree.map(lambda leaf: leaf * np.nan, model), config), "broken")
    said = complaint(capsys, *["edit", "stroke", "a.png", "--num", "1", "--sigmas", "1", "--model", "broken"])
    assert "the model: images hold NaN in 64 of 64 values" in said


def test_help_teaches(capsys):
    for argv in ([], *([task] for task in TASKS)):
        assert main(["edit", *argv, "--help"]) == 0
        said = capsys.readouterr().out
        assert "examples:\n  cmjax edit" in said
        assert all(f"cmjax edit {task} " in said for task in argv)
