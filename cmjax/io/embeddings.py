"""Textual inversion embeddings: words that a text encoder is taught, as files have them, or as arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cmjax.io import hub
from cmjax.io.safetensors_files import read_safetensors
from cmjax.io.torch_files import ParameterDict, StridedTensor, open_pt

__all__ = ["Embedding", "as_embedding", "read_embedding"]

_SAFE, _TORCH = (".safetensors",), (".pt", ".bin", ".pth")
_USUAL = ("learned_embeds.safetensors", "learned_embeds.bin")
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))  # of Stable Diffusion XL's two encoders
_NAMELESS = ("emb_params", "*", *_PAIRS[0], *_PAIRS[1])  # names of tensors that are no tokens
_MOST_VECTORS, _WIDEST, _LONGEST_TOKEN = 1000, 1 << 16, 100


class Embedding(NamedTuple):
    """A word that a text encoder is taught.

    Attributes:
      token: what stands for it in a prompt.
      vectors: f32[n, D] for n tokens in a row, for each text encoder: one, or the two of Stable Diffusion XL.
    """

    token: str
    vectors: tuple[np.ndarray, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of the numbers."""
        sums = hashlib.sha256()
        for one in self.vectors:
            sums.update(one.tobytes())
        return sums.hexdigest()


def read_embedding(path_or_repo_id: str | Path, token: str | None = None, *, revision: str | None = None) -> Embedding:
    """Read a textual inversion embedding, without executing anything in the file.

    A file holds one tensor under the token (`learned_embeds.bin`), a dict with `string_to_param` and `name` (A1111's),
    one tensor `emb_params`, or `clip_l` and `clip_g` for Stable Diffusion XL's two encoders.

    Args:
      path_or_repo_id: a `.safetensors`, `.pt` or `.bin` file; a folder or hub id with `learned_embeds.safetensors`,
        `learned_embeds.bin`, or one other such file; or a file of a hub id, owner/name/FILE.
      token: what is to stand for it in prompts; None for what the file says, else the file's name.
      revision: a branch, tag or commit of the hub's repository.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: it is a hub id, and huggingface_hub is not installed.
      TypeError: path_or_repo_id is no path.
      ValueError: the file is damaged or no embedding, a number in it is not finite, or token is no token.

    Example:
      >>> import pathlib, tempfile
      >>> from cmjax.io import write_safetensors
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "mycat.safetensors"
      >>> write_safetensors({"emb_params": np.zeros((2, 768), np.float32)}, path)
      >>> embedding = read_embedding(path)
      >>> embedding.token, embedding.vectors[0].shape
      ('mycat', (2, 768))

    References:
      Gal et al., An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion, 2022,
      section 4.
    """
    if not isinstance(path_or_repo_id, str | Path):
        raise TypeError(f"path_or_repo_id must be a path or a hub id, got a {type(path_or_repo_id).__name__}.")
    path = _find(path_or_repo_id, revision)
    if path.suffix in _SAFE:
        name, tensors = None, read_safetensors(path)
    elif path.suffix in _TORCH:
        name, tensors = _read_torch(path)
    else:
        raise ValueError(f"{path} must be a {', '.join(_SAFE + _TORCH)} file.")
    try:
        return as_embedding(tensors, token or name, otherwise=path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def as_embedding(content: Any, token: str | None = None, *, otherwise: str | None = None) -> Embedding:
    """Make an embedding of arrays.

    Args:
      content: f[n, D] or f[D]; or such arrays by name, as files have them: one under its token, or `clip_l` and
        `clip_g`.
      token: what is to stand for it in prompts; None for the name of the one array.
      otherwise: the token, where neither says one.

    Raises:
      ValueError: there are other arrays, of other shapes, or a number is not finite; or token is no token.

    Example:
      >>> as_embedding({"<cat>": np.ones(4)}).vectors
      (array([[1., 1., 1., 1.]], dtype=float32),)
    """
    arrays = dict(content) if isinstance(content, Mapping) else {"*": content}
    pair = next((pair for pair in _PAIRS if set(arrays) == set(pair)), None)
    if pair is None and len(arrays) != 1:
        names = ", ".join(f"{name!r:.40}" for name in [*arrays][:4]) + (", ..." if len(arrays) > 4 else "")
        raise ValueError(
            "an embedding holds one tensor, or clip_l and clip_g for Stable Diffusion XL, but there are "
            f"{len(arrays)}: {names or 'none'}."
        )
    name = None if pair or next(iter(arrays)) in _NAMELESS else next(iter(arrays))
    vectors = tuple(_vectors(key, arrays[key]) for key in pair or arrays)
    counts = [len(one) for one in vectors]
    if len(set(counts)) > 1:
        raise ValueError(f"clip_l and clip_g must hold as many vectors each, got {counts[0]} and {counts[1]}.")
    return Embedding(_check_token(token or name or otherwise), vectors)


def _find(path_or_repo_id: str | Path, revision: str | None) -> Path:
    """Find the file."""
    try:
        path = Path(path_or_repo_id).expanduser()
    except RuntimeError as error:  # ~nobody
        raise FileNotFoundError(f"there is no embedding {path_or_repo_id}: {error}") from error
    if path.is_file():
        return path
    if path.is_dir():
        return path / _choose(str(path), [one.name for one in sorted(path.iterdir())])
    owner, _, rest = str(path_or_repo_id).partition("/")
    name, _, file = rest.partition("/")
    repo_id = f"{owner}/{name}"
    if hub.is_repo_id(repo_id) and not Path(owner).is_dir():
        file = file or _choose(repo_id, hub.list_files(repo_id, revision=revision))
        return hub.download_file(repo_id, file, revision=revision)
    raise FileNotFoundError(f"there is no embedding {path_or_repo_id}: neither a file here, nor a hub id (owner/name).")


def _choose(where: str, names: list[str]) -> str:
    """Choose the file of a folder or repository that is the embedding."""
    for name in _USUAL:
        if name in names:
            return name
    found = [name for name in names if name.endswith(_SAFE + _TORCH)]
    if len(found) != 1:
        raise FileNotFoundError(
            f"{where} must hold {_USUAL[0]} or one other embedding, but it holds {len(found)}: name one, {where}/FILE."
        )
    return found[0]


def _read_torch(path: Path) -> tuple[str | None, dict[str, np.ndarray]]:
    """Read a file of torch.save: the name that it says, and its tensors."""
    opened = open_pt(path)
    top, name = opened.value, None
    if isinstance(top, StridedTensor):
        top = {"*": top}
    if isinstance(top, dict) and "string_to_param" in top:
        said, top = top.get("name"), top["string_to_param"]
        name = said if isinstance(said, str) and said else None
        top = top.parameters if isinstance(top, ParameterDict) else top
    if not isinstance(top, dict) or not top:
        raise ValueError(f"{path} is no embedding: it must hold a dict from a token to a tensor.")
    if others := [key for key, item in top.items() if not (isinstance(key, str) and isinstance(item, StridedTensor))]:
        raise ValueError(
            f"{path} is no embedding: it must hold a dict from a token to a tensor, but {others[0]!r:.60} is under a "
            "key that is no text, or no tensor."
        )
    return name, opened.arrays(top)


def _vectors(name: str, value: Any) -> np.ndarray:
    """Check the numbers of one text encoder: f32[n, D]."""
    array = np.asarray(value)
    if (
        array.ndim not in (1, 2)
        or not array.size
        or array.shape[-1] > _WIDEST
        or array.size > _MOST_VECTORS * array.shape[-1]
    ):
        raise ValueError(
            f"an embedding must be one vector or up to {_MOST_VECTORS}, but {name!r:.40} has shape {array.shape}."
        )
    if not np.issubdtype(array.dtype, np.floating) and array.dtype != ml_dtypes.bfloat16:
        raise ValueError(f"an embedding must hold real numbers, but {name!r:.40} holds {array.dtype}.")
    with np.errstate(over="ignore"):
        array = np.atleast_2d(array).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"an embedding must hold finite numbers, but {name!r:.40} holds NaN or infinity.")
    return array


def _check_token(token: Any) -> str:
    """Refuse what cannot be found in a prompt."""
    if not isinstance(token, str) or not token:
        raise ValueError("token must be given where an embedding has no name of its own, such as '<cat>'.")
    if token != token.strip() or not token.isprintable() or len(token) > _LONGEST_TOKEN:
        raise ValueError(
            f"token must be printable, without spaces at its ends, and of {_LONGEST_TOKEN} characters at most, got "
            f"{token!r:.60}; give another, such as '<cat>'."
        )
    return token
