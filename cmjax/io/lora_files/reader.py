"""Read a file of a LoRA, in any published form."""

from __future__ import annotations

import functools
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax.io.configs import read_json
from cmjax.io.lora_files.assemble import assemble
from cmjax.io.lora_files.words import split
from cmjax.io.safetensors_files import read_metadata, read_safetensors
from cmjax.io.torch_files.pickles import printable
from cmjax.io.torch_files.reader import read_pt
from cmjax.io.weights import some_of
from cmjax.models.lora import LoRA

__all__ = ["read_lora"]

_LISTED, _LONGEST = 20, 300
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
# What other methods call their tensors.
_OTHERS = {
    "a whole difference of weights": (".diff", ".diff_b"),
    "OFT": (".oft_blocks", ".oft_diag", ".oft_R.weight"),
    "GLoRA": (".a1.weight", ".b1.weight"),
    "(IA)^3": (".on_input", ".ia3_l"),
    "norms trained whole": (".w_norm", ".b_norm"),
}


def read_lora(path: str | Path) -> LoRA:
    """Read a file of a LoRA; the names of its modules stay as they are there.

    Args:
      path: a .safetensors file, or one of PyTorch's.

    Returns:
      The LoRA, its factors in the file's dtypes.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, holds no LoRA, or holds tensors that belong to none; all of a kind are in one message.
    """
    path = Path(path).expanduser()
    is_pickle = path.suffix in _PICKLES
    tensors = read_pt(path) if is_pickle else read_safetensors(path)
    metadata = {} if is_pickle else read_metadata(path)
    try:
        return _lora(tensors, metadata, _alphas(path, metadata))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _lora(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], alphas: _Alphas) -> LoRA:
    modules: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    unknown = []
    for name, value in tensors.items():
        if len(name) > _LONGEST or not name.isprintable():
            raise ValueError(f"its names must be at most {_LONGEST} printable characters, got {printable(name)}.")
        found = split(name)
        if found is None:
            unknown.append(name)
            continue
        module, word = found
        if word in modules[module]:
            raise ValueError(f"it holds two tensors that are the {word} of {module}.")
        _refuse_numbers(name, value)
        modules[module][word] = value
    if not modules:
        raise ValueError(f"it holds no LoRA; its tensors are {some_of(list(tensors)) or 'none'}.{_other(unknown)}")
    if unknown:
        raise ValueError(f"it holds tensors that belong to no LoRA: {some_of(unknown, _LISTED)}.{_other(unknown)}")
    factors, faults = {}, []
    for module, values in modules.items():
        try:
            factors[module] = assemble(values, alphas(module))
        except ValueError as error:
            faults.append(f"{module}: {error}")
    if faults:
        raise ValueError(f"its factors are damaged: {'; '.join(faults[:_LISTED])}.")
    return LoRA(factors, tuple(sorted(metadata.items())))


def _refuse_numbers(name: str, value: np.ndarray) -> None:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        if not name.endswith("alpha"):
            raise ValueError(f"tensor {name} holds {value.dtype}, but factors are floats.")
        return
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(value.astype(np.float32) if value.dtype == np.float64 else value).all()
    if not is_finite:
        raise ValueError(f"tensor {name} holds NaN or infinity.")


def _other(names: list[str]) -> str:
    for method, ends in _OTHERS.items():
        if any(name.endswith(ends) for name in names):
            return f" That is {method}, which is not supported."
    return ""


# ---- the alphas that PEFT keeps beside the tensors -------------------------------------------------------------------


class _Alphas:
    """alpha by the name of a module, as a LoraConfig says it; None where nothing does."""

    def __init__(self, parts: Mapping[str, Mapping[str, Any]]):
        self.parts = parts

    def __call__(self, module: str) -> float | None:
        for prefix, config in self.parts.items():
            if module.startswith(prefix) and config.get("lora_alpha") is not None:
                return self._of(module.removeprefix(prefix), config)
        return None

    def _of(self, module: str, config: Mapping[str, Any]) -> float:
        try:
            alpha = float(_first(config.get("alpha_pattern"), module, config["lora_alpha"]))
            rank = float(_first(config.get("rank_pattern"), module, config.get("r", 1)))
            alpha *= math.sqrt(rank) if config.get("use_rslora") else 1.0
        except (TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"what the file says of its alpha is damaged ({error})") from error
        if not math.isfinite(alpha):
            raise ValueError(f"its alpha must be finite, got {alpha}")
        return alpha


def _first(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value of the first of PEFT's patterns that is a module's name, or the end of it from a dot on."""
    return next((value for key, value in (patterns or {}).items() if _matches(key, module)), otherwise)


def _matches(pattern: str, module: str) -> bool:
    if _PLAIN.fullmatch(pattern):
        return module == pattern or module.endswith(f".{pattern}")
    return _expression(pattern).fullmatch(module) is not None


_PLAIN = re.compile(r"[\w.-]*")
_REPEATS = re.compile(r"(?<!\\)[*+{]")


@functools.lru_cache(maxsize=1024)
def _expression(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression whose matching takes no long time, whoever wrote it.

    Raises:
      ValueError: it is none, or could take long.
    """
    if len(pattern) > 500 or len(_REPEATS.findall(pattern)) > 3 or re.search(r"\)[*+{]|\\\d|\(\?[^:]", pattern):
        raise ValueError(f"the pattern {pattern:.80} is longer or more nested than cmjax reads")
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})")
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the pattern {pattern:.80} is no regular expression: {error}") from error


def _alphas(path: Path, metadata: Mapping[str, str]) -> _Alphas:
    """Read what stands in the header, or in adapter_config.json beside the file."""
    try:
        if (text := metadata.get("lora_adapter_metadata")) is not None:
            return _Alphas(_by_part(json.loads(text)))
        beside = path.with_name("adapter_config.json")
        if path.stem == "adapter_model" and beside.is_file():
            return _Alphas({"": dict(read_json(beside))})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: what it says of its LoRA's alpha is damaged ({error}).") from error
    return _Alphas({})


def _by_part(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Split names such as `unet.r`: {"unet.": {"r": ...}}."""
    parts: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in config.items():
        part, _, key = name.rpartition(".")
        parts[f"{part}." if part else ""][key] = value
    return dict(sorted(parts.items(), key=lambda item: -len(item[0])))
