"""Files of LoRAs in every published form, made with NumPy alone, and what they should do to a model's weights.

Everything here is in PyTorch's layout, (out, in) and (out, in, H, W), and follows the formulas in float64. Of the
library it uses the names and shapes of a model's tensors only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from cmjax.io.weights import file_tensors
from cmjax.models.original_names import unet_modules

__all__ = ["FORMS", "STYLES", "File", "make", "weights"]

Tensors = dict[str, np.ndarray]


def weights(pipe: Any) -> dict[str, np.ndarray]:
    """The kernels of a model as a folder holds them, `unet.conv_in` and so on, in float64."""
    return {
        f"{part}.{name.removesuffix('.weight')}": np.asarray(value, np.float64)
        for part, network in pipe.networks.items()
        for name, value in file_tensors(network.module).items()
        if name.endswith(".weight") and value.ndim > 1 and "embedding.weight" not in name
    }


@dataclasses.dataclass(frozen=True)
class File:
    """A file: its tensors, and the change of each kernel by its name in the model."""

    tensors: Tensors
    change: dict[str, np.ndarray]


# ---- forms: the tensors of one module, and its change ----------------------------------------------------------------

Form = Callable[[np.random.Generator, np.ndarray, int, float | None], tuple[Tensors, np.ndarray]]


def _draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _gain(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


def lora(rng, kernel, rank, alpha):
    """Down (r, in, H, W), up (out, r, 1, 1)."""
    out, *rest = kernel.shape
    down, up = _draw(rng, rank, *rest), _draw(rng, out, rank, *(1,) * (kernel.ndim - 2))
    change = np.einsum("or,r...->o...", up.reshape(out, rank).astype(float), down.astype(float))
    return {"down": down, "up": up}, _gain(alpha, rank) * change


def locon_mid(rng, kernel, rank, alpha):
    """Down and up of one pixel, with a window between them; a plain LoRA for linear layers."""
    if kernel.ndim == 2:
        return lora(rng, kernel, rank, alpha)
    out, into, *window = kernel.shape
    down, up, mid = _draw(rng, rank, into, 1, 1), _draw(rng, out, rank, 1, 1), _draw(rng, rank, rank, *window)
    change = np.einsum("op,pqyx,qi->oiyx", *(v.astype(float) for v in (up[..., 0, 0], mid, down[..., 0, 0])))
    return {"down": down, "up": up, "mid": mid}, _gain(alpha, rank) * change


def loha(rng, kernel, rank, alpha):
    """(w1a w1b) * (w2a w2b), windows as one axis."""
    out, columns = kernel.shape[0], kernel[0].size
    words = {
        f"hada_w{i}_{side}": _draw(rng, *((out, rank) if side == "a" else (rank, columns)))
        for i in (1, 2)
        for side in "ab"
    }
    w1a, w1b, w2a, w2b = (value.astype(float) for value in words.values())
    return words, _gain(alpha, rank) * ((w1a @ w1b) * (w2a @ w2b)).reshape(kernel.shape)


def loha_tucker(rng, kernel, rank, alpha):
    """Each of the two with a core."""
    if kernel.ndim == 2:
        return loha(rng, kernel, rank, alpha)
    out, into, *window = kernel.shape
    words, change = {}, 1.0
    for i in (1, 2):
        a, b, core = _draw(rng, rank, out), _draw(rng, rank, into), _draw(rng, rank, rank, *window)
        words |= {f"hada_w{i}_a": a, f"hada_w{i}_b": b, f"hada_t{i}": core}
        change = change * np.einsum("ijkl,jr,ip->prkl", *(v.astype(float) for v in (core, b, a)))
    return words, _gain(alpha, rank) * change


def _two(number: int) -> tuple[int, int]:
    """Two factors of a number, the first the largest up to its root."""
    first = next(k for k in range(int(number**0.5), 0, -1) if number % k == 0)
    return first, number // first


def lokr(rng, kernel, rank, alpha):
    """kron(w1, w2), both whole: alpha does not count."""
    (a, c), (b, d) = _two(kernel.shape[0]), _two(kernel.shape[1])
    w1, w2 = _draw(rng, a, b), _draw(rng, c, d, *kernel.shape[2:])
    return {"lokr_w1": w1, "lokr_w2": w2}, _kron(w1, w2)


def lokr_low(rng, kernel, rank, alpha):
    """w1 whole, w2 of low rank, its window as one axis."""
    (a, c), (b, d) = _two(kernel.shape[0]), _two(kernel.shape[1])
    columns = d * int(np.prod(kernel.shape[2:]))
    w1, w2a, w2b = _draw(rng, a, b), _draw(rng, c, rank), _draw(rng, rank, columns)
    w2 = (w2a.astype(float) @ w2b.astype(float)).reshape(c, d, *kernel.shape[2:])
    return {"lokr_w1": w1, "lokr_w2_a": w2a, "lokr_w2_b": w2b}, _gain(alpha, rank) * _kron(w1, w2)


def lokr_tucker(rng, kernel, rank, alpha):
    """w1 of low rank, w2 with a core."""
    if kernel.ndim == 2:
        return lokr_low(rng, kernel, rank, alpha)
    (a, c), (b, d) = _two(kernel.shape[0]), _two(kernel.shape[1])
    w1a, w1b = _draw(rng, a, rank), _draw(rng, rank, b)
    w2a, w2b, core = _draw(rng, rank, c), _draw(rng, rank, d), _draw(rng, rank, rank, *kernel.shape[2:])
    w2 = np.einsum("ijkl,ip,jr->prkl", *(v.astype(float) for v in (core, w2a, w2b)))
    words = {"lokr_w1_a": w1a, "lokr_w1_b": w1b, "lokr_w2_a": w2a, "lokr_w2_b": w2b, "lokr_t2": core}
    return words, _gain(alpha, rank) * _kron(w1a.astype(float) @ w1b.astype(float), w2)


def _kron(w1: np.ndarray, w2: np.ndarray) -> np.ndarray:
    w1 = w1.astype(float).reshape(*w1.shape, *(1,) * (w2.ndim - 2))
    return np.kron(w1, w2.astype(float))


def _dora(axis: int) -> Form:
    def form(rng, kernel, rank, alpha):
        words, change = lora(rng, kernel, rank, alpha)
        turned = kernel + change
        others = tuple(i for i in range(kernel.ndim) if i != axis)
        norm = np.sqrt((turned**2).sum(others, keepdims=True))
        scale = (1 + rng.random(norm.shape)).astype(np.float32)
        return words | {"dora_scale": scale}, turned * (scale / norm) - kernel

    return form


FORMS: Mapping[str, Form] = {
    "lora": lora,
    "locon_mid": locon_mid,
    "loha": loha,
    "loha_tucker": loha_tucker,
    "lokr": lokr,
    "lokr_low": lokr_low,
    "lokr_tucker": lokr_tucker,
    "dora_out": _dora(0),
    "dora_in": _dora(1),
}

# ---- styles: what files call a module, and its tensors ---------------------------------------------------------------

_KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
_PEFT = {"down": "lora_A.weight", "up": "lora_B.weight", "dora_scale": "lora_magnitude_vector.weight"}
_PROCESSORS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
_TEXT_PROCESSORS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _kohya(pipe: Any, name: str) -> str:
    part, _, path = name.partition(".")
    te = {"unet": "unet", "text_encoder": "te1" if len(pipe.text_encoders) > 1 else "te", "text_encoder_2": "te2"}
    return f"lora_{te[part]}_{path.replace('.', '_')}."


def _sgm(pipe: Any, name: str) -> str:
    part, _, path = name.partition(".")
    original = {ours: theirs for theirs, ours in unet_modules(pipe.unet.config).items()}
    return _kohya(pipe, f"{part}.{original[path]}" if part == "unet" else name)


def _mixed(pipe: Any, name: str) -> str:
    return (_sgm if len(name) % 2 else _kohya)(pipe, name)


def _first(pipe: Any, name: str) -> str | None:
    """Diffusers' first form, which has attention alone."""
    layer, _, last = name.rpartition(".to_out.") if ".to_out." in name else name.rpartition(".")
    last = "to_out.0" if ".to_out." in name else last
    if name.startswith("unet.") and last in _PROCESSORS and ".attn" in name:
        return f"{layer}.processor.{_PROCESSORS[last]}_lora."
    if "self_attn" in name:
        return f"{layer}.{_TEXT_PROCESSORS[last]}_lora."
    return None


@dataclasses.dataclass(frozen=True)
class Style:
    """How files name things: the start of a module's tensors, None for a module that such files have not."""

    start: Callable[[Any, str], str | None]
    words: Mapping[str, str]
    has_alpha: bool = False


STYLES = {
    "kohya": Style(_kohya, _KOHYA, has_alpha=True),
    "sgm": Style(_sgm, _KOHYA, has_alpha=True),
    "mixed": Style(_mixed, _KOHYA, has_alpha=True),
    "peft": Style(lambda pipe, name: f"{name}.", _PEFT),
    "peft_named": Style(
        lambda pipe, name: f"{name}.", {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}
    ),
    "raw_peft": Style(lambda pipe, name: f"base_model.model.{name[5:]}." if name.startswith("unet.") else None, _PEFT),
    "bare": Style(lambda pipe, name: f"{name[5:]}." if name.startswith("unet.") else None, _PEFT),
    "diffusers": Style(lambda pipe, name: f"{name}.", {"down": "lora.down.weight", "up": "lora.up.weight"}),
    "linear_layer": Style(
        lambda pipe, name: f"{name}." if name.startswith("text_") else None,
        {"down": "lora_linear_layer.down.weight", "up": "lora_linear_layer.up.weight"},
    ),
    "first": Style(_first, {"down": "down.weight", "up": "up.weight"}),
    "short_texts": Style(
        lambda pipe, name: f"{name.replace('text_model.', '')}." if name.startswith("text_") else None, _PEFT
    ),
}


def make(pipe: Any, style: str, form: str = "lora", *, seed: int = 0, alphas: str = "none", one_in: int = 1) -> File:
    """Make a file that changes a model's kernels.

    Args:
      pipe: the model.
      style: of `STYLES`.
      form: of `FORMS`.
      seed: of the numbers.
      alphas: "none", "some" (of every other module) or "all", each another; ranks differ too, but for "none".
      one_in: changes one module in so many.
    """
    rng, how = np.random.default_rng(seed), STYLES[style]
    tensors, change = {}, {}
    for i, (name, kernel) in enumerate(_chosen(weights(pipe), one_in)):
        start = how.start(pipe, name)
        if start is None:
            continue
        has_alpha = how.has_alpha and (alphas == "all" or (alphas == "some" and i % 2 == 0))
        alpha = float(0.5 + i % 3) if has_alpha else None
        rank = 2 if alphas == "none" else 1 + i % 3
        words, change[name] = FORMS[form](rng, kernel, rank, alpha)
        tensors |= {f"{start}{how.words.get(word, word)}": value for word, value in words.items()}
        if alpha is not None:
            tensors[f"{start}alpha"] = np.asarray(alpha, np.float32)
    return File(tensors, change)


def _chosen(kernels: Mapping[str, np.ndarray], one_in: int) -> Iterator[tuple[str, np.ndarray]]:
    return ((name, kernel) for i, (name, kernel) in enumerate(kernels.items()) if i % one_in == 0)
