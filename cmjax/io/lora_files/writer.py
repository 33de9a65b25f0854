"""Write a LoRA as a file that diffusers and the common user interfaces read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cmjax.io.safetensors_files import write_safetensors
from cmjax.models.lora import Factors, Hadamard, Kronecker, LoRA, Product
from cmjax.types import Array

__all__ = ["STYLES", "write_lora"]

_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
STYLES = ("peft", "kohya")
_DOWN_UP = {"peft": ("lora_A.weight", "lora_B.weight"), "kohya": ("lora_down.weight", "lora_up.weight")}


def write_lora(lora: LoRA, path: str | Path, *, style: str = "peft", metadata: Mapping[str, str] | None = None) -> None:
    """Write a resolved LoRA.

    Each alpha becomes the rank, with the difference in the second factor, since several programs read only one alpha a
    file, or none. Where ranks differ, plain LoRAs have no alpha, which all programs take for the rank.

    Args:
      lora: whose modules are named `unet.…`, `text_encoder.…` or `text_encoder_2.…`.
      path: the file.
      style: "peft" or "kohya".
      metadata: further texts of the header.

    Raises:
      ValueError: there is no such style, path has another ending, there are no factors, modules have other names, or
        the style has no such form.
      OSError: it cannot be written.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}.")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}.")
    if not lora.factors:
        raise ValueError("lora must have factors, but it changes no module.")
    has_two = any(module.startswith("text_encoder_2.") for module in lora.factors)
    has_alpha = style == "kohya" and len({factors.rank for factors in lora.factors.values()}) == 1
    tensors: dict[str, np.ndarray] = {}
    for module, factors in lora.factors.items():
        part, _, name = module.partition(".")
        if part not in _KOHYA or not name:
            raise ValueError(
                f"modules must have the names of a model, but the LoRA has {module}: cmjax.lora.resolve(lora, model) "
                "gives them."
            )
        if style == "kohya":
            first = "lora_te1" if part == "text_encoder" and has_two else _KOHYA[part]
            module = f"{first}_{name.replace('.', '_')}"
        tensors |= {f"{module}.{word}": value for word, value in _words(factors, style, module, has_alpha).items()}
    write_safetensors(tensors, Path(path).expanduser(), metadata=metadata)


def _words(factors: Factors, style: str, module: str, has_alpha: bool) -> dict[str, np.ndarray]:
    form = factors.form
    if style == "peft" and (not isinstance(form, Product) or form.mid is not None):
        raise ValueError(f'style="peft" has no {type(form).__name__} with these factors ({module}): take "kohya".')
    if isinstance(form, Product):
        down, up = _DOWN_UP[style]
        axes = _axes(factors)
        words = {down: _window(_to_file(form.down), axes), up: _window(_scaled(form.up, factors), axes)}
        if form.mid is not None:
            words["lora_mid.weight"] = _to_file(form.mid)
        if has_alpha:
            words["alpha"] = np.asarray(form.rank, np.float32)
    else:
        words = _hadamard(form) if isinstance(form, Hadamard) else _kronecker(form, _axes(factors))
        words["alpha"] = np.asarray(factors.alpha, np.float32)
    return words | _magnitude(factors, style)


def _magnitude(factors: Factors, style: str) -> dict[str, np.ndarray]:
    if factors.magnitude is None:
        return {}
    value = np.asarray(factors.magnitude)
    if style == "kohya":
        ones = (1,) * (_axes(factors) - 2)
        return {"dora_scale": value.reshape((-1, 1, *ones) if value.ndim == 1 else (1, -1, *ones))}
    if value.ndim == 2:
        raise ValueError('style="peft" has magnitudes of the channels that go out only: take "kohya".')
    return {"lora_magnitude_vector.weight": value if _axes(factors) == 2 else value.reshape(1, -1, 1, 1)}


def _axes(factors: Factors) -> int:
    """How many axes files give the kernel."""
    return 4 if factors.of_pixels else _axes_of(factors.form)


def _axes_of(form: Product | Hadamard | Kronecker | Array) -> int:
    if isinstance(form, Product):
        return max(np.ndim(form.down), 0 if form.mid is None else np.ndim(form.mid))
    if isinstance(form, Hadamard | Kronecker):
        return _axes_of(form.one if isinstance(form, Hadamard) else form.inner)
    return np.ndim(form)


def _hadamard(form: Hadamard) -> dict[str, np.ndarray]:
    words = {}
    for i, one in ((1, form.one), (2, form.other)):
        words |= _pair(one, f"hada_w{i}", f"hada_t{i}")
    return words


def _kronecker(form: Kronecker, axes: int) -> dict[str, np.ndarray]:
    words = {}
    for word, core, one in (("lokr_w1", "lokr_t1", form.outer), ("lokr_w2", "lokr_t2", form.inner)):
        whole = {} if isinstance(one, Product) else {word: _window(_to_file(one), axes if word == "lokr_w2" else 2)}
        words |= _pair(one, word, core) if isinstance(one, Product) else whole
    return words


def _pair(one: Product, word: str, core: str) -> dict[str, np.ndarray]:
    up, down = np.asarray(one.up), _to_file(one.down)
    if one.mid is not None:
        return {f"{word}_a": up, f"{word}_b": down, core: _to_file(one.mid)}
    return {f"{word}_a": np.ascontiguousarray(up.T), f"{word}_b": down.reshape(len(down), -1)}


def _scaled(up: object, factors: Factors) -> np.ndarray:
    """The second factor, turned, with alpha / rank in it; as it is where that is 1."""
    value, gain = np.asarray(up).T, float(np.asarray(factors.alpha)) / (factors.rank or 1)
    return np.ascontiguousarray(value if gain == 1 else (np.float32(gain) * value.astype(np.float32)))


def _to_file(value: object) -> np.ndarray:
    """(in, out) to (out, in), (H, W, in, out) to (out, in, H, W)."""
    array = np.asarray(value)
    return np.ascontiguousarray(array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1))


def _window(value: np.ndarray, axes: int) -> np.ndarray:
    """Give a matrix a window of one pixel where files hold a convolution."""
    return value.reshape(*value.shape, *(1,) * (axes - value.ndim))
