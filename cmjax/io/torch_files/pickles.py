"""Pickles read as data: the few opcodes that a dict of tensors is made of, and nothing that calls, imports or builds.

A pickle is a program for a small stack machine, and Python's own machine runs whatever function the program names. A
subclass of `pickle.Unpickler` can only choose what a name means; calling, building objects and setting attributes stay
in it. So the machine is written here afresh, which is safe for a reason that one can see: of the functions and types
that a file names, only those of a table are known (`_CALLS`, `_STORAGES`), each stands for a function of this file that
fills in a record, and there is no opcode that imports. Everything else is refused by its name.

The machine's work is bounded by the length of the pickle, which is bounded too (`LONGEST`): every opcode adds one thing
to the stack at most, keys of dicts are texts, numbers and names (hashing nested tuples may take forever), and what is
nested is never walked. Its memory is bounded by a count of what one byte can ask for: containers, and places in the
memo.

References:
  The comments of Python's pickletools.py, which describe the machine and every opcode.
"""

from __future__ import annotations

import dataclasses
import pickle  # for the names of its opcodes
import pickletools
import struct
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

__all__ = ["LONGEST", "ParameterDict", "Pickle", "Storage", "StridedTensor", "printable", "read_pickle"]

LONGEST = 1 << 21  # bytes; the pickle of a network of 10,000 tensors is shorter
_DEEPEST = 100
_MOST_OBJECTS = 200_000  # of containers, and of memo entries; 10,000 parameters take about 110,000 of each
_MOST_AXES = 32  # of a tensor
_OPCODES = {opcode.code: opcode.name for opcode in pickletools.opcodes}


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers that lies elsewhere in the file: their type, the name of the run, and how many there are."""

    dtype: np.dtype
    key: str
    numel: int


@dataclasses.dataclass(frozen=True, slots=True)
class StridedTensor:
    """A tensor as a view: element i lies at offset + sum(i * strides) of the storage, counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in bytes, when each element is counted."""
        size = self.storage.dtype.itemsize
        for n in self.shape:
            size *= n
        return size


@dataclasses.dataclass(slots=True)
class ParameterDict:
    """torch's module of that name, in which old embeddings of texts keep their tensors: what its `_parameters` hold."""

    parameters: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Note:
    """A number or text of a training run that is no tensor, such as NumPy's: that there is one, and nothing of it."""


class Pickle(NamedTuple):
    """What a pickle says: its value, the storages it names, and the position of the byte behind it."""

    value: Any
    storages: dict[str, Storage]
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Global:
    """A function or type that the pickle names, as its name."""

    name: str


def read_pickle(data: bytes, at: int = 0) -> Pickle:
    """Read one pickle as torch.save writes them.

    Args:
      data: the bytes that hold it.
      at: where in `data` it begins. It must end within the first `LONGEST` bytes of `data`.

    Returns:
      Its value, made of dicts, lists, tuples, texts, numbers, True, False, None, and the records `StridedTensor`,
      `ParameterDict` and `Storage`.

    Raises:
      ValueError: it is damaged, too long, makes too many things, or asks for anything that a dict of tensors does not
        need.

    Example:
      >>> import pickle
      >>> read_pickle(pickle.dumps({"steps": (1, 2.5, None)})).value
      {'steps': (1, 2.5, None)}
      >>> read_pickle(pickle.dumps(print))
      Traceback (most recent call last):
      ValueError: the file asks for builtins.print, which is not part of a tensor; nothing of it was run.
    """
    return _Machine(data, at).run()


def printable(text: str) -> str:
    """A text from a file, made fit for an error message: short, and without control characters."""
    return text[:80].encode("unicode_escape").decode("ascii")


class _Machine:
    """The stack machine. Values since the last mark are in `stack`, those before it in `below`."""

    def __init__(self, data: bytes, at: int):
        self.data, self.at, self.end = data, at, min(len(data), LONGEST)
        self.containers = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Pickle:
        while (op := self.take(1)) != pickle.STOP:
            self.execute(op)
        value = self.pop()
        if self.stack or self.below:
            raise ValueError("the pickle ends with values left over; the file is damaged.")
        return Pickle(value, self.storages, self.at)

    def execute(self, op: bytes) -> None:
        push = self.stack.append
        match op:
            # what fills a file, in this order: it is the order of the comparisons
            case pickle.BINPUT:
                self.keep(self.take(1)[0])
            case pickle.LONG_BINPUT:
                self.keep(self.number("<L"))
            case pickle.MEMOIZE:
                self.keep(len(self.memo))
            case pickle.BINGET:
                push(self.recall(self.take(1)[0]))
            case pickle.LONG_BINGET:
                push(self.recall(self.number("<L")))
            case pickle.BININT1:
                push(self.take(1)[0])
            case pickle.MARK:
                if len(self.below) == _DEEPEST:
                    raise ValueError(f"the pickle is nested more than {_DEEPEST} deep.")
                self.below.append(self.stack)
                self.stack = []
            case pickle.TUPLE:
                items = self.made(tuple(self.pop_mark()))
                self.stack.append(items)
            case pickle.BINUNICODE:
                push(self.text(self.number("<L")))
            case pickle.SHORT_BINUNICODE:
                push(self.text(self.take(1)[0]))
            case pickle.BINPERSID:
                push(self.made(self.storage(self.pop())))
            case pickle.REDUCE:
                args = self.pop()
                push(self.made(_call(self.pop(), args)))
            case pickle.BININT2:
                push(self.number("<H"))
            case pickle.BININT:
                push(self.number("<l"))
            case pickle.EMPTY_TUPLE:
                push(())
            case pickle.TUPLE1:
                push(self.made((self.pop(),)))
            case pickle.TUPLE2:
                last = self.pop()
                push(self.made((self.pop(), last)))
            case pickle.TUPLE3:
                last, middle = self.pop(), self.pop()
                push(self.made((self.pop(), middle, last)))
            case pickle.NEWFALSE:
                push(False)
            case pickle.NEWTRUE:
                push(True)
            case pickle.NONE:
                push(None)
            case pickle.EMPTY_DICT:
                push(self.made({}))
            case pickle.EMPTY_LIST:
                push(self.made([]))
            case pickle.SETITEM:
                value = self.pop()
                key = self.pop()
                self.fill([key, value])
            case pickle.SETITEMS:
                self.fill(self.pop_mark())
            case pickle.APPEND:
                value = self.pop()
                self.extend([value])
            case pickle.APPENDS:
                self.extend(self.pop_mark())
            case pickle.BUILD:  # the attributes of a state dict, such as its version numbers: checked, and dropped
                attributes, target = self.pop(), self.peek()
                if type(target) is _Note:
                    return
                if type(attributes) is not dict or type(target) not in (dict, ParameterDict):
                    raise ValueError("the file sets attributes of something that is no dict of tensors.")
                if type(target) is ParameterDict:
                    target.parameters = attributes.get("_parameters")
            case pickle.NEWOBJ if self.stack[-2:] == [_Global(_PARAMETER_DICT), ()]:
                del self.stack[-2:]
                push(self.made(ParameterDict()))
            case pickle.GLOBAL:
                module = self.line()
                push(_known(module, self.line()))
            case pickle.STACK_GLOBAL:
                name = self.pop()
                push(_known(self.pop(), name))
            case pickle.LONG1:
                push(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))
            case pickle.BINFLOAT:
                push(self.number(">d"))
            case pickle.BINUNICODE8:
                push(self.text(self.number("<Q")))
            case pickle.PROTO:
                self.take(1)
            case pickle.FRAME:
                self.take(8)
            case _:
                known = _OPCODES.get(op.decode("latin-1"))
                raise ValueError(
                    f"the file holds the pickle opcode {known}, which is not part of a dict of tensors; nothing of "
                    "it was run."
                    if known
                    else f"byte {self.at - 1} of the pickle, 0x{op.hex()}, is not an opcode; the file is damaged."
                )

    # bytes

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > self.end:
            raise ValueError(
                f"its pickle is longer than {LONGEST} bytes, more than any dict of tensors needs."
                if self.end < len(self.data)
                else "its pickle has no end; the file is damaged or truncated."
            )
        return self.data[start : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, size: int) -> str:
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("a text in its pickle is not UTF-8; the file is damaged.") from None

    def line(self) -> str:
        stop = self.data.find(b"\n", self.at, self.end)
        line = self.text(stop - self.at if stop >= 0 else self.end - self.at)
        self.take(1)
        return line

    # the stack

    def pop(self) -> Any:
        value = self.peek()
        del self.stack[-1]
        return value

    def peek(self) -> Any:
        if not self.stack:
            raise ValueError("the pickle takes a value where there is none; the file is damaged.")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise ValueError("the pickle goes back to a mark where there is none; the file is damaged.")
        items, self.stack = self.stack, self.below.pop()
        return items

    def recall(self, index: int) -> Any:
        if index not in self.memo:
            raise ValueError(f"the pickle recalls value {index}, which it has not kept; the file is damaged.")
        return self.memo[index]

    def keep(self, index: int) -> None:
        self.memo[index] = self.peek()
        self.check_count(len(self.memo))

    # containers and storages

    def made(self, container: Any) -> Any:
        self.containers += 1
        self.check_count(self.containers)
        return container

    def check_count(self, number: int) -> None:
        if number > _MOST_OBJECTS:
            raise ValueError(f"its pickle makes more than {_MOST_OBJECTS} things, more than any dict of tensors needs.")

    def fill(self, items: list[Any]) -> None:
        target = self.peek()
        if type(target) is not dict or len(items) % 2:
            raise ValueError("the pickle sets items of what is not a dict; the file is damaged.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int) and key not in _KEYS:
                raise ValueError(f"a key of a dict is a {type(key).__name__}; those of tensors are texts.")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        target = self.peek()
        if type(target) is not list:
            raise ValueError("the pickle appends to what is not a list; the file is damaged.")
        target.extend(items)

    def storage(self, told: Any) -> Storage | _Global:
        """Read ("storage", type, key, device, numel); files before torch 1.6 add None.

        Those also say of a module ("module", type, file, source), where newer ones have the type alone.
        """
        parts = told if type(told) is tuple else ()
        if len(parts) == 4 and parts[0] == "module" and parts[1] == _Global(_PARAMETER_DICT):
            return parts[1]
        if parts[5:] == (None,):
            parts = parts[:5]
        if len(parts) != 5 or parts[0] != "storage" or type(parts[2]) is not str or not _is_size(parts[4]):
            raise ValueError("the file refers to data in a form that torch.save does not write.")
        dtype = _STORAGES.get(parts[1].name) if type(parts[1]) is _Global else None
        if dtype is None:
            raise ValueError("the file refers to data without saying of which type.")
        storage = Storage(dtype, parts[2], parts[4])
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"the file refers to its data {printable(storage.key)} in two ways that disagree.")
        return storage


def _known(module: Any, name: Any) -> _Global:
    if type(module) is not str or type(name) is not str:
        raise ValueError("the file asks for a function or type whose name is not a text.")
    found = _Global(f"{module}.{name}")
    known = found.name in _CALLS or found.name in _STORAGES or found.name == _PARAMETER_DICT
    if not known and found.name not in _NAMES:
        raise ValueError(
            f"the file asks for {printable(found.name)}, which is not part of a tensor; nothing of it was run."
        )
    return found


def _call(function: Any, args: Any) -> Any:
    if type(function) is not _Global or function.name not in _CALLS or type(args) is not tuple:
        raise ValueError("the file calls what is not a function of a tensor; nothing of it was run.")
    least, most, make = _CALLS[function.name]
    if not least <= len(args) <= most:
        raise ValueError(f"the file gives {function.name} {len(args)} arguments; it takes {least} to {most}.")
    return make(*args)


# What the functions that a file may name stand for.


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StridedTensor:
    """Note a tensor; whether it needs a gradient and its hooks, in `rest`, concern training only."""
    known = type(storage) is Storage and type(shape) is tuple and type(strides) is tuple and _is_size(offset)
    if not known or len(shape) != len(strides) or len(shape) > _MOST_AXES or not all(map(_is_size, shape + strides)):
        raise ValueError("the file describes a tensor in a form that torch.save does not write.")
    if rest[2:] and rest[2]:
        raise ValueError("the file holds a tensor that is stored negated or conjugated; save a .contiguous() copy.")
    return StridedTensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> StridedTensor:
    if type(tensor) is not StridedTensor:
        raise ValueError("the file makes a parameter of what is not a tensor.")
    return tensor


def _size(shape: Any) -> tuple[int, ...]:
    if type(shape) is not tuple or not all(map(_is_size, shape)):
        raise ValueError("the file makes a shape of what are not sizes.")
    return shape


def _no_hooks(names: Any) -> tuple[()]:
    """Read a set, of which a ParameterDict has an empty one."""
    if type(names) is not list or names:
        raise ValueError("the file makes a set, which is not part of a dict of tensors.")
    return ()


def _note(*_: Any) -> _Note:
    return _Note()


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


# By the name in the file: the least and the most arguments, and the function.
_CALLS = {
    "torch._utils._rebuild_tensor_v2": (6, 7, _tensor),
    "torch._utils._rebuild_parameter": (3, 3, _parameter),
    "torch.Size": (1, 1, _size),
    "collections.OrderedDict": (0, 0, dict),
    "__builtin__.set": (1, 1, _no_hooks),
    # Beside the tensors of a checkpoint, such as the best loss so far.
    "numpy.core.multiarray.scalar": (2, 2, _note),
    "numpy._core.multiarray.scalar": (2, 2, _note),
    "numpy.dtype": (1, 3, _note),
    "_codecs.encode": (2, 2, _note),
}
# Classes that a training run keeps its callbacks under: names, which are keys and nothing else.
_NAMES = {
    f"{package}.callbacks.model_checkpoint.ModelCheckpoint"
    for package in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning")
}
_KEYS = tuple(map(_Global, sorted(_NAMES)))
_PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"

_STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),
    "torch.UntypedStorage": np.dtype(np.uint8),
}
