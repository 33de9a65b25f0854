"""Look published models and LoRAs up, by hub id, by the name of a file or folder, or by title."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from pathlib import PurePath

from cmjax.published import adversarial, consistency, other_networks
from cmjax.published.row import Published

__all__ = ["KINDS", "PUBLISHED", "find", "matching", "nearest"]

PUBLISHED: tuple[Published, ...] = (*consistency.ROWS, *adversarial.ROWS, *other_networks.ROWS)
KINDS = ("lora", "unet", "model")

_ENDINGS = re.compile(r"\.(safetensors|ckpt|pt|pth|bin)$")
_VARIANT = re.compile(r"([._-](converted|fp16|fp32|bf16))+$")
# Names that say nothing: the folder's is looked at in their place.
_USUAL = {"pytorch_lora_weights", "adapter_model", "diffusion_pytorch_model"}


def find(name: str | PurePath, file: str | None = None, *, kinds: Collection[str] = KINDS) -> Published | None:
    """Look one up by its hub id, or by the name of a file or folder that was downloaded.

    Of a repository with several files, the file has to be named. One that was renamed is not found.

    Args:
      name: a hub id (owner/name), a file of one (owner/name/file), or a path.
      file: the file in the repository or folder.
      kinds: of which kinds, some of `KINDS`.

    Returns:
      The row; None for anything else.

    Example:
      >>> find("stabilityai/sdxl-turbo").settings
      'euler_ancestral trailing, 1 step, no guidance'
      >>> find("downloads/Hyper-SDXL-1step-Unet.safetensors").timesteps
      (800,)
      >>> find("style.safetensors") is None
      True
    """
    path = PurePath(name)
    names = [_stem(path.name)] + ([_stem(PurePath(file).name)] if file else [])
    names = [path.parent.name.casefold() if one in _USUAL else one for one in names]
    best, most = None, 0
    for row in PUBLISHED:
        if row.kind in kinds and (length := max(_length(row, one) for one in names)) > most:
            best, most = row, length
    return best


def _stem(name: str) -> str:
    """The name of a file without what says of its numbers only."""
    ending = _ENDINGS.search(name)
    return (_VARIANT.sub("", name[: ending.start()]) if ending else name).casefold()


def _length(row: Published, name: str) -> int:
    """How many letters of a name are a row's: the longest wins, as names of files begin with those of others."""
    stems = [_stem(PurePath(file).name) for file in row.files]
    found = [len(stem) for stem in stems if name.startswith(stem)]
    repo = row.repo_id.rpartition("/")[2].casefold()
    is_repo = (row.kind == "model" or not row.files) and name == repo and not _shared(row)
    return max([*found, len(repo) if is_repo else 0])


def _shared(row: Published) -> bool:
    """Whether a repository has other rows too, so that its name says nothing."""
    return sum(other.repo_id == row.repo_id for other in PUBLISHED) > 1


def matching(name: str) -> tuple[Published, ...]:
    """List what a name may mean: one row by its title, file or hub id, or all that have it in their title or hub id.

    Example:
      >>> [row.title for row in matching("turbo")][:2]
      ['SD-Turbo', 'SDXL-Turbo']
      >>> len(matching("SDXL-Turbo")), matching("nothing of that name")
      (1, ())
    """
    said = name.casefold()
    for row in PUBLISHED:
        if row.title.casefold() == said:
            return (row,)
    if (row := find(name)) is not None:
        return (row,)
    return tuple(row for row in PUBLISHED if said and (said in row.title.casefold() or said in row.repo_id.casefold()))


def nearest(name: str, most: int = 3) -> list[str]:
    """List the titles and hub ids that resemble a name.

    Example:
      >>> nearest("SDXL-Turbi")[0]
      'SDXL-Turbo'
    """
    known = {said.casefold(): said for row in PUBLISHED for said in (row.repo_id, row.title)}
    known |= {repo.rpartition("/")[2]: said for repo, said in list(known.items()) if "/" in repo} | known
    found = difflib.get_close_matches(name.casefold(), known, most, cutoff=0.5)
    return list(dict.fromkeys(known[one] for one in found))
