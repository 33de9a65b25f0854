"""One large model over several devices: which part of each weight a device holds."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cmjax.models.layers import Division
from cmjax.models.network import Network

__all__ = ["tensor_sharding"]

ModelT = TypeVar("ModelT")

_OUT = ("kernel", "bias", "scale", "up")  # leaves with an axis of the channels that come out: the last
_IN = ("kernel", "down")  # leaves with an axis of the channels that go in: the last but one
_NUMBERS = ("alpha", "scale")  # of a LoRA


def tensor_sharding(model: ModelT, mesh: Mesh, axis: str = "model") -> ModelT:
    """Say where the weights of a model go so that the devices of one axis share the work on each picture.

    Within each attention, feed-forward layer and residual block the first layers are divided by the channels that come
    out (attention by heads), and the last one by the channels that go in: the devices add their sums once for each.
    Convolutions that halve or double a picture are divided by the channels that come out. All other weights are on
    every device, and so is a module whose heads (or groups of a norm, or channels) the number of devices does not
    divide: 10 heads divide among 2 devices, not among 4. The first layer of a gated feed-forward layer is on every
    device too, and each device computes its part of the output: a part of the weights would hold channels without their
    gates. Factors of a LoRA go where the kernel beside them goes.

    The values stay as they are: `jax.device_put` places the weights by what this returns, or `jax.jit` takes it in
    `in_shardings`, and the compiler divides the program. Call the model within `jax.set_mesh(mesh)`, which lets the
    layers say where sums must meet; without it the numbers are the same, but the devices send more. The other axes of
    the mesh are free, such as for the batch.

    Args:
      model: a network of this library, or any pytree that holds some, with weights or abstract.
      mesh: the devices; its axes are of type Auto.
      axis: the axis of the mesh that divides the weights.

    Returns:
      The model with a `NamedSharding` in the place of each leaf.

    Raises:
      ValueError: the mesh has no such axis, or one that is not of type Auto; or no network in the model has layers that
        this function divides.

    Example:
      >>> import cmjax, jax
      >>> from jax.sharding import AxisType
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
      >>> network, _ = cmjax.load("fashion-mnist-cm", abstract=True)
      >>> where = tensor_sharding(network, mesh).leaves()
      >>> [tuple(where[f"mid_block.resnets.0.{name}.kernel"].spec) for name in ("conv1", "conv2")]
      [(None, None, None, 'model'), (None, None, 'model', None)]

    References:
      Shoeybi et al., Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism, 2019,
      section 3.
    """
    if axis not in mesh.axis_names:
        raise ValueError(f"axis must be one of the mesh's, {', '.join(map(repr, mesh.axis_names))}, got {axis!r}.")
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"mesh must have axes of type Auto, so that the compiler divides the program, got {mesh.axis_types}: "
            f"make it with jax.make_mesh(..., axis_types=(AxisType.Auto,) * {len(mesh.axis_names)})."
        )
    has_some = False

    def placed(part: Any) -> Any:
        nonlocal has_some
        if not isinstance(part, Network):
            return NamedSharding(mesh, P())
        divided, found = _divided(part.module, mesh.shape[axis])
        has_some = has_some or found
        specs = [_spec(name, leaf, divided, axis) for name, leaf in part.leaves().items()]
        return jax.tree.unflatten(jax.tree.structure(part), [NamedSharding(mesh, spec) for spec in specs])

    where = jax.tree.map(placed, model, is_leaf=lambda node: isinstance(node, Network))
    if not has_some:
        raise ValueError(
            "tensor_sharding needs a network with layers that it divides, such as cmjax.load returns, and found none: "
            "wrap a module of this library in models.from_nnx; for a module of your own, choose the sharding of each "
            "weight by its name and shape."
        )
    return where


def _divided(module: Any, parts: int) -> tuple[dict[str, str], bool]:
    """Map names of layers to how they divide, "columns" or "rows"; and say whether any module has a `Division`."""
    divided, found = {}, False
    for path, one in nnx.iter_modules(module) if isinstance(module, nnx.Module) else ():
        division = getattr(one, "division", None)
        if not isinstance(division, Division):
            continue
        found = True
        if division.units(one) % parts == 0:
            for kind, names in (("columns", division.columns), ("rows", division.rows)):
                divided |= {".".join([*map(str, path), name]): kind for name in names}
    return divided, found


def _spec(name: str, leaf: Any, divided: dict[str, str], axis: str) -> P:
    """Choose the axis of one leaf that is divided, if any."""
    words = name.split(".")
    ends = [end for end in range(len(words), 0, -1) if ".".join(words[:end]) in divided]
    if not ends:
        return P()
    rest, kind = words[ends[0] :], divided[".".join(words[: ends[0]])]
    of_lora = rest[0] == "changes"
    if of_lora and (rest[-1] in _NUMBERS or "outer" in rest or "inner" in rest):  # a Kronecker product mixes channels
        return P()
    last: str = rest[-1]
    if last == "magnitude":
        last = "up" if leaf.ndim == 1 else "down"  # f[c_out], or f[c_in, 1]
    spec: list[str | None] = [None] * leaf.ndim
    if kind == "columns" and last in _OUT:
        spec[-1] = axis
    elif kind == "rows" and last in _IN:
        spec[-2] = axis
    return P(*spec)
