"""Compile a whole call once: arrays are arguments, and everything else decides which program runs."""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from cmjax._numerics import is_traced

__all__ = ["call_compiled"]

_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)  # a jax.tree_util.Partial is a partial too
_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def call_compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call function(*arguments) as under `jax.jit`, in a program that is kept for the next call.

    Arrays and Python floats are arguments of the program. All other leaves are static: functions by identity, the rest
    by value. A function that is replaced, or that reads a variable that was assigned anew, makes a new program.

    The function is called as it is, without a program that is kept, in these cases: JAX is already tracing; a static
    leaf cannot be hashed; a function reads a Flax NNX module, whose weights can change in place; or a function needs
    the value of an argument in Python.

    Args:
      function: pure, and the same object at each call.
      *arguments: pytrees.

    Returns:
      What the function returns.

    Example:
      >>> f = lambda g, x: g(x)
      >>> call_compiled(f, jax.numpy.square, 3.0)
      Array(9., dtype=float32, weak_type=True)
    """
    if _trace_state() != _NO_TRACE or is_traced(arguments):
        return function(*arguments)
    leaves, tree = jax.tree.flatten(arguments)
    is_argument = [_is_argument(leaf) for leaf in leaves]
    try:
        program = _Program(function, tree, [None if a else v for v, a in zip(leaves, is_argument, strict=True)])
        program.read = _read_by(_functions(arguments))
        hash(program)
    except (TypeError, _MutableError):
        return function(*arguments)
    try:
        return _run(program, [leaf for leaf, a in zip(leaves, is_argument, strict=True) if a], tuple(is_argument))
    except _NEEDS_VALUES:
        return function(*arguments)


class _Program:
    """What decides which program runs. It keeps what it compares by identity alive, so that no id is used twice."""

    def __init__(self, function: Callable[..., Any], tree: Any, statics: list[Any]):
        self.function, self.tree, self.statics, self.read = function, tree, statics, ()

    def _parts(self) -> Any:
        statics = tuple((type(leaf), leaf) for leaf in self.statics)  # 1 and True are equal
        return self.function, self.tree, statics, tuple(map(id, self.read))

    def __hash__(self) -> int:
        return hash(self._parts())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Program) and self._parts() == other._parts()


@functools.partial(jax.jit, static_argnums=(0, 2))
def _run(program: _Program, arrays: list[Any], is_argument: tuple[bool, ...]) -> Any:
    given = iter(arrays)
    leaves = [next(given) if a else leaf for leaf, a in zip(program.statics, is_argument, strict=True)]
    return program.function(*jax.tree.unflatten(program.tree, leaves))


def _is_argument(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc" or jnp.issubdtype(leaf.dtype, jnp.floating)
    return isinstance(leaf, jax.Array | float | complex)


# ---- what functions read ---------------------------------------------------------------------------------------------


class _MutableError(Exception):
    """A function reads what can change without a trace: a Flax NNX module, or a value of a JAX transformation."""


def _is_code(value: Any) -> bool:
    return isinstance(value, _FUNCTIONS) or _is_mutable(value)


def _functions(arguments: Any) -> list[Any]:
    """List all functions in a pytree, and those that a `jax.tree_util.Partial` calls, whose arguments are leaves."""
    found = []
    for leaf in jax.tree.leaves(arguments, is_leaf=_is_code):
        if isinstance(leaf, jax.tree_util.Partial):
            found += [leaf.func, *_functions((leaf.args, leaf.keywords))]
        elif _is_mutable(leaf) or (callable(leaf) and not isinstance(leaf, type)):
            found.append(leaf)
    return found


def _read_by(functions: list[Any]) -> tuple[Any, ...]:
    """List the values that functions read from around them, and that those functions read in turn."""
    read, seen, waiting = [], set(), list(functions)
    given = set(map(id, functions))  # they are compared as leaves already
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, list | dict):  # such as weights by name; but a list that counts calls may grow
            _refuse_mutable(*(leaves := jax.tree.leaves(value, is_leaf=_is_mutable)))
            waiting += [leaf for leaf in leaves if isinstance(leaf, jax.Array) and not is_traced(leaf)]
        elif is_traced(value):
            raise _MutableError
        _refuse_mutable(value)
        if id(value) not in given and not isinstance(value, types.MethodType):  # of which each access makes another
            read.append(value)
        if isinstance(value, types.MethodType):
            waiting += [value.__self__, value.__func__]
        elif isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.FunctionType):
            waiting += _variables(value)
        elif isinstance(value, tuple):
            waiting += value
        elif isinstance(wrapped := getattr(value, "__wrapped__", None), types.FunctionType):  # as of jax.jit
            waiting.append(wrapped)
    return tuple(read)


def _variables(function: types.FunctionType) -> list[Any]:
    """The values of a function's closure and defaults, and of the globals of its program, which libraries' are not."""
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    if function.__module__ is None or function.__module__.split(".")[0] not in ("jax", "flax", "numpy", "cmjax"):
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            values += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
            codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return [value for value in values if not isinstance(value, types.ModuleType | type)]


def _is_mutable(value: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")  # without it there is no module of it
    return nnx is not None and isinstance(value, nnx.Module | nnx.Variable)


def _refuse_mutable(*values: Any) -> None:
    if any(map(_is_mutable, values)):
        raise _MutableError


# ---- whether JAX is tracing ------------------------------------------------------------------------------------------


def _trace_state() -> Any:
    return jax.extend.core.get_opaque_trace_state(convention="nnx")


def _state_of_a_fresh_thread() -> Any:
    """The state in which nothing is traced. This module may be imported while a function is traced; a thread is not."""
    states = []
    thread = threading.Thread(target=lambda: states.append(_trace_state()))
    thread.start()
    thread.join()
    return states[0]


_NO_TRACE = _state_of_a_fresh_thread()
