"""Attention whose logits would not fit: by the platform's kernel where there is one, else a few queries at a time.

4096 pixels of 8 heads have 512 MiB of float32 logits. Which kernel there is is known where a program is lowered, not
where it is traced: on a CPU a program may be lowered for TPU, and on a machine with a GPU one may be exported for
another. So long attention is a primitive, whose rules of lowering choose:

- on TPU Pallas' flash attention, where its tiles divide the sizes; not in a program that XLA divides among devices,
  which it cannot do with such a kernel (under `jax.shard_map(check_vma=False)` each device has its own);
- on GPU cuDNN's, in bfloat16 and float16; not in exported programs, since cuDNN's calls are no stable format;
- else, and everywhere for derivatives, chunks of queries, of which only the inputs are kept for a gradient.

References:
  Dao et al., FlashAttention, 2022; Rabe and Staats, Self-attention Does Not Need O(n^2) Memory, 2021.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from cmjax import _cpu
from cmjax.types import Array

__all__ = ["attend_long", "in_chunks", "is_long", "square"]

# From more logits a head than this (2048 x 2048), attention is long.
_LONG = 1 << 22
# Logits at a time: of one head on a CPU, whose cache they stay in (4 MiB); of all heads elsewhere (128 MiB).
_ON_CPU, _ELSEWHERE = 1 << 20, 1 << 25
_FEWEST = 64  # queries of a chunk, whatever the batch
_TILE, _WIDE_TILE = 128, 512  # of the TPU's kernel


def is_long(queries: int, keys: int) -> bool:
    """Whether the logits of one head are too many to be held at once."""
    return queries * keys > _LONG


def square(q: Array, k: Array, v: Array, *, causal: bool = False, first: Array | int = 0) -> Array:
    """Average values with all logits at once.

    Args:
      q: f[..., N, d].
      k: f[..., M, d].
      v: f[..., M, d].
      causal: whether query i attends to keys 0 ... i only.
      first: i of the first query.

    Returns:
      f[..., N, d] in the dtype of v; logits and softmax are float32.
    """
    logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if causal:
        seen = first + jnp.arange(q.shape[-2])[:, None] >= jnp.arange(k.shape[-2])
        logits = jnp.where(seen, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("...qk,...kd->...qd", weights, v)


def in_chunks(q: Array, k: Array, v: Array, *, causal: bool = False, most: float = _ELSEWHERE) -> Array:
    """Average values for a few queries at a time.

    Args:
      q: f[B, heads, N, d].
      k: f[B, heads, M, d].
      v: f[B, heads, M, d].
      causal: whether query i attends to keys 0 ... i only.
      most: how many logits are made at a time, as far as at least 64 queries allow it.

    Returns:
      f[B, heads, N, d] in the dtype of v.
    """
    batch, heads, num, width = q.shape
    batch = batch if isinstance(batch, int) else 1  # of any size (`jax.export`): then one picture decides
    most = min(most / (batch * heads), _LONG)  # of one head: a few heads make no large square either
    rows = max(_FEWEST, 1 << int(math.log2(max(most / k.shape[2], 1))))
    if rows >= num:
        return square(q, k, v, causal=causal)
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, -num % rows), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(*q.shape[:2], -1, rows, width), 2, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(chunk: tuple[Array, Array]) -> Array:
        return square(chunk[1], k, v, causal=causal, first=chunk[0])

    out = jax.lax.map(one, (rows * jnp.arange(len(chunks)), chunks))
    return jnp.moveaxis(out, 0, 2).reshape(padded.shape)[:, :, :num]


def _head_by_head(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    first = tuple(jnp.moveaxis(y, 1, 0)[:, :, None] for y in (q, k, v))  # the batch stays an axis: it may be sharded
    out = jax.lax.map(lambda head: in_chunks(*head, causal=causal, most=_ON_CPU), first)
    return jnp.moveaxis(out[:, :, 0], 0, 1)


def _anywhere(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """In chunks that suit the platform."""
    default = functools.partial(in_chunks, causal=causal)
    if not _cpu.WORKAROUNDS:
        return default(q, k, v)
    on_cpu = functools.partial(_head_by_head, causal=causal)
    return jax.lax.platform_dependent(q, k, v, cpu=on_cpu, default=default)


# ---- the primitive ---------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
@functools.partial(jax.jit, static_argnums=3)
def attend_long(q: Array, k: Array, v: Array, causal: bool = False) -> Array:
    """Average values by the platform's kernel or in chunks; derivatives of any order and mode are those of chunks.

    Args:
      q: f[B, heads, N, d].
      k: f[B, heads, M, d].
      v: f[B, heads, M, d].
      causal: whether query i attends to keys 0 ... i only.

    Returns:
      f[B, heads, N, d] in the dtype of v.
    """
    return _PRIMITIVE.bind(q, k, v, causal=causal)


@attend_long.defjvp
def _jvp(causal: bool, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    _, tangent = jax.jvp(functools.partial(_anywhere, causal=causal), primals, tangents)
    return attend_long(*primals, causal), tangent


_PRIMITIVE = Primitive("attend_long")
_PRIMITIVE.def_impl(_anywhere)


@_PRIMITIVE.def_abstract_eval
def _abstract(q: Any, k: Any, v: Any, *, causal: bool) -> Any:
    return q.update(dtype=v.dtype, weak_type=False)


def _batched(args: Sequence[Array], axes: Sequence[int | None], *, causal: bool) -> tuple[Array, int]:
    """A mapped axis joins the batch: the chunks are chosen for both."""
    size = next(y.shape[axis] for y, axis in zip(args, axes, strict=True) if axis is not None)
    joined = []
    for y, axis in zip(args, axes, strict=True):
        y = jnp.broadcast_to(y, (size, *y.shape)) if axis is None else jnp.moveaxis(y, axis, 0)
        joined.append(y.reshape(y.shape[0] * y.shape[1], *y.shape[2:]))
    out = _PRIMITIVE.bind(*joined, causal=causal)
    return out.reshape(size, -1, *out.shape[1:]), 0


batching.primitive_batchers[_PRIMITIVE] = _batched


def _lowered(function: Callable[..., Array], ctx: Any, *values: Any, causal: bool) -> Any:
    """Lower a function of arrays in the place of the primitive."""
    rule = mlir.lower_fun(functools.partial(function, causal=causal), multiple_results=False)
    plain = [type(aval)(aval.shape, aval.dtype) for aval in ctx.avals_in]  # as one device sees them
    return rule(ctx.replace(avals_in=plain), *values)


def _is_traced(function: Callable[..., Array], ctx: Any, causal: bool) -> bool:
    """Whether a kernel takes these sizes here: those that do not say so while they are traced."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in ctx.avals_in]
    try:
        jax.eval_shape(functools.partial(function, causal=causal), *shapes)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def _by_default(ctx: Any, *values: Any, causal: bool) -> Any:
    return _lowered(in_chunks, ctx, *values, causal=causal)


def _on_cpu(ctx: Any, *values: Any, causal: bool) -> Any:
    return _lowered(_head_by_head if _cpu.WORKAROUNDS else in_chunks, ctx, *values, causal=causal)


def _on_tpu(ctx: Any, *values: Any, causal: bool) -> Any:
    fits = _fits_flash(*ctx.avals_in) and _has_its_own_device(ctx) and _is_traced(_flash, ctx, causal)
    return _lowered(_flash if fits else in_chunks, ctx, *values, causal=causal)


def _on_cuda(ctx: Any, *values: Any, causal: bool) -> Any:
    here = jax.default_backend() == "gpu" and not _is_exported(ctx)
    fits = here and _fits_cudnn(*ctx.avals_in) and _is_traced(_cudnn, ctx, causal)
    return _lowered(_cudnn if fits else in_chunks, ctx, *values, causal=causal)


mlir.register_lowering(_PRIMITIVE, _by_default)
mlir.register_lowering(_PRIMITIVE, _on_cpu, platform="cpu")
mlir.register_lowering(_PRIMITIVE, _on_tpu, platform="tpu")
mlir.register_lowering(_PRIMITIVE, _on_cuda, platform="cuda")


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _fits_flash(q: Any, k: Any, v: Any) -> bool:
    batch, _, num, width = q.shape
    dtypes = {aval.dtype for aval in (q, k, v)}
    return (
        isinstance(batch, int)
        and num % _TILE == k.shape[2] % _TILE == 0
        and (width <= _TILE or width % _TILE == 0)
        and len(dtypes) == 1
        and dtypes <= {jnp.dtype("float32"), jnp.dtype("bfloat16")}
    )


def _flash(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    rows, columns = (
        _WIDE_TILE if size % _WIDE_TILE == 0 and q.shape[3] <= _TILE else _TILE for size in (q.shape[2], k.shape[2])
    )
    tiles = pallas.BlockSizes(block_q=rows, block_k_major=columns, block_k=columns, block_b=1)
    return pallas.flash_attention(q, k, v, causal=causal, sm_scale=q.shape[3] ** -0.5, block_sizes=tiles)


def _has_its_own_device(ctx: Any) -> bool:
    """Whether a device runs the program as it is: XLA divides no kernel of Pallas' among devices."""
    around = ctx.module_context.axis_context
    if hasattr(around, "manual_axes"):
        manual = set(around.manual_axes) | set(around.mesh.manual_axes)
        return manual == set(around.mesh.axis_names) or around.mesh.size == 1
    return getattr(around, "num_devices", None) == 1


def _fits_cudnn(q: Any, k: Any, v: Any) -> bool:
    dtypes = {aval.dtype for aval in (q, k, v)}
    fits = q.shape[3] % 8 == 0 and q.shape[3] <= 256 and isinstance(q.shape[0], int)
    return fits and len(dtypes) == 1 and dtypes <= {jnp.dtype("bfloat16"), jnp.dtype("float16")}


def _cudnn(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    q, k, v = (jnp.swapaxes(y, 1, 2) for y in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn"), 1, 2)


def _is_exported(ctx: Any) -> bool:
    return bool(getattr(ctx.module_context.lowering_parameters, "for_export", True))
