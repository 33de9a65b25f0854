"""An artifact's folder: written completely or not at all, and checked before it is used."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from cmjax import sampling
from cmjax._version import __version__
from cmjax.artifact.drawer import Artifact, Held
from cmjax.artifact.program import PLATFORMS, export, named, tables
from cmjax.io import config_dict, read_config, read_safetensors, write_safetensors
from cmjax.io.atomic import atomic_folder, check_writable, recover_folder
from cmjax.io.configs import read_json, write_json
from cmjax.io.digests import file_digest
from cmjax.samplers import sampler_of
from cmjax.samplers.base import SamplerConfig, SamplerState

__all__ = ["load", "refuse_other_files", "save"]

_FORMAT, _VERSION, _PROMPT_VERSION = "cmjax artifact", 1, 2  # the latter of models of texts
_NONE = type(None)
_KINDS: dict[str, Any] = {
    "calling_convention": int, "platforms": list, "sha256": dict, "jax": str, "image": list, "scheduler": dict,
    "classes": (int, _NONE), "label_names": (list, _NONE), "weights": str, "notes": dict,
}  # fmt: skip
_ITEMS = {"platforms": str, "image": int, "label_names": str}
_ALLOWED: dict[str, Any] = {
    "weights": lambda value: value in ("inside", "beside"),
    "classes": lambda value: value is None or 0 < value < 2**31,
    "platforms": len,
}
_PROGRAM, _STATE, _WEIGHTS, _ABOUT = "sampler.bin", "state.npz", "weights.safetensors", "artifact.json"


def save(
    path: str | Path,
    model: Any,
    config: SamplerConfig,
    state: SamplerState,
    image: tuple[int, ...],
    *,
    classes: int | None = None,
    label_names: Sequence[str] | None = None,
    platforms: Sequence[str] = PLATFORMS,
    weights: Literal["inside", "beside"] = "inside",
    notes: Mapping[str, Any] | None = None,
    prompt: Mapping[str, Any] | None = None,
    generate: Callable[..., Any] = sampling.generate,
    noise: tuple[int, ...] | None = None,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Export a sampler and write its folder, which is written completely or not at all.

    Args:
      path: the folder. An existing artifact is replaced; any other content is refused.
      model: as for `export`.
      config: the config that `state` was made from.
      state: a padded path.
      image: as for `export`.
      classes: the number of the model's classes; None for a model without classes.
      label_names: the names of the classes.
      platforms: as for `export`.
      weights: as for `export`.
      notes: anything of JSON's types, stored in the artifact.
      prompt: what a model of texts is asked for, for one image: by name a number, `jax.ShapeDtypeStruct((), dtype)`, or
        tokens, a list of `jax.ShapeDtypeStruct((L,), "int32")`. None for models of classes, or of nothing.
      generate: as for `export`; with a prompt, what it gets as cond is a mapping like `prompt`.
      noise: as for `export`.
      also: writes further files into the folder, such as a tokenizer's, before it is moved into place.

    Raises:
      TypeError: as `export`, or config is of another sampler than state.
      ValueError: as `export`, or state is not padded, or there is not one name for each class.
      FileExistsError: the folder holds something else.
      ModuleNotFoundError: flatbuffers is not installed.
      OSError: it cannot be written.

    Example:
      >>> import pathlib, tempfile, cmjax
      >>> model = jax.tree_util.Partial(lambda w, x, t, cond: w * x, jnp.float32(0.5))  # or of cmjax.load
      >>> config = cmjax.cm.CMConfig()
      >>> folder = pathlib.Path(tempfile.mkdtemp()) / "drawer"
      >>> state = cmjax.pad(cmjax.cm.init(config, num_steps=2), 4)
      >>> save(folder, model, config, state, (28, 28, 1), classes=10, platforms=["cpu"])
      >>> keys, labels = jax.random.split(jax.random.key(0), 2), jnp.array([7, 8])
      >>> jax.jit(load(folder).__call__)(state, keys, labels).shape
      (2, 28, 28, 1)
    """
    path = Path(path)
    if not isinstance(config, SamplerConfig) or not isinstance(state, sampler_of(config).State):
        kinds = type(config).__name__, type(state).__name__
        raise TypeError(f"config must be what the state was made of, got a {kinds[0]} for a {kinds[1]}.")
    if not state.padded:
        raise ValueError(f"state must be padded, so that its steps are a value: cmjax.pad(state, {state.num_steps}).")
    if classes is not None and (type(classes) is not int or classes < 1):
        raise ValueError(f"classes must be a whole number of at least 1, or None, got {classes!r:.40}.")
    if label_names is not None and (isinstance(label_names, str) or len(label_names) != classes):
        raise ValueError(f"label_names must be one text for each of {classes} classes, got {label_names!r:.60}.")
    check_writable(path)
    refuse_other_files(path)
    _need_flatbuffers()
    if classes is not None and prompt is not None:
        raise ValueError("classes and prompt exclude each other: a model is told one or the other.")
    cond: Any = None if classes is None else jax.ShapeDtypeStruct((), jnp.int32)
    cond = cond if prompt is None else dict(prompt)
    program = export(model, state, image, cond, platforms=platforms, weights=weights, generate=generate, noise=noise)
    files = {_PROGRAM: bytes(program.serialize()), _STATE: _npz(tables(state))}
    about = {
        "format": _FORMAT,
        "version": _VERSION if prompt is None else _PROMPT_VERSION,
        "cmjax": __version__,
        "jax": jax.__version__,
        "calling_convention": program.calling_convention_version,
        "platforms": list(platforms),
        "image": list(image),
        "classes": classes,
        "label_names": None if label_names is None else list(label_names),
        "max_steps": state.num_steps,
        "weights": weights,
        "scheduler": config_dict(config),
        "notes": dict(notes or {}),
        "prompt": None if prompt is None else jax.tree.map(lambda leaf: [leaf.dtype.name, *leaf.shape], dict(prompt)),
    }
    with atomic_folder(path) as folder:
        for name, held in files.items():
            (folder / name).write_bytes(held)
        if weights == "beside":
            names, leaves, _ = named(model)
            write_safetensors(dict(zip(names, map(np.asarray, leaves), strict=True)), folder / _WEIGHTS)
        about["sha256"] = {file.name: file_digest(file) for file in folder.iterdir()}
        write_json(about, folder / _ABOUT)
        if also is not None:
            also(folder)
    if weights == "inside":
        (path / _WEIGHTS).unlink(missing_ok=True)  # of the artifact that was here before


def load(path: str | Path) -> Artifact:
    """Read an artifact. Calling it runs its program: do so only if you trust its maker.

    Args:
      path: the folder.

    Returns:
      The artifact, a callable pytree.

    Raises:
      FileNotFoundError: there is none, or a file is missing.
      ValueError: it is damaged, or of a version or for platforms that this machine cannot run.
      ModuleNotFoundError: flatbuffers is not installed.
    """
    path = Path(path)
    recover_folder(path)
    if not (path / _ABOUT).is_file():
        raise FileNotFoundError(f"{path} is not an artifact: it has no {_ABOUT}. cmjax export MODEL {path} makes one.")
    about = read_json(path / _ABOUT)
    _check_about(about, path)
    _need_flatbuffers()
    files = (_PROGRAM, _STATE, *((_WEIGHTS,) if about["weights"] == "beside" else ()))
    for name in files:
        _check_whole(path / name, about["sha256"])
    config = read_config(about["scheduler"])
    try:
        with np.load(path / _STATE, allow_pickle=False) as file:
            state = dict(file)
        program = jax_export.deserialize(bytearray((path / _PROGRAM).read_bytes()))
    except Exception as error:  # what was exported would be read: it is something else, whatever that does to readers
        raise ValueError(f"{path} is damaged: {type(error).__name__}. Export it again.") from error
    weights, image, classes = (
        read_safetensors(path / _WEIGHTS) if _WEIGHTS in files else {},
        about["image"],
        about["classes"],
    )
    prompt = about["prompt"] if about["version"] == _PROMPT_VERSION else None
    asked = jax.tree.leaves(prompt, is_leaf=_is_described)
    inputs = len(weights) + len(state) + 1 + (classes is not None) + len(asked)
    names = about["label_names"]
    if (
        "timesteps" not in state
        or len(program.in_avals) != inputs
        or program.out_avals[0].shape[1:] != tuple(image)
        or (names is not None and len(names) != classes)
    ):
        raise ValueError(f"{path} is damaged: {_ABOUT} and {_PROGRAM} do not belong together. Export it again.")
    names = None if names is None else tuple(names)
    return Artifact(weights, Held(program, state, config, tuple(image), classes, names, about["notes"], prompt))


def refuse_other_files(path: Path) -> None:
    """Refuse a folder that holds something other than an artifact.

    Raises:
      FileExistsError: it holds other files.
    """
    if path.is_dir() and any(path.iterdir()) and not _is_artifact(path):
        raise FileExistsError(f"{path} holds other files than an artifact's; choose a new or empty folder.")


def _is_artifact(path: Path) -> bool:
    try:
        about = read_json(path / _ABOUT)
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("format") == _FORMAT


def _check_about(about: Any, path: Path) -> None:
    """Refuse an artifact that this version of cmjax or this machine cannot run."""
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ValueError(f"{path / _ABOUT} does not describe an artifact of cmjax.")
    version = about.get("version")
    if version not in (_VERSION, _PROMPT_VERSION):
        read = f"{_VERSION} and {_PROMPT_VERSION}"
        raise ValueError(f"{path} is an artifact of version {version!r:.20}; this cmjax reads {read}.")
    if version == _PROMPT_VERSION and not _is_prompt(about.get("prompt")):
        raise ValueError(f"{path / _ABOUT} is damaged: its prompt is {about.get('prompt')!r:.40}. Export it again.")
    for name, kinds in _KINDS.items():
        value: Any = about.get(name)
        items: list[Any] = value if isinstance(value, list) else []
        kind, allowed = _ITEMS.get(name, object), _ALLOWED.get(name, lambda value: True)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and all(isinstance(i, kind) for i in items)
        if not (fits and allowed(value)):
            raise ValueError(f"{path / _ABOUT} is damaged: its {name} is {value!r:.40}. Export it again.")
    convention = about["calling_convention"]
    oldest, newest = (
        jax_export.minimum_supported_calling_convention_version,
        jax_export.maximum_supported_calling_convention_version,
    )
    if not oldest <= convention <= newest:
        raise ValueError(
            f"{path} was exported by jax {about['jax']} with calling convention {convention}, but jax "
            f"{jax.__version__} here reads {oldest} to {newest}: export it again, or install a jax "
            f"{'of its time' if convention < oldest else 'as new'}."
        )
    if (here := _platform()) not in about["platforms"]:
        raise ValueError(
            f"{path} was exported for {', '.join(about['platforms'])}, but this machine is {here}: "
            f"export it again with --platforms {here}."
        )


def _is_described(value: Any) -> bool:
    """Whether a value describes an array of one image: its dtype, and perhaps its length."""
    return isinstance(value, list) and 1 <= len(value) <= 2 and value[0] in ("int32", "float32")


def _is_prompt(value: Any) -> bool:
    """Whether a value describes a prompt: numbers, and lists of tokens, by name."""
    if not isinstance(value, dict) or not value:
        return False
    parts: list[Any] = []
    for one in value.values():
        parts += [one] if _is_described(one) or not isinstance(one, list) or not one else one
    return all(_is_described(part) and all(type(size) is int and size > 0 for size in part[1:]) for part in parts)


def _platform() -> str:
    """The name of this machine's platform in `jax.export`."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"


def _check_whole(path: Path, digests: Mapping[str, str]) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}. Export it again.")
    if file_digest(path) != digests.get(path.name):
        raise ValueError(f"{path} is damaged: it is not what was exported. Export it again.")


def _npz(arrays: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: np.asarray(array) for name, array in arrays.items()})  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def _need_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "artifacts are read and written with flatbuffers, which is not installed: pip install 'cmjax[export]'."
        ) from error
