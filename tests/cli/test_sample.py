import atexit
import contextlib
import gc
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from commands import complaint
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from PIL import Image

import cmjax
from cmjax import cli
from cmjax.cli import compile_cache, main
from cmjax.cli.errors import UsageError
from cmjax.cli.options import PathOptions
from cmjax.cli.sampler_path import choose_sampler
from cmjax.drawing import choose_devices
from cmjax.io import read_images

NAMES = ["T-shirt/top", "Ankle boot", "Bag"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    cmjax.save(tiny.checkpoint(), path, label_names=NAMES)
    return str(path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def draw(model, *options, num=4, steps=2, out="s.npz"):
    path = [] if "--timesteps" in options else ["--steps", str(steps)]
    assert main(["sample", "--model", model, "--out", out, "--num", str(num), *path, *options]) == 0
    return dict(np.load(out)) if out.endswith(".npz") else None


# ---- sample ----------------------------------------------------------------------------------------------------------


def test_sample_draws_a_labelled_grid_and_says_what_it_did(model, capsys):
    assert main(["sample", "--model", model]) == 0
    picture = Image.open("samples.png")
    images_wide, images_high = 8 * 66, 3 * 66
    assert picture.size[0] > images_wide + 2
    assert picture.size[1] == images_high + 2
    said = capsys.readouterr().out
    for name, value in {"model": re.escape(model), "sampler": "cm", "steps": "2", "file": r"samples\.png"}.items():
        assert re.search(rf"^{name} +{value} *$", said.replace("\n         ", ""), re.MULTILINE), said
    assert re.search(r"compile +[\d.]+ s", said)
    assert re.search(r"speed +[\d.]+ images/s", said)
    assert os.listdir() == ["samples.png"]


def test_image_i_depends_on_seed_and_i_only(model):
    images = draw(model, "--seed", "5", num=10)
    assert images["images"].shape == (10, 8, 8, 1)
    assert images["labels"].tolist() == [0, 1, 2] * 3 + [0]
    for options, num in ((["--batch", "4"], 10), ([], 4)):
        part = draw(model, "--seed", "5", *options, num=num)
        np.testing.assert_array_equal(part["labels"], images["labels"][:num])
        assert len(part["images"]) == num
        assert np.abs(part["images"].astype(int) - images["images"][:num]).max() <= 1
    assert (draw(model, "--seed", "6")["images"] != images["images"][:4]).mean() > 0.5


def test_sample_is_the_librarys_generate(model):
    drawn = draw(model, "--timesteps", "22", "0", "--seed", "3")
    net, config = cmjax.load(model)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(np.arange(4))
    state = cmjax.cm.init(config, timesteps=[22, 0])
    images = cmjax.generate(net, state, keys, (4, 8, 8, 1), np.array([0, 1, 2, 0]))
    assert np.abs(cmjax.io.to_uint8(np.asarray(images)).astype(int) - drawn["images"]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--sampler", "tcd", "--eta", "0.5"], ["--sampler", "lcm"]])
def test_vp_samplers_run_on_a_sigma_space_model(model, options, capsys):
    images = draw(model, *options)["images"]
    assert images.std() > 0
    assert re.search(rf"sampler +{options[1]}", capsys.readouterr().out)


@pytest.mark.slow
def test_a_published_model_takes_its_published_path(capsys):
    name = "diffusers-cd_imagenet64_l2"
    cmjax.save(tiny.checkpoint(), name)
    drawn = {options: draw(name, *options.split(), steps=2)["images"] for options in ("", "--timesteps 22 0")}
    assert "2 (timesteps 22, 0, as published)" in capsys.readouterr().out
    np.testing.assert_array_equal(*drawn.values())
    assert main(["inspect", name, "--steps", "2"]) == 0
    assert "path: cm, 2 steps (timesteps 22, 0, as published)" in capsys.readouterr().out
    for other in (["--steps", "1"], ["--steps", "3"], ["--timesteps", "10", "0"], ["--sampler", "tcd", "--steps", "2"]):
        assert main(["inspect", name, *other]) == 0
        assert "as published" not in capsys.readouterr().out
    cmjax.save(tiny.checkpoint(config=cmjax.cm.CMConfig(num_train_timesteps=50)), name)  # on another grid
    assert main(["inspect", name, "--steps", "2"]) == 0
    assert "as published" not in capsys.readouterr().out


def test_a_suffix_may_be_in_capitals(model):
    draw(model, out="GRID.PNG")
    assert Image.open("GRID.PNG").format == "PNG"
    draw(model, out="DATA.NPZ")
    assert read_images("DATA.NPZ").images.shape == (4, 8, 8, 1)


def test_labels_by_name_and_number(model):
    for text in (["Ankle boot", "2"], ["ankle BOOT", "bag"], ["1,2"], ["Ankle boot,Bag"]):
        assert draw(model, "--labels", *text)["labels"].tolist() == [1, 2, 1, 2]


@pytest.mark.slow
def test_a_trajectory_ends_in_the_sample(model):
    plain = draw(model)["images"]
    kept = draw(model, "--trajectory")
    assert kept["x0"].shape == (4, 2, 8, 8, 1)
    assert np.abs(kept["images"].astype(int) - plain).max() <= 1
    draw(model, "--trajectory", out="strips")
    assert sorted(os.listdir("strips")) == [f"0000{i}-class{i % 3}.png" for i in range(4)]
    strip = np.asarray(Image.open("strips/00000-class0.png")).astype(int)
    assert strip.shape == (8, 16)
    assert np.abs(strip[:, :8] - kept["x0"][0, 0, ..., 0]).max() <= 1
    assert np.abs(strip[:, 8:] - plain[0, ..., 0]).max() <= 1


@pytest.mark.slow
def test_other_dtypes_draw_much_the_same(model):
    plain, half = draw(model)["images"], draw(model, "--dtype", "bfloat16")["images"]
    assert 0 < np.abs(plain.astype(int) - half).mean() < 10


@pytest.mark.slow
def test_a_model_without_classes_or_names():
    cmjax.save(tiny.checkpoint(classes=None), "plain")
    assert sorted(draw("plain")) == ["images"]
    cmjax.save(tiny.checkpoint(classes=12), "many")
    assert draw("many", num=11)["labels"].tolist() == [*range(10), 0]


def test_a_labels_json_of_another_tool_is_no_matter_to_a_model_without_classes(capsys):
    cmjax.save(tiny.checkpoint(classes=None), "plain")
    with open("plain/labels.json", "w") as file:
        json.dump({"0": "tench"}, file)
    assert sorted(draw("plain")) == ["images"]
    assert main(["inspect", "plain"]) == 0
    cmjax.save(cmjax.load("plain"), "plain")  # over itself
    assert cmjax.io.configs.read_json("plain/labels.json") == {"0": "tench"}
    assert "tench" not in capsys.readouterr().out


def test_the_picture_does_not_depend_on_the_number_of_devices(model, monkeypatch):
    assert jax.local_device_count() >= 4
    four = draw(model)["images"].astype(int)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    assert np.abs(draw(model)["images"] - four).max() <= 1


def test_the_collector_rests_while_the_commands_own_process_imports(monkeypatch):
    frozen, at_the_end = [], []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.setattr(atexit, "register", at_the_end.append)
    with cli._without_garbage_collector():  # JAX is there already: somebody else's process
        assert gc.isenabled()
    assert not frozen and not at_the_end
    monkeypatch.delitem(sys.modules, "jax")
    with cli._without_garbage_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen == [False] and at_the_end == [gc.freeze]


@pytest.mark.slow
def test_what_belongs_to_texts_loads_where_a_text_is_given():
    program = (
        "import sys, cmjax.cli.sample; print({'cmjax.text_to_image', 'cmjax.lora', 'cmjax.artifact'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout.strip() == b"set()"


def test_the_compile_cache_is_kept_where_xdg_says(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: settings.update({name: value}))
    settings = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert compile_cache.enable() == tmp_path / "home" / "cmjax" / "xla"
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "home" / "cmjax" / "xla")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # not allowed: passed over
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert tmp_path in compile_cache.cache_folder().parents
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    assert str(compile_cache.enable()) == "/mine"


def test_a_cache_that_cannot_be_kept_is_no_reason_to_fail(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compile_cache.enable() is None


def test_a_compiled_program_outlives_changes_that_do_not_touch_it(monkeypatch, tmp_path):
    """Other lines, another file and another docstring find the kept program; other numbers do not."""
    source = Path(cmjax.parameterization.__file__).read_text()

    def kept_after(name, source):
        module = types.ModuleType(cmjax.parameterization.__name__)
        exec(compile(source, tmp_path / name, "exec", dont_inherit=True), vars(module))
        jax.jit(module.c_skip).lower(2.0, 0.5).compile()
        return {file.name for file in (tmp_path / "cmjax" / "xla").glob("*-cache")}

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with kept_settings():
        compile_cache.enable()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        first = kept_after("first.py", source)
        moved = source.replace("\ndef c_skip", "\n" * 9 + "def c_skip").replace("Weight of", "What weighs")
        assert moved != source
        assert len(first) == 1
        assert kept_after("moved.py", moved) == first
        assert len(kept_after("other.py", source.replace("return sigma_data**2 /", "return sigma_data**4 /"))) == 2


@contextlib.contextmanager
def kept_settings():
    """Give JAX's settings of the compile cache back at the end."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "41"], "cmjax sample: --steps must be between 1 and num_train_timesteps = 40, got 41."),
        (["--steps", "0"], "argument --steps: must be a whole number of at least 1, got 0."),
        (["--steps", "2", "--timesteps", "0"], "not allowed with argument"),
        (["--timesteps", "20", "30"], ": --timesteps must be strictly decreasing, but timesteps[1] = 30 follows 20."),
        (["--timesteps", "x"], "argument --timesteps: must be numbers, got x."),
        (["--sampler", "tcd", "--eta", "1.3"], ": --eta must lie in [0, 1], got 1.3. (The TCD paper calls it gamma.)"),
        (
            ["--eta", "0.3"],
            "ctm, meanflow, ddim and euler_ancestral, but the sampler is cm.",
        ),
        (["--sampler", "plms"], "argument --sampler: invalid choice: 'plms'"),
        (
            ["--labels", "Ankle boots"],
            "unknown label 'Ankle boots': give numbers 0 ... 2 or names. Did you mean 'Ankle boot'?",
        ),
        (["--labels", "3"], "unknown label '3'"),
        (["--labels", ","], "--labels: no label was given."),
        (["--out", "a.jpg"], "--out must end in .png or .npz, or be a folder, got a.jpg."),
        (["--out", "missing/a.png"], "--out: cannot write missing/a.png: the folder missing does not exist."),
        (["--variant", "a/b"], ": --variant must be a word such as fp16, got 'a/b'."),
        (["--model", "no-such-model"], "no model no-such-model: it is neither a folder here"),
        (["--seed", "-1"], "must be a whole number from 0"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(options, message, model, capsys):
    argv = ["sample", *([] if "--model" in options else ["--model", model]), *options]
    assert message in complaint(capsys, *argv)


def test_flows_and_angles_are_sampled_by_their_own_samplers():
    def chosen(config, **asked):
        checkpoint = cmjax.Checkpoint(cmjax.models.from_function(lambda x, t, cond: x), config)
        return choose_sampler(checkpoint, "m", PathOptions(**asked))

    of_flow, in_angles = cmjax.flow.FlowConfig(), cmjax.scm.SCMConfig()
    assert chosen(of_flow).state.etas.tolist() == [0.0, 0.0]
    assert chosen(of_flow, steps=4, eta=0.5).state.etas.tolist() == [0.5] * 4
    assert chosen(of_flow, sigmas=(0.75, 0.5)).state.timesteps.tolist() == [750.0, 500.0]
    assert chosen(cmjax.flow.FlowLCMConfig()).sampler == "flow"
    by_size = cmjax.flow.FlowConfig(use_dynamic_shifting=True)
    expected = cmjax.flow.init(by_size, 3, mu=1.15).sigmas.tolist()
    assert chosen(by_size, steps=3, mu=1.15).state.sigmas.tolist() == expected
    assert chosen(in_angles, timesteps=(1.5, 1.0)).state.timesteps.tolist() == [1.5, 1.0]
    for config, asked, message in (
        (of_flow, {"sampler": "tcd"}, "the model is a flow, which tcd cannot sample: leave out --sampler tcd."),
        (in_angles, {"mu": 1.15}, "--mu is for the sampler flow, but the sampler is scm."),
        (of_flow, {"mu": 1.15}, "mu and image_seq_len are for use_dynamic_shifting"),
        (in_angles, {"sampler": "flow"}, "the sampler flow needs a flow, but this model was made for scm."),
        (
            in_angles,
            {"eta": 0.3},
            "--eta is for the samplers tcd, flow, ctm, meanflow, ddim and euler_ancestral, but the sampler is scm.",
        ),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            chosen(config, **asked)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody may write")
def test_an_unwritable_place_is_found_before_anything_is_computed(capsys):
    # The model does not exist either: the place is checked before it is looked for.
    for out in ("/proc/a.png", "/proc/a.npz", "/proc/a"):
        assert f"--out: cannot write {out}" in complaint(capsys, "sample", "--model", "no-such-model", "--out", out)


def test_damaged_models_are_one_sentence(model, capsys):
    def damaged(name, content=None):
        import shutil

        shutil.copytree(model, "damaged", dirs_exist_ok=True)
        path = os.path.join("damaged", name)
        if content is None:
            os.remove(path)
        else:
            with open(path, "wb") as file:
                file.write(content)
        said = complaint(capsys, "sample", "--model", "damaged")
        shutil.rmtree("damaged")
        return said

    with open(os.path.join(model, "unet", "diffusion_pytorch_model.safetensors"), "rb") as file:
        weights = file.read()
    assert "has no weights" in damaged("unet/diffusion_pytorch_model.safetensors")
    assert "diffusion_pytorch_model.safetensors" in damaged("unet/diffusion_pytorch_model.safetensors", weights[:500])
    assert "has no unet/config.json" in damaged("unet/config.json")
    assert "is not valid JSON" in damaged("unet/config.json", b"{")
    assert "is for UniPCMultistepScheduler; cmjax reads" in damaged(
        "scheduler/scheduler_config.json", b'{"_class_name": "UniPCMultistepScheduler"}'
    )
    assert "names 1 classes, but its network has 3" in damaged("labels.json", b'["a"]')
    cm = b'{"_class_name": "CMStochasticIterativeScheduler", '
    for value, message in (
        (b'"sigma_max": "80"}', "sigma_max must be a finite number, got '80'"),
        (b'"sigma_max": Infinity}', "sigma_max must be a finite number, got inf"),
        (b'"rho": 1e-3}', "rho = 0.001 leaves no room"),
        (b'"clip_denoised": "false"}', "clip_denoised must be true or false, got 'false'"),
        (b'"num_train_timesteps": 1e30}', "num_train_timesteps must be a whole number, got 1e+30"),
    ):
        assert message in damaged("scheduler/scheduler_config.json", cm + value)
    assert "cmjax reads" in damaged("scheduler/scheduler_config.json", b'{"_class_name": ["a"]}')
    assert "is not valid JSON" in damaged("scheduler/scheduler_config.json", b"[" * 100_000)
    with open(os.path.join(model, "unet", "config.json")) as file:
        unet = json.load(file)
    for changes, message in (
        ({"norm_eps": "x"}, "norm_eps must be a finite number, got 'x'"),
        ({"block_out_channels": 8}, "block_out_channels must be a list, each a whole number, got 8"),
        ({"sample_size": "8"}, "sample_size must be a whole number or a list"),
        ({"sample_size": 0}, "sample_size must be a positive integer, got 0"),
    ):
        assert message in damaged("unet/config.json", json.dumps(unet | changes).encode())
    assert "must hold a JSON object, but it holds a list" in damaged("unet/config.json", b"[]")


def test_channels_that_no_picture_shows_need_npz(capsys):
    cmjax.save(tiny.checkpoint(channels=4, classes=None), "latent")
    assert "4 channels, which only an .npz file holds" in complaint(capsys, "sample", "--model", "latent")
    assert draw("latent")["images"].shape == (4, 8, 8, 4)


def test_a_model_that_gives_nan_is_said_and_nothing_is_written(capsys):
    model, config = tiny.checkpoint()
    cmjax.save((jax.tree.map(lambda leaf: leaf * np.nan, model), config), "broken")
    assert "the model: images hold NaN in 256 of 256 values" in complaint(
        capsys, "sample", "--model", "broken", "--num", "4"
    )


def test_conditions_that_are_no_classes_are_refused(capsys):
    cmjax.save(tiny.checkpoint(classes=None, class_embed_type="timestep"), "timed")
    assert "conditioned on a timestep" in complaint(capsys, "sample", "--model", "timed")


def test_no_command_and_help(capsys):
    assert main([]) == 2
    assert "required: COMMAND" in capsys.readouterr().err
    for command in ([], ["sample"], ["train"], ["inspect"]):
        assert main([*command, "--help"]) == 0
        assert (f"cmjax {command[0]} " if command else "sample") in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cmjax {cmjax.__version__}\n"


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "cmjax", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"cmjax {cmjax.__version__}\n"


def test_parsing_needs_no_jax():
    program = "import sys, cmjax.cli; cmjax.cli.parse(['sample']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_shows_configs_size_and_path(model, capsys):
    assert main(["inspect", model, "--steps", "4"]) == 0
    said = capsys.readouterr().out
    parameters = sum(leaf.size for leaf in jax.tree.leaves(cmjax.load(model).model))
    for pattern in (
        rf"parameters +{parameters:,} in",
        r"classes +T-shirt/top, Ankle boot, Bag",
        r"block_out_channels +\[8\]",
        r"network: UNet2DModel",
        r"sampler: CMStochasticIterativeScheduler",
        r"sigma_max +80",
        r"0 +1 +80 +1095\.5067",  # step, alpha, sigma, timestep
        r"2 +1 +2\.24044",
    ):
        assert re.search(pattern, said), (pattern, said)
    assert "landing" not in said


def test_inspect_shows_where_tcd_lands(model, capsys):
    assert main(["inspect", model, "--sampler", "tcd", "--steps", "4", "--eta", "0.3"]) == 0
    said = capsys.readouterr().out
    for timestep, landing in ((999, 531), (759, 349), (499, 181), (259, 0)):
        assert re.search(rf"{timestep} +{landing}\b", said), said


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_an_output_that_is_full_is_one_sentence(model):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cmjax", "inspect", model], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert "writing failed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="how many cores there are for us is not known")
@pytest.mark.parametrize(
    ("said", "devices"),
    [
        ({}, None),
        pytest.param({"JAX_NUM_CPU_DEVICES": "3"}, 3, marks=pytest.mark.slow),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
)
def test_each_core_is_a_device_unless_the_user_has_said_how_many_there_are(said, devices):
    program = "import jax; from cmjax.drawing import use_cores_as_devices as f; f(); print(jax.device_count()); f()"
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**kept, **said}, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) == (devices or min(8, len(os.sched_getaffinity(0))))


def test_a_large_model_is_not_copied_for_every_core():
    large = {"weights": jax.ShapeDtypeStruct((1 << 27,), "float32")}
    assert [len(choose_devices(*asked)) for asked in ((), (None, large), (2, large))] == [8, 1, 2]
