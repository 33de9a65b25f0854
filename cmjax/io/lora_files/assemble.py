"""Tensors of a file, in PyTorch's layout, to the factors of one module."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.models.lora import Factors, Hadamard, Kronecker, Product
from cmjax.types import Array

__all__ = ["assemble"]

Tensors = Mapping[str, np.ndarray]


def assemble(tensors: Tensors, alpha: float | None) -> Factors:
    """Make the factors of a module.

    Args:
      tensors: by the words of `words.split`.
      alpha: where the tensors have none; None for the rank.

    Raises:
      ValueError: a factor is missing, or the factors do not fit each other; the message says what is wrong.
    """
    rest = dict(tensors)
    form = _form(rest)
    given = rest.pop("alpha", None)
    magnitude = _magnitude(rest)
    if rest:
        raise ValueError(f"it has {', '.join(rest)} beside the factors of {type(form).__name__}")
    if given is not None and given.size != 1:
        raise ValueError(f"its alpha has shape {given.shape}, and it must be one number")
    number = (alpha or 0.0) if given is None else float(given.reshape(()))
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise ValueError(f"its alpha must be a finite float32, got {number}")
    if not number:  # missing, or 0 as older tools write it for "none"
        number = form.rank or 1
    return Factors(form, jnp.asarray(number, jnp.float32), magnitude)


def _form(rest: dict[str, np.ndarray]) -> Product | Hadamard | Kronecker:
    if "down" in rest or "up" in rest or "mid" in rest:
        return _low_rank(*_take(rest, "down", "up"), rest.pop("mid", None))
    if any(word.startswith("hada") for word in rest):
        one, other = (
            _lycoris(*_take(rest, f"hada_w{i}_a", f"hada_w{i}_b"), rest.pop(f"hada_t{i}", None)) for i in (1, 2)
        )
        return Hadamard(one, other)
    if any(word.startswith("lokr") for word in rest):
        outer, inner = _operand(rest, "lokr_w1", None), _operand(rest, "lokr_w2", rest.pop("lokr_t2", None))
        if (outer.up if isinstance(outer, Product) else outer).ndim != 2:
            raise ValueError("its lokr_w1 must be a matrix")
        return Kronecker(outer, inner)
    raise ValueError(f"it has {', '.join(rest)}, and no factors")


def _take(rest: dict[str, np.ndarray], first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    if missing := [word for word in (first, second) if word not in rest]:
        raise ValueError(f"it lacks {' and '.join(missing)}")
    return rest.pop(first), rest.pop(second)


def _low_rank(down: np.ndarray, up: np.ndarray, mid: np.ndarray | None) -> Product:
    """Down (r, c_in, ...), up (c_out, r, 1, 1), mid (r, r, H, W)."""
    up = _squeezed("up", up)
    if mid is not None:
        down = _squeezed("down", down)
    return _checked(Product(_turned("down", down), _array(up.T), None if mid is None else _turned("mid", mid)))


def _lycoris(a: np.ndarray, b: np.ndarray, core: np.ndarray | None) -> Product:
    """A b: a (c_out, r) and b (r, c_in H W); with a core (r, r, H, W), a is (r, c_out)."""
    for name, value in (("_a", a), ("_b", b)):
        if value.ndim != 2:
            raise ValueError(f"its factor {name} has shape {value.shape}, and it must be a matrix")
    if core is None:
        return _checked(Product(_array(b.T), _array(a.T)))
    return _checked(Product(_array(b.T), _array(a), _turned("core", core)))


def _operand(rest: dict[str, np.ndarray], word: str, core: np.ndarray | None) -> Product | Array:
    if word in rest:
        return _turned(word, rest.pop(word))
    return _lycoris(*_take(rest, f"{word}_a", f"{word}_b"), core)


def _magnitude(rest: dict[str, np.ndarray]) -> Array | None:
    """Of each channel that goes out, f[c_out]; or that goes in, f[c_in, 1]."""
    value = rest.pop("dora_scale", None)
    if value is None:
        value = rest.pop("magnitude", None)
        return None if value is None else _array(value.reshape(-1))
    if value.ndim > 1 and value.size == value.shape[0]:
        return _array(value.reshape(-1))
    if value.ndim > 1 and value.size == value.shape[1]:
        return _array(value.reshape(-1, 1))
    raise ValueError(f"its dora_scale has shape {value.shape}, and it must be (c_out, 1, ...) or (1, c_in, ...)")


def _squeezed(name: str, value: np.ndarray) -> np.ndarray:
    if value.ndim < 2 or value.size != value.shape[0] * value.shape[1]:
        raise ValueError(f"its {name} has shape {value.shape}, and it must be a matrix")
    return value.reshape(value.shape[:2])


def _turned(name: str, value: np.ndarray) -> Array:
    """(out, in) to (in, out), (out, in, H, W) to (H, W, in, out)."""
    if value.ndim not in (2, 4):
        raise ValueError(f"its {name} has shape {value.shape}, and it must have 2 or 4 axes")
    return _array(value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0))


def _array(value: np.ndarray) -> Array:
    return jax.device_put(np.array(value, order="C"))  # `asarray` would compile a program for each shape


def _checked(product: Product) -> Product:
    ranks = {product.down.shape[-1], product.up.shape[0]}
    ranks |= set() if product.mid is None else set(product.mid.shape[-2:])
    if len(ranks) > 1 or 0 in ranks:
        raise ValueError(f"its factors have the ranks {', '.join(map(str, sorted(ranks)))}")
    return product
