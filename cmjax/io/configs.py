"""Read and write sampler configs, `scheduler_config.json`, without losing unknown keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

from cmjax.io.atomic import atomic_file
from cmjax.samplers import CONFIGS, ddim
from cmjax.samplers._vp import VPConfig, as_config
from cmjax.samplers.base import SamplerConfig

__all__ = ["SCHEDULERS", "config_dict", "read_config", "read_json", "write_config", "write_json"]

_C = TypeVar("_C", bound=SamplerConfig)
_FILE = "scheduler_config.json"
_PNDM = "PNDMScheduler"
_CLASSES: dict[str, type[SamplerConfig]] = {config.scheduler: config for config in CONFIGS} | {_PNDM: ddim.Config}
SCHEDULERS = frozenset(_CLASSES)


@overload
def read_config(path_or_dict: str | Path | Mapping[str, Any], as_: None = None) -> Any: ...
@overload
def read_config(path_or_dict: str | Path | Mapping[str, Any], as_: type[_C]) -> _C: ...
def read_config(path_or_dict, as_=None):
    """Read a `scheduler_config.json`.

    A `PNDMScheduler`'s is read as a `DDIMConfig`. Keys that a file leaves out have the values of its own scheduler,
    also where it is read as another's.

    Args:
      path_or_dict: the file, a folder that has it (perhaps in `scheduler/`), or the file's content.
      as_: a config class, such as `TCDConfig`, to read another scheduler's file as; None to go by the file.

    Returns:
      A frozen config. Keys it does not know are kept in `extra`, and `write_config` writes them back.

    Raises:
      TypeError: `path_or_dict` is neither a path nor a mapping, or `as_` is not a config class.
      FileNotFoundError: there is no such file.
      ValueError: the file is not a JSON object, a value is of the wrong type, or the file is for another scheduler and
        `as_` is not given.

    Example:
      >>> from cmjax.samplers.tcd import TCDConfig
      >>> pndm = {"_class_name": "PNDMScheduler", "beta_end": 0.012, "skip_prk_steps": True}
      >>> config = read_config(pndm, as_=TCDConfig)
      >>> config.beta_end, dict(config.extra)
      (0.012, {'skip_prk_steps': True})
      >>> type(read_config(pndm)).__name__
      'DDIMConfig'
      >>> read_config({"_class_name": "DDPMScheduler"})
      Traceback (most recent call last):
      ValueError: scheduler_config.json is for DDPMScheduler; cmjax reads CMStochasticIterativeScheduler, TCDSchedu...
    """
    if isinstance(path_or_dict, Mapping):
        where, values = _FILE, dict(path_or_dict)
    elif not isinstance(path_or_dict, str | Path):
        got = type(path_or_dict).__name__
        raise TypeError(
            f"path_or_dict must be a path or a mapping, got a {got}; of a diffusers scheduler, its .config."
        )
    else:
        where = _find(Path(path_or_dict))
        values = read_json(where)
        if not isinstance(values, dict):
            raise ValueError(f"{where} must hold a JSON object, but it holds a {type(values).__name__}.")
    if as_ is None:
        if (as_ := _class_of(values)) is None:
            name, (*first, last) = values.get("_class_name"), _CLASSES
            what = "names no scheduler (it has no _class_name)" if name is None else f"is for {name}"
            raise ValueError(f"{_FILE} {what}; cmjax reads {', '.join(first)} and {last}.")
    elif not (isinstance(as_, type) and issubclass(as_, SamplerConfig)):
        got = f"the module {as_.__name__}" if isinstance(as_, ModuleType) else f"{as_!r:.60}"
        raise TypeError(f"as_ must be a config class, such as cmjax.tcd.TCDConfig, got {got}.")
    own = _class_of(values)
    try:
        if own is None or own is as_ or not (issubclass(own, VPConfig) and issubclass(as_, VPConfig)):
            return as_.of(values)
        return as_config(own.of(values), as_)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _class_of(values: dict[str, Any]) -> type[SamplerConfig] | None:
    """The config class of a file, by the scheduler that it names; sets what PNDM's leaves out and DDIM's has."""
    name = values.get("_class_name")
    if name == _PNDM:
        for key in ("clip_sample", "set_alpha_to_one"):
            values.setdefault(key, False)
    return _CLASSES.get(name) if isinstance(name, str) else None


def write_config(config: SamplerConfig, path: str | Path) -> None:
    """Write a config as a `scheduler_config.json`, completely or not at all.

    Args:
      config: any sampler's config.
      path: the file, or an existing folder to put it into.

    Raises:
      OSError: it cannot be written.

    Example:
      >>> import tempfile
      >>> from cmjax.samplers.cm import CMConfig
      >>> folder = tempfile.mkdtemp()
      >>> write_config(CMConfig(num_train_timesteps=18), folder)
      >>> read_config(folder) == CMConfig(num_train_timesteps=18)
      True
    """
    path = Path(path)
    # What diffusers writes of schedulers that we do not know may hold Infinity (lambda_min_clipped).
    write_json(config_dict(config), path / _FILE if path.is_dir() else path, allow_nan=True)


def config_dict(config: SamplerConfig) -> dict[str, Any]:
    """Make the content of a config's `scheduler_config.json`: its class, every field, and the keys it kept.

    Example:
      >>> from cmjax.samplers.cm import CMConfig
      >>> config_dict(CMConfig())["_class_name"]
      'CMStochasticIterativeScheduler'
    """
    return {"_class_name": type(config).scheduler, **config.values()}


def read_json(path: str | Path) -> Any:
    """Read a JSON file, with an error that names the file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def write_json(value: Any, path: str | Path, *, allow_nan: bool = False) -> None:
    """Write a JSON file, completely or not at all.

    Raises:
      OSError: it cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=allow_nan) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    return next((p for p in (path / _FILE, path / "scheduler" / _FILE) if p.exists()), path / _FILE)
