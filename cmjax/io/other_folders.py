"""Folders of diffusers that `cmjax.load` does not read: weights as pickles, all files in one folder, other samplers.

`cmjax convert` turns them into folders for `cmjax.load` or, if cmjax has no such sampler, for
`cmjax.io.load_unet`. Three layouts are known: unet/ and scheduler/ beside model_index.json; all three's files in the
folder itself, as the first repositories of diffusers have them; and weights whole or in pieces that an index lists.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmjax.io.assembly import assemble
from cmjax.io.atomic import atomic_folder, check_writable
from cmjax.io.checkpoint import load_unet, model_index, save
from cmjax.io.class_names import LABELS
from cmjax.io.configs import SCHEDULERS, read_json, write_json
from cmjax.io.folder import INDEX, named_parts, network_folder, refuse_other_files
from cmjax.io.pieces import read_pieces
from cmjax.io.torch_files.reader import read_pt
from cmjax.models import Network
from cmjax.models.families import family_of, read_network_config
from cmjax.samplers.cm import CMConfig

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = ["check_target", "other_scheduler", "read_bin", "read_network", "save_network", "scheduler_file"]

_SCHEDULER = "scheduler_config.json"


def check_target(path: Path) -> None:
    """Refuse a folder that no model can be written to, before anything is read.

    Raises:
      FileExistsError: it is a file, or holds something else than a model.
      OSError: it cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, not a folder.")
    refuse_other_files(path)
    check_writable(path)


def scheduler_file(folder: Path) -> Path:
    """Find a folder's scheduler_config.json, in scheduler/ or in the folder itself.

    Raises:
      FileNotFoundError: there is none.
    """
    found = [path for path in (folder / "scheduler" / _SCHEDULER, folder / _SCHEDULER) if path.is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} has no scheduler/{_SCHEDULER}, and no {_SCHEDULER} of its own.")
    return found[0]


def other_scheduler(folder: Path) -> str | None:
    """Name the scheduler of a folder if cmjax does not have it, else None.

    Raises:
      FileNotFoundError: the folder has no scheduler_config.json.
      ValueError: that is no JSON.
    """
    said = read_json(scheduler_file(folder))
    name = said.get("_class_name") if isinstance(said, dict) else None
    return name if isinstance(name, str) and name not in SCHEDULERS else None


def read_network(folder: Path) -> Network:
    """Load the network of a folder, from safetensors where there are such, else from .bin files.

    Raises:
      FileNotFoundError: the folder has no network, or a file is missing.
      ValueError: a file is damaged, or weights do not fit the network.
    """
    inner = network_folder(folder)
    if not (inner / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no unet/config.json, and no config.json of its own.")
    config = read_network_config(read_json(inner / "config.json"))
    stem = family_of(config).stem
    modern = any((inner / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json"))
    old = any((inner / f"{stem}.bin{end}").exists() for end in ("", ".index.json"))
    if modern or not old:
        return load_unet(folder)
    tensors = read_bin(inner, stem)
    try:
        return assemble(config, tensors)
    except ValueError as error:
        raise ValueError(f"{inner}: {error}") from error


def read_bin(folder: Path, stem: str) -> dict[str, np.ndarray]:
    """Read the weights of a folder that are .bin files: one, or the pieces that an index lists.

    Of each piece only those tensors are taken that the index says it holds.

    Raises:
      FileNotFoundError: there are none, or a piece is missing.
      ValueError: a file is damaged, or the index names no files beside it, or a piece lacks a tensor.
    """
    index = folder / f"{stem}.bin.index.json"
    if (folder / f"{stem}.bin").exists() or not index.exists():
        return read_pt(folder / f"{stem}.bin")
    return read_pieces(index, read_pt)


def save_network(
    network: Network,
    path: Path,
    *,
    source: Path,
    label_names: Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Write a network whose sampler cmjax does not have: a folder that `load_unet` and diffusers read.

    The scheduler's config, and model_index.json where it fits, stay as they are in `source`. The folder appears
    whole or not at all.

    Args:
      network: what `read_network` gave.
      path: the folder. The folder above it must exist.
      source: the folder that the network was read from.
      label_names: as for `save`.
      dtype: as for `save`.

    Raises:
      ValueError: as for `save`.
      OSError: it cannot be written.
    """
    check_target(path)
    if label_names is None and network.config.num_class_embeds is not None and (path / LABELS).is_file():
        label_names = read_json(path / LABELS)  # those stay, so they must be of this network
    with atomic_folder(path) as folder:
        save((network, CMConfig()), folder, label_names=label_names, dtype=dtype)
        # What it said of a sampler, `source` says otherwise.
        shutil.copyfile(scheduler_file(source), folder / "scheduler" / _SCHEDULER)
        family = family_of(network.config)
        if (source / INDEX).is_file() and named_parts(source).keys() <= {family.folder}:
            shutil.copyfile(source / INDEX, folder / INDEX)
        else:  # there is none, or it has another name for the network's part
            write_json(model_index(family, str(other_scheduler(source))), folder / INDEX)
