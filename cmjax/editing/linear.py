"""Edits for any linear measurement: A x is known, for an A of your own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from cmjax._numerics import as_array, f32, is_traced, refuse_no_function
from cmjax._struct import Struct
from cmjax.editing._checks import check_shape, measured
from cmjax.types import Array

__all__ = ["Consistent", "consistent"]


class Consistent(Struct):
    """Keep a linear measurement; see `consistent`."""

    measure: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    measured: Array

    def __call__(self, x0: Array) -> Array:
        """Go to the nearest picture that measures the same as the reference, f32[B, *S]."""
        x0 = measured("x0", x0)
        with jax.default_matmul_precision("highest"):  # a GPU's TF32 would keep three digits
            found = self.measure(x0)
            check_shape("measure(reference)", self.measured, found)
            return x0 + self.adjoint(self.measured - found)


def consistent(
    measure: Callable[[Array], Array], adjoint: Callable[[Array], Array], reference: ArrayLike
) -> Consistent:
    """Keep any linear measurement A x of a picture: x0 + Aᵀ (A reference - A x0).

    Args:
      measure: A, f[B, *S] -> f[B, *M], with orthonormal rows: A Aᵀ = 1. Examples are pixels, block means times the
        block's side, and the low frequencies of an orthonormal transform (an ideal blur).
      adjoint: Aᵀ, f[B, *M] -> f[B, *S]. For rows that are not orthonormal, give the pseudo-inverse A⁺.
      reference: f[B, *S], or f[1, *S] for all images; only its measurement matters. If you have
        only a measurement y, give adjoint(y).

    Returns:
      An edit. `measure` and `adjoint` are functions, compared by identity, or pytrees (`jax.tree_util.Partial`).

    Raises:
      TypeError: reference is not of a float dtype, or measure or adjoint is not a function.
      ValueError: measure and adjoint fail a test on random pictures, or return complex values (stack real and
        imaginary parts) or values that are not finite.

    Example:
      The sum of neighbours is known, their difference is not.

      >>> measure = lambda x: (x[:, :1] + x[:, 1:]) / 2**0.5
      >>> adjoint = lambda y: jnp.concatenate([y, y], axis=1) / 2**0.5
      >>> edit = consistent(measure, adjoint, jnp.array([[0.5, 0.0]]))
      >>> [round(float(x), 4) for x in edit(jnp.array([[0.5, -0.5]]))[0]]
      [0.75, -0.25]

    References:
      Song et al. 2023, algorithm 4, for orthogonal A; the rows that were not measured cancel.
    """
    reference = measured("reference", reference)
    for name, function in (("measure", measure), ("adjoint", adjoint)):
        refuse_no_function(name, function, "array -> array")
    measure, adjoint = Partial(measure), Partial(adjoint)
    with jax.default_matmul_precision("highest"):
        if not is_traced((measure, adjoint)):
            with jax.ensure_compile_time_eval():
                _check_projection(measure, adjoint, reference.shape)
        y = measure(reference)
    if not is_traced(y) and not bool(jnp.isfinite(y).all()):
        raise ValueError("measure(reference) must be finite, but it holds NaN or infinity.")
    return Consistent(measure, adjoint, f32(y))


def _check_projection(measure: Callable, adjoint: Callable, shape: tuple[int, ...]) -> None:
    """Test A A⁺ y = y and <A⁺ A u, v> = <u, A⁺ A v>; the latter means that unmeasured parts are left alone."""
    u, v = (jnp.asarray(z, jnp.float32) for z in np.random.default_rng(0).standard_normal((2, *shape)))
    y = _real("measure", measure(u))
    if not y.size:
        raise ValueError(f"measure must measure something, but of shape {shape} it gives shape {y.shape}.")
    back = _real("adjoint", adjoint(y))
    if back.shape != shape:
        raise ValueError(f"adjoint must lead back to pictures of shape {shape}, but it gives {back.shape}.")
    if float(jnp.abs(measure(jnp.zeros_like(u))).max()) > 1e-6:
        raise ValueError("measure must be linear, but of a picture of zeros it does not give zeros.")
    off = float(jnp.abs(measure(back) - y).max() / jnp.abs(y).max())
    if not off < 1e-3:
        raise ValueError(
            f"measure(adjoint(y)) must be y, but differs by {off:.2g} of it: the rows of measure must be orthonormal. "
            "Scale both by one factor, or give the pseudo-inverse as adjoint."
        )
    lean = float(jnp.abs((back * v).sum() - (u * adjoint(measure(v))).sum()) / jnp.linalg.norm(u) / jnp.linalg.norm(v))
    if not lean < 1e-3:
        raise ValueError(
            "adjoint must be the adjoint (or the pseudo-inverse) of measure, but adjoint(measure(x)) is no orthogonal "
            f"projection: it leans by {lean:.2g}, and would move what was not measured."
        )


def _real(name: str, value: Any) -> Array:
    array = as_array(f"what {name} gives", value, "a float array")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} must give a float array, got {array.dtype}: stack real and imaginary parts of a transform."
        )
    return array
