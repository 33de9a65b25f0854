"""Checkpoints of a run, written by Orbax: versioned, complete or absent, and only for the recipe that wrote them."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax._version import __version__
from cmjax.io.configs import config_dict, read_config
from cmjax.training import hosts
from cmjax.training.recipe import OPTAX, Recipe

if TYPE_CHECKING:
    from cmjax.samplers.base import SamplerConfig
    from cmjax.training.step import TrainState

__all__ = ["Beside", "beside", "environment", "fingerprint", "latest_step", "restore", "save"]

_FORMAT = 1
_KEPT = 2
_MOST_AVERAGES = 16
_REMEDY = "Without this folder, a run resumes from the checkpoint before it, if there is one."
_HALF_WRITTEN = "*.orbax-checkpoint-tmp*"


class Beside(NamedTuple):
    """What a run needs beside its checkpoints: its teacher, and what of its model is frozen.

    Attributes:
      teacher: what identifies it, or None.
      frozen: the checksum of what is frozen, or None.
      names: of the frozen leaves, in the model.
    """

    teacher: dict[str, Any] | None = None
    frozen: int | None = None
    names: frozenset[str] = frozenset()


_NOTHING = Beside()


def save(
    folder: str | os.PathLike[str],
    state: TrainState,
    recipe: Recipe,
    config: SamplerConfig | None,
    told: Beside = _NOTHING,
) -> None:
    """Write a state, and what it followed, as `folder/STEP`; a kill leaves it complete or absent.

    The state holds what is trained. It followed the recipe, the config, and what `told` identifies (`beside`). The
    newest two checkpoints are kept.

    Raises:
      OSError: it cannot be written (a full disk); older checkpoints stay intact.
    """
    import orbax.checkpoint as ocp  # takes seconds to import

    folder, step = Path(folder).absolute(), int(state.step)
    arrays = {name: np.asarray(leaf) for name, leaf in jax.device_get(hosts.gathered(_named(state))).items()}
    meta = {"format": _FORMAT, **_followed(recipe, config), "teacher": told.teacher, "environment": environment()}
    meta |= {} if told.frozen is None else {"frozen": told.frozen}
    if hosts.is_first():
        _sweep(folder)
    hosts.together("swept")
    args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder / str(step), args=args, force=True)
    except (OSError, ValueError, RuntimeError) as error:  # the latter from tensorstore, of a file it cannot write
        if hosts.is_first():
            _sweep(folder)
        raise OSError(f"the checkpoint of step {step} cannot be written: {error}") from error
    for old in _steps(folder)[:-_KEPT] if hosts.is_first() else ():
        shutil.rmtree(folder / str(old), ignore_errors=True)


def restore(
    folder: str | os.PathLike[str],
    like: TrainState,
    recipe: Recipe,
    config: SamplerConfig | None,
    told: Beside = _NOTHING,
) -> tuple[TrainState, dict[str, Any]]:
    """Read the newest state of a folder, into the structure of `like`; also the `environment` it was written in.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or of another network, optimizer, recipe, config, teacher or frozen part.
    """
    import orbax.checkpoint as ocp

    step = latest_step(folder)
    if step is None:
        raise FileNotFoundError(f"There is no checkpoint to resume from in {folder}.")
    path = Path(folder).absolute() / str(step)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            meta = checkpointer.restore(path, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if meta["format"] != _FORMAT:
            raise ValueError(f"it is of format {meta['format']}, not {_FORMAT}")
        followed = _followed(
            _read_recipe(meta["recipe"], path), read_config(meta["config"]) if meta["config"] else None
        )
    except Exception as error:  # whatever the damage: files that are missing, cut short or not JSON
        raise ValueError(f"{path} is not a whole checkpoint of this version of cmjax ({error}). {_REMEDY}") from error
    for part, now in _followed(recipe, config).items():
        if fault := _difference(followed[part], now):
            raise ValueError(f"{path} followed a {part} with {fault}.")
    if meta.get("teacher", told.teacher) != told.teacher:
        raise ValueError(f"{path} followed another teacher: give that one.")
    if meta.get("frozen", told.frozen) != told.frozen:
        raise ValueError(f"{path} is of a model whose frozen part has other weights: give that model.")
    wanted = _named(like)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            arrays = checkpointer.restore(path, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state
    except Exception as error:
        raise ValueError(f"{path} is not a whole checkpoint ({error}). {_REMEDY}") from error
    for name in sorted(wanted.keys() | (arrays.keys() - _frozen_before(told))):
        was, now = (_form(leaves[name]) if name in leaves else None for leaves in (arrays, wanted))
        if was != now:
            raise ValueError(f"{path} is of another network or optimizer: {name} was {was}, but is {now} now.")
    leaves = [
        jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=jax.random.key_impl(old)) if _is_key(old)
        else jnp.asarray(arrays[name])
        for name, old in zip(wanted, jax.tree.leaves(like), strict=True)
    ]  # fmt: skip
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta["environment"]


def latest_step(folder: str | os.PathLike[str]) -> int | None:
    """Find the newest step that has a checkpoint."""
    steps = _steps(Path(folder))
    return steps[-1] if steps else None


def environment() -> dict[str, str]:
    """Describe what a run needs to resume to the same bits: versions, the kind and the number of devices."""
    device = jax.local_devices()[0]
    return {
        "cmjax": __version__,
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "flax": version("flax"),
        "optax": version("optax"),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "machine": platform.machine(),
    }


def _read_recipe(said: dict[str, Any], path: Path) -> Recipe:
    if said["optimizer"] != OPTAX:
        return Recipe().changed(said, str(path))
    some = Recipe(optimizer=optax.identity())  # which one, its state will tell
    return some.changed({name: value for name, value in said.items() if name != "optimizer"}, str(path))


def _followed(recipe: Recipe, config: SamplerConfig | None) -> dict[str, dict[str, Any]]:
    """Describe what a run must share with the run that it continues."""
    return {"recipe": recipe.to_dict(), "config": {} if config is None else config_dict(config)}


def beside(teacher: Any, frozen: Any) -> Beside:
    """Identify a teacher, a pair (model, config), and the frozen part of a model, by their weights."""
    taught = None if teacher is None else {"weights": fingerprint(teacher[0]), "config": config_dict(teacher[1])}
    names = frozenset(jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(frozen))
    return Beside(taught, fingerprint(frozen) if names else None, names)


def fingerprint(model: Any) -> int:
    """Identify a model by its weights."""
    return functools.reduce(
        lambda crc, leaf: zlib.crc32(np.asarray(_data(leaf)).tobytes(), crc), jax.tree.leaves(model), 0
    )


def _sweep(folder: Path) -> None:
    """Remove half-written checkpoints that a kill or a full disk left."""
    for half in folder.glob(_HALF_WRITTEN):
        shutil.rmtree(half, ignore_errors=True)


def _steps(folder: Path) -> list[int]:
    """List the steps that have a checkpoint, ascending. Half-written ones have a name that ends in Orbax's mark."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def _named(state: TrainState) -> dict[str, Any]:
    """Name a state's leaves; random keys, which an optimizer may hold, are replaced by their data."""
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {name: _data(leaf) for name, leaf in found.items()}


def _frozen_before(told: Beside) -> set[str]:
    """What else checkpoints of earlier versions hold: copies of what is frozen."""
    copies = (".model", ".target", *(f".averages[{i}]" for i in range(_MOST_AVERAGES)))
    return {part + name for part in copies for name in told.names}


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _form(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def _difference(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str | None:
    """Say where two recipes differ, in words; None if they do not."""
    for name, value in was.items():
        if isinstance(value, dict) and isinstance(now.get(name), dict):
            if fault := _difference(value, now[name], f"{prefix}{name}."):
                return fault
        elif now.get(name) != value:
            return f"{prefix}{name} = {value}, not {now.get(name)}"
    return None
