"""Zero-shot edits: from clean estimates to clean estimates, what `edit=` takes. With any model and any sampler.

Of the wanted picture something has been measured: some pixels, its luminance, the means of its blocks. An edit puts
what was measured into an estimate, and leaves the rest to the model (Song et al. 2023, algorithm 4). There, A is an
orthogonal map, as in all of the paper's tasks, and Ω a mask on its outputs; then what is left of it is the nearest
picture that agrees with the measurement,

    x0 + A⁺ (y - A x0),   A the rows that were measured, A⁺ its pseudo-inverse,

in closed form for each edit here. The loop clips, edits, renoises, so that the last picture agrees with the measurement
to rounding (and may leave [-1, 1] by a little, where estimate and measurement disagree). It is not a sample of the
conditional distribution: every estimate is made to agree, but by then the model, not told, has drawn it.

An edit is a pytree, its arrays are leaves: a thousand masks are one `jax.vmap`, and another photo never recompiles.
Start from what is known, `x = cmjax.add_noise(state, editing.known(edit, shape), key)`; then
`cmjax.sample(model, state, x, key, edit=edit)`. The paper walks the whole grid; a few levels at which what is known can
be seen do as well, `cmjax.cm.init(config, sigmas=np.geomspace(3, 0.3, 10))`, and better than as few of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from cmjax._numerics import f32, is_traced, refuse_integers, whole
from cmjax._struct import Struct, static
from cmjax.types import Array, Edit

__all__ = [
    "Blend",
    "Chain",
    "Colorize",
    "Consistent",
    "Inpaint",
    "SuperResolution",
    "blend",
    "block_mean",
    "chain",
    "colorize",
    "consistent",
    "inpaint",
    "known",
    "luminance",
    "super_resolution",
]

# What each colour contributes to the luminance (ITU-R BT.601), as in the paper's colorization.
LUMA = (0.2989, 0.5870, 0.1140)

Bounds = tuple[float, float] | None


# ---- pixels ----------------------------------------------------------------------------------------------------------


class Inpaint(Struct):
    """Keep the known pixels; see `inpaint`."""

    reference: Array
    hole: Array

    def __call__(self, x0: Array) -> Array:
        """Put the known pixels back, f32[B, *S]."""
        _check_shape("reference", self.reference, x0)
        _check_shape("hole", self.hole, x0)
        return jnp.where(self.hole, x0, self.reference)


def inpaint(reference: ArrayLike, hole: ArrayLike, *, bounds: Bounds = (-1.0, 1.0)) -> Inpaint:
    """Fill a hole: at each step the known pixels are put back.

    Args:
      reference: f[B, *S], or f[1, *S] for all images, in the model's range; what is in the hole does not matter.
      hole: bool[B, *S], True where pixels are unknown; axes of length 1 broadcast, leading ones may be left out. One
        reference may have many holes, and many references one hole.
      bounds: refuse a reference with values outside, such as 0 ... 255; None for latents, which have no bounds. Arrays
        that are traced are not looked at.

    Returns:
      An edit. What it gives is float32; the known pixels are the reference's, bit for bit.

    Raises:
      TypeError: hole is not boolean, or reference is not of a float dtype.
      ValueError: hole does not broadcast against reference, or reference is out of bounds.

    Example:
      >>> edit = inpaint(jnp.array([[1.0, 0.2, 0.3]]), jnp.array([[False, True, False]]))
      >>> edit(jnp.zeros((1, 3)))
      Array([[1. , 0. , 0.3]], dtype=float32)

    References:
      Song et al. 2023, algorithm 4 and appendix D.
    """
    given, reference, hole = reference, _measured("reference", reference), jnp.asarray(hole)
    if hole.dtype != jnp.bool:
        raise TypeError(
            f"hole must be boolean, True where pixels are unknown, got {hole.dtype}: write hole > 0.5, or use blend "
            "for a soft mask."
        )
    hole = _mask("hole", hole, reference)
    _check_bounds("reference", given, bounds, free=hole)
    return Inpaint(reference, hole)


class Blend(Struct):
    """Mix the estimate with a reference; see `blend`."""

    reference: Array
    weight: Array

    def __call__(self, x0: Array) -> Array:
        """Mix, f32[B, *S]."""
        _check_shape("reference", self.reference, x0)
        _check_shape("weight", self.weight, x0)
        reference = jnp.where(self.weight < 1, self.reference, x0)
        return reference + self.weight * (x0 - reference)


def blend(reference: ArrayLike, weight: ArrayLike, *, bounds: Bounds = (-1.0, 1.0)) -> Blend:
    """Mix with a soft mask: reference + weight (x0 - reference). Of zeros and ones it is the mask of `inpaint`.

    Args:
      reference: as for `inpaint`; what it is where weight is 1 does not matter.
      weight: f, from 0, where the reference stays, to 1, where the model is free; broadcasts as hole does.
      bounds: as for `inpaint`.

    Returns:
      An edit. It is no projection: each step pulls towards the reference anew, by 1 - weight.

    Raises:
      TypeError: reference or weight is not of a float dtype.
      ValueError: weight does not broadcast against reference, or has values outside [0, 1], or reference is out of
        bounds.

    Example:
      >>> blend(jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 0.5]]))(jnp.zeros((1, 2)))
      Array([[1. , 0.5]], dtype=float32)
    """
    given, reference = reference, _measured("reference", reference)
    _check_bounds("weight", weight, (0.0, 1.0), remedy="")
    weight = _mask("weight", _measured("weight", weight), reference)
    _check_bounds("reference", given, bounds, free=weight == 1)
    return Blend(reference, weight)


# ---- colours ---------------------------------------------------------------------------------------------------------


class Colorize(Struct):
    """Keep the luminance; see `colorize`."""

    gray: Array
    weights: Array

    def __call__(self, x0: Array) -> Array:
        """Give x0 the luminance of gray, moving along the weights: f32[B, H, W, C]."""
        channels = self.weights.shape[-1]
        if x0.shape[-1] != channels:
            raise ValueError(f"colorize weighs {channels} colours, but x0 has shape {x0.shape}, channels last.")
        _check_shape("gray", self.gray, x0[..., :1])
        weights = self.weights.reshape((1,) * (x0.ndim - 1) + (channels,))
        missing = self.gray - (x0 * weights).sum(-1, keepdims=True)
        return x0 + missing * weights / (weights**2).sum()


def colorize(gray: ArrayLike, *, weights: Sequence[float] = LUMA, bounds: Bounds = (-1.0, 1.0)) -> Colorize:
    """Colour a grey picture: at each step each pixel gets its luminance back.

    Args:
      gray: f[B, H, W, 1], or f[1, H, W, 1] for all images, in the model's range. `luminance` makes one of colours.
      weights: how much each channel contributes; they are scaled so that they add up to 1.
      bounds: as for `inpaint`.

    Returns:
      An edit on f[B, H, W, C], for as many channels C as weights. It gives float32.

    Raises:
      TypeError: gray is not of a float dtype.
      ValueError: gray has not one channel, or is out of bounds, or weights do not add up to something positive.

    Example:
      >>> colorize(jnp.full((1, 1, 1, 1), 0.5), weights=(1, 0, 1))(jnp.zeros((1, 1, 1, 3)))
      Array([[[[0.5, 0. , 0.5]]]], dtype=float32)

    References:
      Song et al. 2023, appendix D. (There an orthogonal matrix is made of the weights; its other columns drop out.)
    """
    given, gray = gray, _measured("gray", gray)
    if gray.ndim < 2 or gray.shape[-1] != 1:
        remedy = (
            "luminance(photo) makes one of a colour picture" if gray.shape[-1:] == (3,) else "write gray[..., None]"
        )
        raise ValueError(f"gray must have one channel, [B, H, W, 1], got shape {gray.shape}: {remedy}.")
    _check_bounds("gray", given, bounds)
    return Colorize(gray, jnp.asarray(_unit_sum(weights)))


def luminance(images: ArrayLike, *, weights: Sequence[float] = LUMA) -> Array:
    """Measure what `colorize` keeps.

    Args:
      images: f[..., C].
      weights: as for `colorize`.

    Returns:
      f32[..., 1]: of grey colours (v, v, v) it is v.

    Raises:
      TypeError: images are not of a float dtype.
      ValueError: there are not as many channels as weights.

    Example:
      >>> luminance(jnp.array([1.0, 0.5, 0.0]), weights=(1, 2, 1))
      Array([0.5], dtype=float32)
    """
    images, share = _measured("images", images), _unit_sum(weights)
    if images.shape[-1:] != share.shape:
        raise ValueError(f"images must have {len(share)} channels, last, got shape {images.shape}.")
    return (images * share.reshape((1,) * (images.ndim - 1) + share.shape)).sum(-1, keepdims=True)


def _unit_sum(weights: Sequence[float]) -> np.ndarray:
    found = np.asarray(weights, np.float64)
    if found.ndim != 1 or not np.isfinite(found).all() or not found.sum() > 0:
        raise ValueError(f"weights must be one number for each channel, with a positive sum, got {weights}.")
    return (found / found.sum()).astype(np.float32)


# ---- resolution ------------------------------------------------------------------------------------------------------


class SuperResolution(Struct):
    """Keep the means of blocks; see `super_resolution`."""

    low: Array
    factor: int = static()

    def __call__(self, x0: Array) -> Array:
        """Shift every block to its mean in low: f32[B, H, W, C]."""
        means = block_mean(x0, self.factor)
        _check_shape("low", self.low, means)
        missing = jnp.broadcast_to(self.low - means, means.shape)
        return x0 + missing.repeat(self.factor, axis=-3).repeat(self.factor, axis=-2)


def super_resolution(low: ArrayLike, factor: int, *, bounds: Bounds = (-1.0, 1.0)) -> SuperResolution:
    """Enlarge a picture: at each step each block of pixels gets its mean back.

    Args:
      low: f[B, h, w, C], or f[1, h, w, C] for all images, in the model's range.
      factor: how many times larger the result is, on each side: an int, as it decides shapes.
      bounds: as for `inpaint`.

    Returns:
      An edit on f[B, h factor, w factor, C]. It gives float32.

    Raises:
      TypeError: low is not of a float dtype, or factor is no int.
      ValueError: factor is less than 1, low has too few axes or is out of bounds.

    Example:
      >>> edit = super_resolution(jnp.array([[[[0.5]]]]), 2)
      >>> edit(jnp.array([0.0, 0.0, 0.0, 1.0]).reshape(1, 2, 2, 1)).ravel()
      Array([0.25, 0.25, 0.25, 1.25], dtype=float32)

    References:
      Song et al. 2023, appendix D. (There an orthogonal matrix is made of the mean; its other columns drop out.)
    """
    given, low, factor = low, _measured("low", low), whole("factor", factor, 1)
    if low.ndim < 3:
        raise ValueError(f"low must have axes [B, h, w, C], got shape {low.shape}.")
    _check_bounds("low", given, bounds)
    return SuperResolution(low, factor)


def block_mean(images: ArrayLike, factor: int) -> Array:
    """Measure what `super_resolution` keeps: shrink by averaging blocks of factor x factor pixels.

    Args:
      images: f[..., H, W, C].
      factor: an int that divides H and W.

    Returns:
      f32[..., H / factor, W / factor, C].

    Raises:
      TypeError: images are not of a float dtype, or factor is no int.
      ValueError: factor does not divide the size.

    Example:
      >>> block_mean(jnp.arange(4.0).reshape(1, 2, 2, 1), 2).ravel()
      Array([1.5], dtype=float32)
    """
    images, factor = _measured("images", images), whole("factor", factor, 1)
    if images.ndim < 3:
        raise ValueError(f"images must have axes [..., H, W, C], got shape {images.shape}.")
    *batch, height, width, channels = images.shape
    if height % factor or width % factor:
        raise ValueError(f"factor must divide the size of the images, but {factor} does not divide {height} x {width}.")
    blocks = images.reshape(*batch, height // factor, factor, width // factor, factor, channels)
    return blocks.mean((-4, -2))


# ---- anything linear -------------------------------------------------------------------------------------------------


class Consistent(Struct):
    """Keep a linear measurement; see `consistent`."""

    measure: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    measured: Array

    def __call__(self, x0: Array) -> Array:
        """Go to the nearest picture that measures the same as the reference, f32[B, *S]."""
        with jax.default_matmul_precision("highest"):  # a GPU's TF32 would keep three digits
            found = self.measure(x0)
            _check_shape("measure(reference)", self.measured, found)
            return x0 + self.adjoint(self.measured - found)


def consistent(
    measure: Callable[[Array], Array], adjoint: Callable[[Array], Array], reference: ArrayLike
) -> Consistent:
    """Keep any linear measurement A x of a picture: x0 + Aᵀ (A reference - A x0).

    Args:
      measure: A, f[B, *S] -> f[B, *M], of orthonormal rows: A Aᵀ = 1. Pixels are one, or block means times the block's
        side, or the low frequencies of an orthonormal transform (what an ideal blur leaves).
      adjoint: Aᵀ, f[B, *M] -> f[B, *S]. For rows that are not orthonormal, the pseudo-inverse A⁺ does.
      reference: f[B, *S], or f[1, *S] for all images; only A of it matters. Of a measurement y alone, adjoint(y).

    Returns:
      An edit. `measure` and `adjoint` are functions, compared by identity, or pytrees (`jax.tree_util.Partial`).

    Raises:
      TypeError: reference is not of a float dtype.
      ValueError: tried on random pictures, measure and adjoint are not such a pair; or what they give is complex (stack
        real and imaginary parts) or not finite.

    Example:
      The sum of neighbours is known, their difference is not.

      >>> measure = lambda x: (x[:, :1] + x[:, 1:]) / 2**0.5
      >>> adjoint = lambda y: jnp.concatenate([y, y], axis=1) / 2**0.5
      >>> edit = consistent(measure, adjoint, jnp.array([[0.5, 0.0]]))
      >>> [round(float(x), 4) for x in edit(jnp.array([[0.5, -0.5]]))[0]]
      [0.75, -0.25]

    References:
      Song et al. 2023, algorithm 4, for orthogonal A: its other rows drop out.
    """
    reference = _measured("reference", reference)
    measure, adjoint = Partial(measure), Partial(adjoint)
    with jax.default_matmul_precision("highest"):
        if not is_traced((measure, adjoint)):
            with jax.ensure_compile_time_eval():
                _check_projection(measure, adjoint, reference.shape)
        measured = measure(reference)
    if not is_traced(measured) and not bool(jnp.isfinite(measured).all()):
        raise ValueError("measure(reference) must be finite, but it holds NaN or infinity.")
    return Consistent(measure, adjoint, f32(measured))


def _check_projection(measure: Callable, adjoint: Callable, shape: tuple[int, ...]) -> None:
    """Try A A⁺ y = y, and <A⁺ A u, v> = <u, A⁺ A v>, by which nothing is moved that was not measured."""
    u, v = (jnp.asarray(z, jnp.float32) for z in np.random.default_rng(0).standard_normal((2, *shape)))
    y = measure(u)
    _check_real("measure", y)
    if not y.size:
        raise ValueError(f"measure must measure something, but of shape {shape} it gives shape {y.shape}.")
    back = adjoint(y)
    _check_real("adjoint", back)
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


def _check_real(name: str, value: Any) -> None:
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = f"a {type(value).__name__}" if dtype is None else f"{dtype}"
        raise ValueError(f"{name} must give a float array, got {got}: stack real and imaginary parts of a transform.")


# ---- together --------------------------------------------------------------------------------------------------------


class Chain(Struct):
    """Several edits, one after another; see `chain`."""

    edits: tuple[Edit, ...]

    def __call__(self, x0: Array) -> Array:
        """Apply every edit, f32[B, *S]."""
        for edit in self.edits:
            x0 = edit(x0)
        return x0


def chain(*edits: Edit) -> Chain:
    """Apply several edits, the first first.

    Args:
      *edits: x0 -> x0 each, callable pytrees. What the last one keeps is kept exactly; what others keep, only if those
        after them do not touch it.

    Returns:
      An edit.

    Example:
      >>> photo, left, right = jnp.array([[0.1, 0.2]]), jnp.array([[True, False]]), jnp.array([[False, True]])
      >>> chain(inpaint(photo, left), inpaint(photo, right))(jnp.zeros((1, 2)))
      Array([[0.1, 0.2]], dtype=float32)
    """
    return Chain(edits)


def known(edit: Edit, shape: tuple[int, ...]) -> Array:
    """Show what an edit knows, and nothing else: where to start from. It is the edit of a picture of zeros.

    Args:
      edit: x0 -> x0.
      shape: (B, *S).

    Returns:
      f32[B, *S]: holes are 0, colours are along the weights, blocks are flat. Noised to the path's first level it is
      where the paper's editing starts: `x = cmjax.add_noise(state, known(edit, shape), key)`.

    Example:
      >>> known(inpaint(jnp.array([[0.5, 0.2]]), jnp.array([[False, True]])), (1, 2))
      Array([[0.5, 0. ]], dtype=float32)

    References:
      Song et al. 2023, algorithm 4, lines 1 and 2.
    """
    return f32(edit(jnp.zeros(shape, jnp.float32)))


# ---- checks ----------------------------------------------------------------------------------------------------------


def _measured(name: str, value: ArrayLike) -> Array:
    refuse_integers(name, value)
    return f32(value)


_ON_ANOTHER_SCALE = ": clip it, scale it (x / 127.5 - 1), or, for latents, give bounds=None"


def _check_bounds(
    name: str, value: Any, bounds: Bounds, *, free: Array | None = None, remedy: str = _ON_ANOTHER_SCALE
) -> None:
    """Refuse what is on another scale, but where it is free. Rounding may go beyond by a thousandth of the range.

    On the host, so that it works under `jit` too, for arrays that are not traced.
    """
    if bounds is None or is_traced((value, free)) or not getattr(value, "is_fully_addressable", True):
        return
    found = np.asarray(value, np.float32)
    if free is not None:
        found = np.where(free, np.float32(0), found)
    if not found.size:
        return
    if wrong := int(np.isnan(found).sum()):
        raise ValueError(f"{name} holds NaN in {wrong} of {found.size} values.")
    lowest, highest = bounds
    room = 1e-3 * (highest - lowest)
    least, most = found.min(), found.max()
    if not lowest - room <= least <= most <= highest + room:
        raise ValueError(f"{name} must lie in [{lowest:g}, {highest:g}], got {least:.4g} ... {most:.4g}{remedy}.")


def _mask(name: str, mask: Array, reference: Array) -> Array:
    """Give a mask all of the reference's axes; its batch may be longer than a single reference."""
    full = mask.reshape((1,) * (reference.ndim - mask.ndim) + mask.shape)
    fits = full.ndim == reference.ndim and all(
        m in (1, r) or (axis == 0 and r == 1)
        for axis, (m, r) in enumerate(zip(full.shape, reference.shape, strict=True))
    )
    if not fits:
        without = mask.shape in (reference.shape[:-1], reference.shape[1:-1])
        remedy = f"a mask without channels needs {name}[..., None]" if without else "axes must be equal or 1"
        raise ValueError(f"{name} has shape {mask.shape} for reference of shape {reference.shape}; {remedy}.")
    return full


def _check_shape(name: str, value: Any, x0: Array) -> None:
    """Refuse, when the loop is traced, what does not broadcast to x0 itself."""
    fits = value.ndim == x0.ndim and all(v in (1, n) for v, n in zip(value.shape, x0.shape, strict=True))
    if not fits:
        remedy = (
            f"give it a batch axis, {name}[None]" if value.ndim + 1 == x0.ndim else "one for all images, or one each"
        )
        raise ValueError(f"{name} has shape {value.shape} where {x0.shape} is needed: {remedy}.")
