"""A whole sampler with its network as one program that outlives the Python that made it: `jax.export`, and a folder.

    artifact.json         what it is: platforms, versions, the images' size, the classes, the sampler's config
    sampler.bin           the program: StableHLO, as `jax.export` writes it
    state.npz             the path that it was exported with
    weights.safetensors   unless the weights are inside the program

The program is a function of plain dictionaries and arrays, call(weights, state, keys, cond) -> f32[B, H, W, C], for any
batch size B: it runs where there is only jax (and flatbuffers, with which `jax.export` reads). Its state is padded
(`cmjax.pad`), so that the number of steps is a value too.

An artifact is a program. Unlike a folder of weights, run it only if you trust its maker.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io as bytes_io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

import cmjax
from cmjax._numerics import as_array, refuse_no_function
from cmjax._struct import Struct, static
from cmjax._version import __version__
from cmjax.io import config_dict, read_config, read_safetensors, write_safetensors
from cmjax.io.atomic import atomic_folder, check_writable
from cmjax.io.configs import read_json, write_json
from cmjax.samplers import sampler_of
from cmjax.samplers.base import SamplerConfig, SamplerState
from cmjax.sampling import refuse_used

__all__ = ["PLATFORMS", "Artifact", "Held", "export", "load", "save", "tables"]

PLATFORMS = ("cpu", "cuda", "tpu")
_FORMAT, _VERSION = "cmjax artifact", 1
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


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """What an artifact holds beside weights.

    Attributes:
      program: the exported function, `program.call(weights, state, keys, cond)`.
      state: the path that it was exported with, arrays by name; others of the same shapes will do.
      config: of the sampler: `init` of its module and `cmjax.pad` make other paths.
      image: (H, W, C), or another shape of one sample.
      classes: how many the model has; None for a model without.
      label_names: of the classes, if they have names.
      notes: what else its maker wrote down.
    """

    program: jax_export.Exported
    state: Mapping[str, np.ndarray]
    config: SamplerConfig
    image: tuple[int, ...]
    classes: int | None = None
    label_names: tuple[str, ...] | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def max_steps(self) -> int:
        """The most steps that the program can take."""
        return self.state["timesteps"].shape[-1]


class Artifact(Struct):
    """An exported sampler: a callable pytree whose leaves are its weights.

    Attributes:
      weights: arrays by name, or nothing where they are inside the program.
      held: all else.
    """

    weights: Mapping[str, Any]
    held: Held = static()

    def __call__(self, state: SamplerState | Mapping[str, Any], keys: Any, cond: Any = None) -> jax.Array:
        """Draw one image for each key.

        Args:
          state: a path of the config, padded to `max_steps`, or its tables.
          keys: key[B] (threefry, JAX's default), or their data, u32[B, 2].
          cond: of the shapes that it was exported with: i32[B] of classes, or None.

        Returns:
          f32[B, H, W, C].

        Raises:
          ValueError: the path has other shapes, or keys are not one for each image.
          TypeError: keys are of another kind.
        """
        given = self._tables(state)
        data = _key_data(keys)
        return self.held.program.call(dict(self.weights), given, data, self._labels(cond, data.shape[0]))

    def _labels(self, cond: Any, batch: int) -> Any:
        """Classes as the program takes them."""
        if self.held.classes is None:
            if cond is not None:
                raise ValueError("cond must be None: the exported model is told no class.")
            return None
        labels = None if cond is None else as_array("cond", cond, f"i32[{batch}], a class for each image")
        if labels is None or not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != (batch,):
            got = "None" if labels is None else f"{labels.dtype}{list(labels.shape)}"
            raise ValueError(f"cond must be i32[{batch}], a class for each image, got {got}.")
        return labels.astype(jnp.int32)

    def _tables(self, state: Any) -> dict[str, Any]:
        """A path's tables, as the program takes them."""
        if isinstance(state, SamplerState):
            refuse_used(state, "an artifact")
            own = cmjax.pad(sampler_of(self.held.config).init(self.held.config, 1), self.held.max_steps)
            if state.padded and jax.tree.structure(state) != jax.tree.structure(own):
                raise ValueError(f"state must be a path of the artifact's config, such as {own!r}, got {state!r}.")
            state = tables(state)
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a path, padded, or its tables by name, got a {type(state).__name__}.")
        self._check_shapes(state)
        return dict(state)

    def _check_shapes(self, given: Mapping[str, Any]) -> None:
        most = self.held.max_steps
        if more := sorted(given.keys() - self.held.state.keys()):
            raise ValueError(f"state must hold {', '.join(self.held.state)}, but it holds {more[0]} too.")
        for name, table in self.held.state.items():
            shape = jnp.shape(given[name]) if name in given else None
            if shape != table.shape:
                raise ValueError(
                    f"state must be a path padded to {most} steps, cmjax.pad(state, {most}); "
                    + (f"it has no {name}." if shape is None else f"its {name} has shape {shape}, not {table.shape}.")
                )


def _key_data(keys: Any) -> Any:
    """The data of threefry keys, u32[B, 2]."""
    if hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(keys)) != "threefry2x32":
            raise TypeError(f"keys must be threefry keys, JAX's default, got {jax.random.key_impl(keys)}.")
        keys = jax.random.key_data(keys)
    shape, dtype = jnp.shape(keys), getattr(keys, "dtype", None)
    if dtype != jnp.uint32 or len(shape) != 2 or shape[1] != 2:
        raise ValueError(
            "keys must be one for each image, as of jax.random.split(key, 16), or their data u32[B, 2], "
            f"got {'one key' if shape == (2,) else f'{dtype}{list(shape)}'}."
        )
    return keys


def tables(state: SamplerState) -> dict[str, jax.Array]:
    """A path's leaves by name: what an exported program takes."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if not f.metadata.get("static")}


def export(
    model: Any,
    state: SamplerState,
    image: tuple[int, ...],
    cond: Any = None,
    *,
    platforms: Sequence[str] = PLATFORMS,
    weights: Literal["inside", "beside"] = "inside",
) -> jax_export.Exported:
    """Export `cmjax.generate` with its network, for any batch size, one key for each image.

    Args:
      model: a callable pytree `model(x, t, cond)`.
      state: a path, from `cmjax.pad` if the number of steps is to be a value. Its values are inputs of the program;
        what it chooses (the prediction type, clipping) is fixed.
      image: the shape of one sample, (H, W, C).
      cond: what one image is conditioned on: a pytree (of dicts, lists and tuples) of arrays or
        `jax.ShapeDtypeStruct`, without the batch; None for nothing.
      platforms: of "cpu", "cuda", "rocm" and "tpu".
      weights: "inside" the program, or an argument, "beside" it.

    Returns:
      The exported function (weights, state, keys, cond) -> f32[B, *image]: `weights` are arrays by name (none, {}, when
      they are inside), `state` is `tables(state)`, `keys` the keys' data u32[B, 2], `cond` has the batch in front.

    Raises:
      TypeError: state is no path, or model no function or no pytree of arrays.
      ValueError: a platform has another name, or `weights` does; image is no shape; the path has already stepped.

    Example:
      >>> import cmjax
      >>> state = cmjax.pad(cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2), 4)
      >>> program = export(jax.tree_util.Partial(lambda x, t, cond: 0.5 * x), state, (4, 4, 1), platforms=["cpu"])
      >>> keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
      >>> program.call({}, tables(state), keys, None).shape
      (3, 4, 4, 1)
    """
    _check_platforms(platforms)
    if weights not in ("inside", "beside"):
        raise ValueError(f"weights must be 'inside' or 'beside', got {weights!r}.")
    if not isinstance(state, SamplerState):
        raise TypeError(f"state must be a path, as init(config, num_steps=...) makes it, got a {type(state).__name__}.")
    refuse_used(state, "export")
    refuse_no_function("model", model, "(x, t, cond) -> what the network says")
    if not isinstance(image, tuple) or not all(type(size) is int and size > 0 for size in image):
        raise ValueError(f"image must be the shape of one sample, such as (28, 28, 1), got {image!r:.60}.")
    names, leaves, structure = _named(model)
    if any(not isinstance(leaf, jax.Array | np.ndarray | float | int) for leaf in leaves):
        raise TypeError("model must be a pytree of arrays, as jax.tree_util.Partial(function, arrays) is.")

    def draw(weights: dict[str, Any], tables: dict[str, Any], keys: Any, cond: Any) -> Any:
        own = jax.tree.unflatten(structure, [weights[name] for name in names] if weights else leaves)
        shape = (keys.shape[0], *image)
        return cmjax.generate(own, state.replace(**tables), jax.random.wrap_key_data(keys), shape, cond)

    (batch,) = jax_export.symbolic_shape("b")
    given = dict(zip(names, leaves, strict=True)) if weights == "beside" else {}
    with_batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype), cond)
    return jax_export.export(jax.jit(draw), platforms=tuple(platforms))(
        *jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (given, tables(state))),
        jax.ShapeDtypeStruct((batch, 2), jnp.uint32),
        with_batch,
    )


def _check_platforms(platforms: Sequence[str]) -> None:
    known = (*PLATFORMS, "rocm")
    if isinstance(platforms, str):
        raise ValueError(f"platforms must be a list, of {', '.join(known)}, got {platforms!r}.")
    if not platforms or (unknown := [name for name in platforms if name not in known]):
        got = f"got {unknown[0]!r}" if platforms else "got none"
        raise ValueError(f"platforms must be of {', '.join(known)}, {got}.")


def _named(model: Any) -> tuple[list[str], list[Any], Any]:
    """A model's weights, a name for each, and how they make the model."""
    found, structure = jax.tree_util.tree_flatten_with_path(model)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found]
    if len(set(names)) < len(names):  # a tree of its own making, whose paths do not tell its leaves apart
        names = [f"{i}" for i in range(len(found))]
    return names, [leaf for _, leaf in found], structure


# ---- files -----------------------------------------------------------------------------------------------------------


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
) -> None:
    """Export a sampler and write its folder, which appears whole or not at all.

    Args:
      path: the folder; an artifact that is there is replaced, anything else refused.
      model: as for `export`.
      config: what `state` was made of.
      state: a padded path.
      image: as for `export`.
      classes: how many the model has; None for a model that is not told any.
      label_names: of the classes.
      platforms: as for `export`.
      weights: as for `export`.
      notes: anything of JSON's types, kept with it.

    Raises:
      TypeError: as `export`, or config is of another sampler than state.
      ValueError: as `export`, or state is not padded, or there is not one name for each class.
      FileExistsError: the folder holds something else.
      ModuleNotFoundError: flatbuffers is not installed.
      OSError: it cannot be written.

    Example:
      >>> import pathlib, tempfile, cmjax
      >>> model, config = cmjax.load("fashion-mnist-cm")
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
    cond = None if classes is None else jax.ShapeDtypeStruct((), jnp.int32)
    program = export(model, state, image, cond, platforms=platforms, weights=weights)
    files = {_PROGRAM: bytes(program.serialize()), _STATE: _npz(tables(state))}
    about = {
        "format": _FORMAT,
        "version": _VERSION,
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
    }
    with atomic_folder(path) as folder:
        for name, held in files.items():
            (folder / name).write_bytes(held)
        if weights == "beside":
            names, leaves, _ = _named(model)
            write_safetensors(dict(zip(names, map(np.asarray, leaves), strict=True)), folder / _WEIGHTS)
        about["sha256"] = {file.name: _digest(file) for file in folder.iterdir()}
        write_json(about, folder / _ABOUT)
    if weights == "inside":
        (path / _WEIGHTS).unlink(missing_ok=True)  # of the artifact that was here before


def load(path: str | Path) -> Artifact:
    """Read an artifact. Its program is not run, but whoever calls it runs it: only if you trust its maker.

    Args:
      path: the folder.

    Returns:
      The artifact, a callable pytree.

    Raises:
      FileNotFoundError: there is none, or it lacks a file.
      ValueError: it is damaged, or of a version or for platforms that this machine cannot run.
      ModuleNotFoundError: flatbuffers is not installed.
    """
    path = Path(path)
    if not (path / _ABOUT).is_file():
        raise FileNotFoundError(f"{path} is no artifact: it has no {_ABOUT}. cmjax export MODEL {path} makes one.")
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
    inputs = len(weights) + len(state) + 1 + (classes is not None)
    names = about["label_names"]
    if (
        "timesteps" not in state
        or len(program.in_avals) != inputs
        or program.out_avals[0].shape[1:] != tuple(image)
        or (names is not None and len(names) != classes)
    ):
        raise ValueError(f"{path} is damaged: {_ABOUT} and {_PROGRAM} do not belong together. Export it again.")
    names = None if names is None else tuple(names)
    return Artifact(weights, Held(program, state, config, tuple(image), classes, names, about["notes"]))


def refuse_other_files(path: Path) -> None:
    """Refuse a folder that holds something other than an artifact.

    Raises:
      FileExistsError: It does.
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
    """Refuse what this program, or this machine, cannot run."""
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ValueError(f"{path / _ABOUT} does not describe an artifact of cmjax.")
    if about.get("version") != _VERSION:
        raise ValueError(f"{path} is an artifact of version {about.get('version')!r:.20}; this cmjax reads {_VERSION}.")
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


def _platform() -> str:
    """What this machine is to `jax.export`."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"


def _check_whole(path: Path, digests: Mapping[str, str]) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}. Export it again.")
    if _digest(path) != digests.get(path.name):
        raise ValueError(f"{path} is damaged: it is not what was exported. Export it again.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _npz(arrays: Mapping[str, Any]) -> bytes:
    file = bytes_io.BytesIO()
    np.savez(file, **{name: np.asarray(array) for name, array in arrays.items()})  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def _need_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "artifacts are read and written with flatbuffers, which is not installed: pip install 'cmjax[export]'."
        ) from error
