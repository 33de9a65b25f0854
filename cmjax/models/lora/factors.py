"""The factors of a LoRA: how a kernel changes, written with few numbers.

Kernels have the layout of `cmjax.models`: f[c_in, c_out] for linear layers, f[H, W, c_in, c_out] for convolutions.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32
from cmjax._struct import Struct, static
from cmjax.types import Array

__all__ = ["Factors", "Hadamard", "Kronecker", "Product"]

_EPS = float(np.finfo(np.float32).eps)


class Product(Struct):
    """A product of two or three factors: `down up`, or with a window between them, `down mid up`.

    Attributes:
      down: f[c_in, r], or f[H, W, c_in, r].
      up: f[r, c_out].
      mid: f[H, W, r, r], or None. Then down is f[c_in, r].

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, equation 3.
    """

    down: Array
    up: Array
    mid: Array | None = None

    @property
    def rank(self) -> int:
        """The number of columns of `down`."""
        return self.down.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel that they make."""
        if self.mid is None:
            return (*self.down.shape[:-1], self.up.shape[-1])
        return (*self.mid.shape[:-2], self.down.shape[-2], self.up.shape[-1])

    def kernel(self) -> Array:
        """Multiply the factors, in float32."""
        down, up = f32(self.down), f32(self.up)
        if self.mid is None:
            return _matmul(down, up)
        return _matmul(_matmul(down, f32(self.mid)), up)

    def fit(self, shape: tuple[int, ...]) -> Product:
        """Give the factors the axes of a kernel's shape; those of a 1x1 convolution fit a linear layer.

        Raises:
          ValueError: they do not make a kernel of that shape.
        """
        if self.mid is not None:
            fitted = Product(_matrix(self.down), self.up, _window(self.mid, (*shape[:-2], self.rank, self.rank)))
        else:
            fitted = Product(_window(self.down, (*shape[:-1], self.rank)), self.up)
        axes = len(shape) if fitted.mid is None else fitted.mid.ndim
        if axes != len(shape) or fitted.down.ndim != (axes if fitted.mid is None else 2):
            raise ValueError(f"their shapes are {', '.join(str(one.shape) for one in jax.tree.leaves(self))}")
        if fitted.up.shape != (self.rank, shape[-1]) or fitted.down.shape[-2] != shape[-2]:
            raise ValueError(f"they make {self.down.shape[-2]} channels to {self.up.shape[-1]}")
        return fitted


class Hadamard(Struct):
    """The product of two low-rank kernels, number by number (LoHa).

    References:
      Hyeon-Woo et al., FedPara, 2021, equation 3; Yeh et al., Navigating Text-To-Image Customization, 2023, section 4.
    """

    one: Product
    other: Product

    @property
    def rank(self) -> int:
        """Of one of the two."""
        return self.one.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel that they make."""
        return self.one.shape

    def kernel(self) -> Array:
        """Multiply, in float32."""
        return self.one.kernel() * self.other.kernel()

    def fit(self, shape: tuple[int, ...]) -> Hadamard:
        """As for `Product.fit`."""
        fitted = Hadamard(self.one.fit(shape), self.other.fit(shape))
        if fitted.one.shape != fitted.other.shape:
            raise ValueError(f"they make kernels of the shapes {fitted.one.shape} and {fitted.other.shape}")
        return fitted


class Kronecker(Struct):
    """The Kronecker product of two kernels, each whole or of low rank (LoKr).

    Attributes:
      outer: f[a, b], or its factors.
      inner: f[c, d] or f[H, W, c, d], or its factors. The product maps a c channels to b d.

    References:
      Yeh et al., Navigating Text-To-Image Customization, 2023, section 4.
    """

    outer: Array | Product
    inner: Array | Product

    @property
    def rank(self) -> int | None:
        """Of the factor that has one; None where both are whole."""
        ranks = [one.rank for one in (self.outer, self.inner) if isinstance(one, Product)]
        return ranks[-1] if ranks else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel that they make."""
        (a, b), inner = self.outer.shape[-2:], self.inner.shape
        return (*inner[:-2], a * inner[-2], b * inner[-1])

    def kernel(self) -> Array:
        """Multiply, in float32."""
        outer, inner = (one.kernel() if isinstance(one, Product) else f32(one) for one in (self.outer, self.inner))
        (a, b), (c, d) = outer.shape, inner.shape[-2:]
        return jnp.einsum("ab,...cd->...acbd", outer, inner).reshape(*inner.shape[:-2], a * c, b * d)

    def fit(self, shape: tuple[int, ...]) -> Kronecker:
        """As for `Product.fit`."""
        c_in, c_out = self.outer.shape[-2:]
        if not c_in or not c_out or shape[-2] % c_in or shape[-1] % c_out:
            raise ValueError(f"their outer factor makes {c_in} channels to {c_out}")
        within = (*shape[:-2], shape[-2] // c_in, shape[-1] // c_out)
        outer = self.outer.fit((c_in, c_out)) if isinstance(self.outer, Product) else _matrix(self.outer)
        inner = self.inner.fit(within) if isinstance(self.inner, Product) else _window(self.inner, within)
        if outer.shape != (c_in, c_out):
            raise ValueError(f"their outer factor has shape {outer.shape}, and it must be a matrix")
        if inner.shape != within:
            raise ValueError(f"their inner factor has shape {inner.shape}, and it must be {within}")
        return Kronecker(outer, inner)


class Factors(Struct):
    """How one kernel W changes: by (alpha / rank) times what the factors multiply to.

    Attributes:
      form: a `Product` (LoRA, LoCon), `Hadamard` (LoHa) or `Kronecker` (LoKr).
      alpha: f[].
      magnitude: of the changed kernel (DoRA), f[c_out] or, of each channel that goes in, f[c_in, 1]. None for none.
      of_pixels: whether files hold the kernel, a linear layer's here, as that of a 1x1 convolution. Static.

    Example:
      >>> factors = Factors(Product(jnp.ones((3, 2)), jnp.ones((2, 4))), alpha=jnp.array(1.0))
      >>> factors.delta(jnp.zeros((3, 4)))[0]
      Array([1., 1., 1., 1.], dtype=float32)
    """

    form: Product | Hadamard | Kronecker
    alpha: Array
    magnitude: Array | None = None
    of_pixels: bool = static(default=False)

    @property
    def rank(self) -> int | None:
        """Of the form."""
        return self.form.rank

    @property
    def gain(self) -> Array:
        """The number alpha / rank; 1 for factors without a rank."""
        return jnp.ones(()) if self.rank is None else f32(self.alpha) / self.rank

    def delta(self, kernel: Array) -> Array:
        """Compute the whole change of a kernel, f32 of its shape.

        Args:
          kernel: W, of any float dtype; its values count for a magnitude m only, where the change is
            m (W + D) / |W + D| - W.

        References:
          Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, equation 5.
        """
        change = self.gain * self.form.kernel()
        if self.magnitude is None:
            return change
        base = f32(kernel)
        turned = base + change
        axis = turned.ndim - (1 if self.magnitude.ndim == 1 else 2)
        norm = jnp.linalg.norm(jnp.moveaxis(turned, axis, 0).reshape(turned.shape[axis], -1), axis=1)
        norm = norm if axis == turned.ndim - 1 else norm[:, None]
        return turned * (f32(self.magnitude) / (norm + _EPS)) - base

    def fit(self, shape: tuple[int, ...]) -> Factors:
        """Give the factors the axes of a kernel's shape.

        Raises:
          ValueError: they do not make a kernel of that shape; the message says what they make.
        """
        fitted = self.replace(form=self.form.fit(shape))
        if fitted.form.shape != shape:
            raise ValueError(f"they make a kernel of shape {fitted.form.shape}")
        if self.magnitude is not None and self.magnitude.shape not in ((shape[-1],), (shape[-2], 1)):
            raise ValueError(f"their magnitude has shape {self.magnitude.shape}")
        return fitted


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _matrix(value: Array) -> Array:
    """Drop the axes of a window of one pixel."""
    return value.reshape(value.shape[-2:]) if math.prod(value.shape[:-2]) == 1 else value


def _window(value: Array, shape: tuple[int, ...]) -> Array:
    """Give a factor a kernel's window: files hold (c_in, H, W) as one axis, or a window of one pixel."""
    if value.ndim == 2 and len(shape) == 4 and value.shape[0] == math.prod(shape[:-1]):
        height, width, c_in = shape[:3]
        return value.reshape(c_in, height, width, -1).transpose(1, 2, 0, 3)
    if value.ndim == 4 and len(shape) == 2:
        return _matrix(value)
    return value
