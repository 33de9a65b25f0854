"""Layers whose kernels are frozen and change by the factors of LoRAs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import expand_like, f32
from cmjax.models.layers import Conv, Linear, PixelLinear, apply_in_parts
from cmjax.models.layers.on_cpu import Padding, convolve, convolve_doubled
from cmjax.models.lora.factors import Factors, Product
from cmjax.models.network import Network, from_nnx
from cmjax.types import Array

__all__ = ["Factor", "attach", "attached", "detach", "kernels", "pixel_layers"]

Apply = Callable[[Array, Array], Array]
Ends = tuple[Apply, Apply]  # how a product of factors applies `down` to x, and then `up` to the result


class Factor(nnx.Variable):
    """Factors of a LoRA, which are what is trained of a network that has them."""


class Setting(nnx.Variable):
    """A number of a LoRA that is not trained: its alpha and its scale."""


class Change(nnx.Module):
    """One LoRA at one layer."""

    def __init__(self, factors: Factors, scale: Array):
        self.form = Factor(factors.form)
        self.magnitude = None if factors.magnitude is None else Factor(factors.magnitude)
        self.alpha = Setting(factors.alpha)
        self.scale = Setting(scale)

    @property
    def factors(self) -> Factors:
        """The factors as they were given."""
        magnitude = None if self.magnitude is None else self.magnitude.get_value()
        return Factors(self.form.get_value(), self.alpha.get_value(), magnitude)

    @property
    def is_plain(self) -> bool:
        """Whether it is a product of factors alone, whose change does not depend on the kernel."""
        return isinstance(self.form.get_value(), Product) and self.magnitude is None

    def adds_within(self, kernel: Array, pixels: int) -> bool:
        """Whether to add the change to the kernel: where all images share it, and it is less work than two layers."""
        form, is_shared = self.form.get_value(), self.scale.get_value().ndim == 0
        if not self.is_plain:
            return is_shared
        numbers = form.down.size + form.up.size + (0 if form.mid is None else form.mid.size)
        return is_shared and kernel.size * form.rank < pixels * numbers

    def within(self, kernel: Array) -> Array:
        """The change of the kernel, f32."""
        return f32(self.scale.get_value()) * self.factors.delta(kernel)

    def beside(self, x: Array, kernel: Array, apply: Apply, ends: Ends) -> Array:
        """The change of the layer's output, for x f[B, ..., c_in]."""
        factors, scale = self.factors, f32(self.scale.get_value())
        if self.is_plain:
            return _beside(x, factors, scale, ends)
        y = apply(x, factors.delta(kernel).astype(x.dtype))
        return (expand_like(_each(scale, x.shape[0]), y) * f32(y)).astype(x.dtype)


def _beside(x: Array, factors: Factors, scale: Array, ends: Ends) -> Array:
    """The change of a layer's output by a product of factors, without a whole kernel."""
    form, dtype = factors.form, x.dtype
    assert isinstance(form, Product)
    down, mid = form.down.astype(dtype), form.mid
    first, last = ends
    h = first(x, down) if mid is None else first(x @ down, mid.astype(dtype))
    y = last(h, form.up.astype(dtype))
    return (expand_like(_each(f32(scale) * factors.gain, x.shape[0]), y) * f32(y)).astype(dtype)


def _layer_of(apply: Apply, ends: Ends | None = None) -> Callable[[Array, Array, list[tuple[Factors, Array]]], Array]:
    """A layer that adds products of factors to its kernel, and takes their derivatives beside it.

    To add is the least work forward. Backward it would make the gradient of a whole kernel, as much work as the layer,
    only to multiply it by small factors: with the change beside the kernel, gradients of factors need none.
    """
    first_and_last = (apply, jnp.matmul) if ends is None else ends

    def added(x: Array, kernel: Array, changes: list[tuple[Factors, Array]]) -> Array:
        return (f32(kernel) + sum(f32(scale) * factors.delta(kernel) for factors, scale in changes)).astype(x.dtype)

    @jax.custom_jvp
    def layer(x: Array, kernel: Array, changes: list[tuple[Factors, Array]]) -> Array:
        return apply(x, added(x, kernel, changes))

    def rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (x, kernel, changes), (dx, dkernel, dchanges) = primals, tangents
        now = added(x, kernel, changes)
        y = layer(x, kernel, changes)  # by this rule too, if it is differentiated again: a loss may hold a derivative
        tangent = jnp.zeros_like(y)
        if not _is_zero(dx):
            tangent = tangent + apply(dx, now)
        if not _is_zero(dkernel):
            tangent = tangent + apply(x, dkernel.astype(x.dtype))
        if not all(map(_is_zero, jax.tree.leaves(dchanges, is_leaf=_is_zero))):
            dchanges = jax.tree.map(_number, dchanges, is_leaf=_is_zero)
            beside = lambda changes: sum(_beside(x, f, s, first_and_last) for f, s in changes)  # noqa: E731
            tangent = tangent + jax.jvp(beside, (changes,), (dchanges,))[1]
        return y, tangent

    layer.defjvp(rule, symbolic_zeros=True)
    return layer


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _number(tangent: Any) -> Array:
    return jnp.zeros(tangent.shape, tangent.dtype) if _is_zero(tangent) else tangent


def _each(scale: Array, rows: int) -> Array:
    """Give each row its image's scale; guidance has two rows an image, side by side."""
    if scale.ndim == 0 or scale.shape[0] == 1:
        return scale.reshape(())
    if rows % scale.shape[0]:
        raise ValueError(
            f"a LoRA has one scale for each of {scale.shape[0]} images, but the network was called with {rows}: give "
            "as many images, or one scale for all."
        )
    return jnp.repeat(scale, rows // scale.shape[0])


class _Adapted:
    """A layer with changes; its own kernel and bias keep their names."""

    changes: nnx.List
    kernel: Any
    bias: Any
    dtype: Any

    def _changed(self, x: Array, apply: Apply, ends: Ends | None = None) -> Array:
        ends = (apply, jnp.matmul) if ends is None else ends
        x, kernel = x.astype(self.dtype), self.kernel[...]
        pixels = math.prod(x.shape[:-1])
        within = [change for change in self.changes if change.adds_within(kernel, pixels)]
        plain = [change for change in within if change.is_plain]
        now = kernel
        if len(within) > len(plain):
            now = f32(kernel) + sum(change.within(kernel) for change in within if change not in plain)
        if plain:
            parts = [(change.factors, change.scale.get_value()) for change in plain]
            y = _layer_of(apply, ends)(x, now, parts)
        else:
            y = apply(x, now.astype(self.dtype))
        for change in self.changes:
            if change not in within:
                y = y + change.beside(x, kernel, apply, ends)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype).reshape(y.shape[x.ndim - 1 :])


class AdaptedLinear(_Adapted, Linear):
    """A linear layer with changes."""

    def __call__(self, x: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._changed(x, jnp.matmul)

    def in_parts(self, x: Array, parts: int) -> Array:
        apply = functools.partial(apply_in_parts, parts=parts)
        return self._changed(x, apply, (jnp.matmul, apply))


class AdaptedPixelLinear(AdaptedLinear):
    """A linear layer over pixels with changes."""

    layout = PixelLinear.layout


class AdaptedConv(_Adapted, Conv):
    """A convolution with changes."""

    def __call__(self, x: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        def apply(x: Array, kernel: Array) -> Array:
            return convolve(x, kernel, _pair(self.strides), cast(Padding, self.padding))

        return self._changed(x, apply)

    def doubled(self, x: Array) -> Array:
        return self._changed(x, convolve_doubled)


_OF_PIXELS = (PixelLinear, AdaptedPixelLinear)
_ADAPTED = {Linear: AdaptedLinear, PixelLinear: AdaptedPixelLinear, Conv: AdaptedConv}


def _pair(strides: Any) -> tuple[int, int]:
    return (strides, strides) if isinstance(strides, int) else tuple(strides)


# ---- networks --------------------------------------------------------------------------------------------------------


def kernels(network: Network) -> dict[str, tuple[int, ...]]:
    """The shapes of all kernels that a LoRA can change, by the names of their layers."""
    return {
        name.removesuffix(".kernel"): leaf.shape for name, leaf in network.leaves().items() if name.endswith(".kernel")
    }


def pixel_layers(network: Network) -> frozenset[str]:
    """The linear layers that files hold as 1x1 convolutions, by their names."""
    modules = nnx.iter_modules(network.module)
    return frozenset(".".join(map(str, path)) for path, one in modules if isinstance(one, _OF_PIXELS))


def attach(network: Network, factors: Mapping[str, Factors], scale: Array) -> Network:
    """Give a network's layers factors beside their frozen kernels.

    Args:
      network: whose layers are those of `cmjax.models.layers`. It may have LoRAs already.
      factors: by the names of layers, each fitted to its kernel.
      scale: f[], or f[B] for one an image.

    Returns:
      The network. Its factors alone are parameters (`partition`); kernels keep their names and their arrays.
    """
    module = network.module
    for name, one in factors.items():
        layer, put = _layer(module, name)
        if type(layer) in _ADAPTED:
            adapted = _turned(layer, _ADAPTED[type(layer)])
            adapted.changes = nnx.List([Change(one, scale)])
            put(adapted)
        else:
            layer.changes.append(Change(one, scale))
    return from_nnx(module, trained=Factor)


def attached(network: Network) -> list[dict[str, tuple[Factors, Array]]]:
    """The LoRAs that a network has, first to last: factors and scales by the names of layers."""
    found: list[dict[str, tuple[Factors, Array]]] = []
    for name, layer in _adapted(network.module):
        for i, change in enumerate(layer.changes):
            found += [{}] if i == len(found) else []
            factors = change.factors.replace(of_pixels=isinstance(layer, _OF_PIXELS))
            found[i][name] = (factors, change.scale.get_value())
    return found


def detach(network: Network) -> Network:
    """The network without LoRAs."""
    module = network.module
    bare = {adapted: layer for layer, adapted in _ADAPTED.items()}
    for name, layer in _adapted(module):
        _layer(module, name)[1](_turned(layer, bare[type(layer)]))
    return from_nnx(module)


def _adapted(module: Any) -> list[tuple[str, Any]]:
    layers = [(".".join(map(str, path)), one) for path, one in nnx.iter_modules(module) if isinstance(one, _Adapted)]
    return sorted(layers)


def _turned(layer: Any, kind: type) -> Any:
    """The same layer as one of another class, without changes; it shares the arrays."""
    turned = object.__new__(kind)
    vars(turned).update(vars(layer))
    if isinstance(layer, _Adapted):
        del turned.changes
    return turned


def _layer(module: Any, name: str) -> tuple[Any, Callable[[Any], None]]:
    """Find a layer by its name, and a function that puts another in its place."""
    *path, last = name.split(".")
    parent = module
    for word in path:
        parent = parent[int(word)] if word.isdecimal() else getattr(parent, word)
    if last.isdecimal():
        return parent[int(last)], lambda layer: parent.__setitem__(int(last), layer)
    return getattr(parent, last), lambda layer: setattr(parent, last, layer)
