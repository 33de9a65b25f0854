"""Reading a program that was lowered for a TPU: its operations, its bytes, its kernels, its transposes.

Calls count each time, and loops as often as they run. What Pallas' kernel for attention does inside its custom call is
counted by formula.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["Counted", "count", "live_bytes", "lower"]

LANES, ROWS = 128, 8  # of a tile of a TPU's matrix unit and memory
BITS = {"i1": 8, "i8": 8, "ui8": 8, "bf16": 16, "f16": 16, "i32": 32, "ui32": 32, "f32": 32, "i64": 64, "ui64": 64}


@dataclasses.dataclass
class Counted:
    """What one call of a program does.

    Attributes:
        flop: two for each multiplication of convolutions, matrix products and attention.
        padded: the same, where the channels of each product are filled up to tiles of 128.
        bytes: in and out of every convolution, matrix product, attention and sum.
        kernels: how often Pallas' kernel runs, by the shapes of queries and keys.
        transposes: how often, by the order of axes.
        loops: how often each loop runs, outer ones first.
    """

    flop: int = 0
    padded: int = 0
    bytes: int = 0
    kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    transposes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    loops: list[int] = dataclasses.field(default_factory=list)


def lower(function: Any, *given: Any) -> Any:
    """Lower a function of arrays without numbers for a TPU; the module, and its jaxpr."""
    import jax

    traced = jax.jit(function).trace(*given)
    return traced.lower(lowering_platforms=("tpu",)).compiler_ir("stablehlo"), traced.jaxpr.jaxpr


def count(module: Any) -> Counted:
    """Read a module in the dialect StableHLO."""
    functions = {str(op.attributes["sym_name"]).strip('"'): op for op in module.body.operations if _is(op, "func.func")}
    found = Counted()
    for op, times in _walk(functions["main"], 1, functions, found):
        _add(op, times, found)
    return found


def _is(op: Any, name: str) -> bool:
    return op.operation.name == name


def _walk(op: Any, times: int, functions: dict[str, Any], found: Counted) -> Iterator[tuple[Any, int]]:
    """All operations within one, each with how often it runs."""
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                if _is(inner, "func.call"):
                    yield from _walk(functions[str(inner.attributes["callee"]).strip('@"')], times, functions, found)
                elif _is(inner, "stablehlo.while"):
                    trips = _trips(inner)
                    found.loops.append(trips)
                    yield from _walk(inner, times * trips, functions, found)
                elif _is(inner, "stablehlo.reduce") or not len(inner.regions):
                    yield inner, times
                else:
                    yield from _walk(inner, times, functions, found)


def _trips(loop: Any) -> int:
    """How often a loop from 0 runs: what its condition compares with."""
    (block,) = loop.regions[0].blocks
    compared = [op for op in block.operations if _is(op, "stablehlo.compare")]
    limit = compared[0].operands[1]
    if not hasattr(limit.owner, "attributes"):  # an argument of the block: what the loop was given there
        limit = loop.operands[limit.arg_number]
    return int(re.search(r"dense<(\d+)>", str(limit.owner.attributes["value"]))[1])


def _shape(value: Any) -> list[int]:
    from jaxlib.mlir import ir

    return list(ir.RankedTensorType(value.type).shape)


def _bytes(value: Any) -> int:
    dtype = str(value.type).removeprefix("tensor<").removesuffix(">").split("x")[-1]
    return math.prod(_shape(value)) * BITS.get(dtype, 32) // 8


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def _add(op: Any, times: int, found: Counted) -> None:
    name = op.operation.name
    if name == "stablehlo.transpose":
        order = str(op.attributes["permutation"]).removeprefix("array<i64: ").removesuffix(">")
        found.transposes[order] += times
        return
    if name == "stablehlo.convolution":
        *window, c_in, c_out = _shape(op.operands[1])
        rows, around = math.prod(_shape(op.results[0])[:-1]), math.prod(window)
        flop, padded = rows * around * c_in * c_out, _up(rows, ROWS) * around * _up(c_in, LANES) * _up(c_out, LANES)
    elif name == "stablehlo.dot_general":
        flop, padded = _product(op)
    elif name == "stablehlo.custom_call" and "tpu_custom_call" in str(op.attributes["call_target_name"]):
        return _attention(op, times, found)
    elif name == "stablehlo.reduce":
        flop = padded = 0
    else:
        return
    found.flop += 2 * times * flop
    found.padded += 2 * times * padded
    found.bytes += times * sum(map(_bytes, [*op.operands, *op.results]))


def _product(op: Any) -> tuple[int, int]:
    said = str(op.attributes["dot_dimension_numbers"])

    def axes(name: str, side: str) -> list[int]:
        listed = re.search(rf"{side}_{name}_dimensions = \[([\d, ]*)\]", said)
        return [int(one) for one in listed[1].split(",")] if listed else []

    left, right = map(_shape, op.operands)
    batch, inner = axes("batching", "lhs"), axes("contracting", "lhs")
    together, summed = (math.prod(left[axis] for axis in some) for some in (batch, inner))
    rows = math.prod(left) // (together * summed)
    columns = math.prod(right) // (together * summed)
    return together * rows * summed * columns, together * _up(rows, ROWS) * _up(summed, LANES) * _up(columns, LANES)


def _attention(op: Any, times: int, found: Counted) -> None:
    """Pallas' flash attention: two products a logit; keys and values are read once for each tile of queries."""
    q, k = (_shape(value) for value in list(op.operands)[:2])
    if len(q) != 4 or len(k) != 4:
        raise ValueError(f"a kernel that is no attention: {op.operation.name}, {q}, {k}")
    logits, width = math.prod(q[:3]) * k[2], q[3]
    found.flop += 4 * times * logits * width
    found.padded += 4 * times * logits * _up(width, LANES)
    tiles = q[2] // (512 if q[2] % 512 == 0 and width <= LANES else LANES)  # as `long_attention._flash` chooses
    q_bytes, k_bytes, v_bytes = map(_bytes, list(op.operands)[:3])
    found.bytes += times * (2 * q_bytes + tiles * (k_bytes + v_bytes))
    found.kernels[f"{'x'.join(map(str, q))} to {k[2]}"] += times


# ---- temporaries -----------------------------------------------------------------------------------------------------


def live_bytes(jaxpr: Any) -> int:
    """The most bytes that are held at one moment beside arguments, if each array of a traced program is stored.

    Arrays are made in the program's order and dropped after their last use. A compiler fuses chains of sums and
    products, of which it stores the end alone: it holds less, unless it copies.
    """
    from training_memory import bytes_of

    last: dict[int, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        last.update({id(var): number for var in equation.invars if not hasattr(var, "val")})
    last.update({id(var): len(jaxpr.eqns) for var in jaxpr.outvars})
    given = {id(var) for var in (*jaxpr.invars, *jaxpr.constvars)}
    held = most = 0
    sizes: dict[int, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        inner = max((live_bytes(one) for one in _inner(equation)), default=0)
        outs = {id(var): bytes_of(var.aval) for var in equation.outvars if id(var) in last}
        most = max(most, held + max(inner, sum(outs.values())))
        sizes |= outs
        held += sum(outs.values())
        for var in {id(var) for var in equation.invars if not hasattr(var, "val")} - given:
            held -= sizes.pop(var, 0) if last[var] == number else 0
    return most


def _inner(equation: Any) -> list[Any]:
    if equation.primitive.name == "attend_long":
        return []
    from jax.extend.core import jaxprs_in_params

    return list(jaxprs_in_params(equation.params))
