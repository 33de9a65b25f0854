"""Exported samplers: this room runs them as a stranger would, in a process that has no cmjax, and damages them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import cmjax
from cmjax import artifact

STRANGER = """
import json, sys
from importlib import abc
from pathlib import Path

class Nothing(abc.MetaPathFinder):  # none of these may be imported
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cmjax", "flax", "optax", "chex", "orbax", "safetensors", "PIL", "rich"):
            raise ModuleNotFoundError(f"{name} is not to be here")

sys.meta_path.insert(0, Nothing())
import jax, numpy as np
from jax import export

folder = Path(sys.argv[1])
sampler = export.deserialize(bytearray((folder / "sampler.bin").read_bytes()))
state = dict(np.load(folder / "state.npz"))
keys = jax.random.key_data(jax.random.split(jax.random.key(0), 5))
labels = np.arange(5, dtype=np.int32) % 3
np.save(sys.argv[2], jax.jit(sampler.call)({}, state, keys, labels))
"""


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.checkpoint().model


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifacts") / "sampler"
    config = cmjax.cm.CMConfig()
    state = cmjax.pad(cmjax.cm.init(config, num_steps=2), 4)
    artifact.save(path, model, config, state, (8, 8, 1), classes=3, label_names=["a", "b", "c"])
    return path


def drawn(model: Any, state: Any, batch: int) -> jax.Array:
    keys, labels = jax.random.split(jax.random.key(0), batch), jnp.arange(batch) % 3
    return jax.jit(cmjax.generate, static_argnames="shape")(model, state, keys, shape=(batch, 8, 8, 1), cond=labels)


def test_a_stranger_draws_the_same_pictures_with_jax_and_numpy_alone(model: Any, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(STRANGER), str(folder), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), drawn(model, state, 5), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_any_batch_and_any_number_of_steps_up_to_the_most(model: Any, folder: Path) -> None:
    found = artifact.load(folder)
    held = found.held
    assert (held.max_steps, held.image, held.classes, held.label_names) == (4, (8, 8, 1), 3, ("a", "b", "c"))
    for batch, steps in ((1, 1), (2, 3), (7, 4)):
        state = cmjax.cm.init(found.held.config, num_steps=steps)
        keys, labels = jax.random.split(jax.random.key(0), batch), jnp.arange(batch) % 3
        got = jax.jit(found.__call__)(cmjax.pad(state, 4), keys, labels)
        np.testing.assert_allclose(got, drawn(model, state, batch), rtol=0, atol=2e-5)


def test_it_is_for_cpu_gpu_and_tpu_and_holds_no_callback(folder: Path) -> None:
    found = artifact.load(folder)
    assert found.held.program.platforms == ("cpu", "cuda", "tpu")
    text = found.held.program.mlir_module()
    assert "callback" not in text
    assert "f64" not in text


@pytest.mark.slow
def test_weights_beside_the_program_may_be_others(tmp_path: Path) -> None:
    config = cmjax.tcd.TCDConfig(prediction_type="sample")
    first, second = (tiny.checkpoint(classes=None, seed=seed).model for seed in (0, 1))
    state = cmjax.pad(cmjax.tcd.init(config, 2, eta=0.3), 3)
    sizes = []
    for where in ("inside", "beside"):
        artifact.save(tmp_path / where, first, config, state, (8, 8, 1), platforms=["cpu"], weights=where)
        sizes.append((tmp_path / where / "sampler.bin").stat().st_size)
    assert sizes[0] - sizes[1] > 0.7 * sum(leaf.nbytes for leaf in jax.tree.leaves(first))
    found = artifact.load(tmp_path / "beside")
    keys = jax.random.split(jax.random.key(0), 2)
    draw = jax.jit(lambda drawer, state, keys: drawer(state, keys))  # the weights are arguments, not constants
    for model in (first, second):
        names, leaves, _ = artifact.program.named(model)
        own = found.replace(weights=dict(zip(names, leaves, strict=True)))
        live = jax.jit(cmjax.generate, static_argnames="shape")(model, state, keys, shape=(2, 8, 8, 1))
        np.testing.assert_allclose(draw(own, state, keys), live, rtol=0, atol=2e-5)
    weights = bytearray((tmp_path / "beside" / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "beside" / "weights.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"weights.safetensors is damaged: it is not what was exported"):
        artifact.load(tmp_path / "beside")


def test_what_cannot_run_here_is_refused_before_it_is_read(folder: Path, tmp_path: Path) -> None:
    def changed(**changes: Any) -> Path:
        copy = tmp_path / str(len(list(tmp_path.iterdir())))
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        about = json.loads((copy / "artifact.json").read_text()) | changes
        (copy / "artifact.json").write_text(json.dumps(about))
        return copy

    for changes, message in (
        (
            {"platforms": ["tpu"]},
            r"was exported for tpu, but this machine is cpu: export it again with --platforms cpu",
        ),
        ({"calling_convention": 3}, r"with calling convention 3, but jax .* here reads \d+ to \d+: export it again"),
        ({"calling_convention": 99}, r"calling convention 99, .* or install a jax as new"),
        ({"version": 3}, r"is an artifact of version 3; this cmjax reads 1 and 2"),
        ({"version": 2}, r"artifact.json is damaged: its prompt is None"),
        ({"format": "other"}, r"does not describe an artifact of cmjax"),
        ({"sha256": {}}, r"sampler.bin is damaged: it is not what was exported"),
        ({"image": None}, r"artifact.json is damaged: its image is None"),
        ({"image": [8, "8", 1]}, r"is damaged: its image is"),
        ({"platforms": [3]}, r"is damaged: its platforms is"),
        ({"label_names": 7}, r"is damaged: its label_names is 7"),
        ({"classes": 0}, r"is damaged: its classes is 0"),
        ({"classes": None}, r"artifact.json and sampler.bin do not belong together"),
        ({"image": [4, 4, 1]}, r"artifact.json and sampler.bin do not belong together"),
        ({"label_names": ["a"]}, r"artifact.json and sampler.bin do not belong together"),
        ({"weights": "near"}, r"is damaged: its weights is 'near'"),
        ({"platforms": []}, r"is damaged: its platforms is"),
        ({"calling_convention": True}, r"is damaged: its calling_convention is True"),
    ):
        with pytest.raises(ValueError, match=message):
            artifact.load(changed(**changes))
    cut = changed()
    held = (cut / "sampler.bin").read_bytes()
    (cut / "sampler.bin").write_bytes(held[: len(held) // 2])
    with pytest.raises(ValueError, match=r"sampler.bin is damaged"):
        artifact.load(cut)
    (cut / "state.npz").unlink()
    (cut / "sampler.bin").write_bytes(held)
    with pytest.raises(FileNotFoundError, match=r"has no state\.npz"):
        artifact.load(cut)
    with pytest.raises(FileNotFoundError, match=r"is not an artifact: it has no artifact.json. cmjax export MODEL"):
        artifact.load(tmp_path / "nowhere")


def test_a_path_of_another_kind_or_length_is_refused(folder: Path) -> None:
    found, keys, labels = artifact.load(folder), jax.random.split(jax.random.key(0), 2), jnp.zeros(2, jnp.int32)
    for state in (cmjax.cm.init(found.held.config, 2), cmjax.pad(cmjax.cm.init(found.held.config, 2), 5)):
        with pytest.raises(ValueError, match=r"state must be a path padded to 4 steps, cmjax.pad\(state, 4\); its"):
            found(state, keys, labels)
    with pytest.raises(ValueError, match="it has no sigmas"):
        found({"timesteps": np.zeros(4), "index": np.zeros((), np.int32)}, keys, labels)


def test_keys_of_another_kind_are_refused(folder: Path) -> None:
    found, labels = artifact.load(folder), jnp.zeros(2, jnp.int32)
    state = cmjax.pad(cmjax.cm.init(found.held.config, 2), 4)
    for keys, kind, message in (
        (jax.random.key(0), ValueError, "keys must be one for each image, as of .*, got one key"),
        (jax.random.PRNGKey(0), ValueError, "got one key"),
        (np.zeros((2, 2), np.int32), ValueError, r"or their data u32\[B, 2\], got int32\[2, 2\]"),
        (
            jax.random.split(jax.random.key(0, impl="rbg"), 2),
            TypeError,
            "keys must be threefry keys, JAX's default, got",
        ),
    ):
        with pytest.raises(kind, match=message):
            found(state, keys, labels)


def test_what_is_asked_of_a_call_is_checked(folder: Path) -> None:
    found, keys = artifact.load(folder), jax.random.split(jax.random.key(0), 2)
    config, labels = found.held.config, jnp.zeros(2, jnp.int32)
    state = cmjax.pad(cmjax.cm.init(config, 2), 4)
    unclipped = cmjax.pad(cmjax.cm.init(cmjax.cm.CMConfig(clip_denoised=False), 2), 4)
    for path, cond, message in (
        (state, None, r"cond must be i32\[2\], a class for each image, got None"),
        (state, jnp.zeros(3, jnp.int32), r"cond must be i32\[2\], a class for each image, got int32\[3\]"),
        (state, jnp.zeros(2), r"got float32\[2\]"),
        (
            state.replace(index=state.index + 1),
            labels,
            "an artifact starts at the first step, but this state is at index 3",
        ),
        (unclipped, labels, "state must be a path of the artifact's config, such as"),
        (
            artifact.tables(state) | {"more": labels},
            labels,
            "state must hold index, timesteps, .* but it holds more too",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            found(path, keys, cond)
    assert found(state, keys, np.zeros(2, np.int64)).shape == (2, 8, 8, 1)


def test_what_cannot_be_exported_is_refused_first(model: Any, tmp_path: Path) -> None:
    config = cmjax.cm.CMConfig()
    state, out, size = cmjax.pad(cmjax.cm.init(config, 2), 4), tmp_path / "a", (8, 8, 1)
    used, export, save = state.replace(index=state.index + 1), artifact.export, artifact.save
    for kind, message, call in (
        (TypeError, "state must be a path, as init", lambda: export(model, config, size)),
        (ValueError, "export starts at the first step", lambda: export(model, used, size)),
        (ValueError, "image must be the shape of one sample, such as .*, got 8", lambda: export(model, state, 8)),
        (TypeError, "model must be a function", lambda: export(None, state, size)),
        (TypeError, "model must be a pytree of arrays", lambda: export(lambda x, t, c: x, state, size)),
        (ValueError, "platforms must be a list, of cpu", lambda: export(model, state, size, platforms="cpu")),
        (TypeError, "config must be what the state was made of, got a TCDConfig for a CMState",
         lambda: save(out, model, cmjax.tcd.TCDConfig(), state, size)),
        (ValueError, "classes must be a whole number of at least 1, or None, got '3'",
         lambda: save(out, model, config, state, size, classes="3")),
        (ValueError, "label_names must be one text for each of 3 classes",
         lambda: save(out, model, config, state, size, classes=3, label_names=["a"])),
        (FileNotFoundError, "the folder .* does not exist",
         lambda: save(tmp_path / "no" / "a", model, config, state, size, classes=3)),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            call()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "artifact.json").write_text("notes of mine")
    with pytest.raises(FileExistsError, match="holds other files than an artifact's"):
        artifact.save(tmp_path / "mine", model, config, state, (8, 8, 1), classes=3)


def test_a_path_must_be_padded(model: Any, tmp_path: Path) -> None:
    config = cmjax.cm.CMConfig()
    with pytest.raises(ValueError, match=r"state must be padded, so that its steps are a value: cmjax.pad\(state, 2\)"):
        artifact.save(tmp_path / "a", model, config, cmjax.cm.init(config, 2), (8, 8, 1), classes=3)


def test_other_files_are_not_written_over(model: Any, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    config = cmjax.cm.CMConfig()
    state = cmjax.pad(cmjax.cm.init(config, 2), 4)
    with pytest.raises(FileExistsError, match="holds other files than an artifact's"):
        artifact.save(tmp_path, model, config, state, (8, 8, 1), classes=3)
    with pytest.raises(ValueError, match=r"platforms must be of cpu, cuda, tpu, rocm, got 'gpu'"):
        artifact.export(model, state, (8, 8, 1), platforms=["gpu"])
    with pytest.raises(ValueError, match="weights must be 'inside' or 'beside', got 'near'"):
        artifact.export(model, state, (8, 8, 1), weights="near")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
