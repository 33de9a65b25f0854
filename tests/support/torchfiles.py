"""Files of torch.save made by hand, byte by byte, so that tests of their reader need no torch."""

import dataclasses
import struct
import zipfile
from typing import Any

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass
class Raw:
    """Opcodes put into the pickle as they are."""

    code: bytes


@dataclasses.dataclass
class Call:
    """A function by its name, and what it is called with."""

    function: str
    args: Any


@dataclasses.dataclass
class Tensor:
    """A view of a stored array; `changes` overwrite what is written of it."""

    storage: np.ndarray
    shape: tuple
    strides: tuple
    offset: int = 0
    key: str | None = None
    numel: int | None = None


class Writer:
    """Writes values as opcodes of protocol 2, and collects the arrays that go into records of their own."""

    def __init__(self, legacy=False):
        self.arrays, self.legacy = {}, legacy

    def pickle(self, value):
        return b"\x80\x02" + self.code(value) + b"."

    def code(self, value):
        match value:
            case Raw():
                return value.code
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
                return b"\x8a" + bytes([len(data)]) + data
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                data = value.encode()
                return b"X" + struct.pack("<L", len(data)) + data
            case tuple():
                return b"(" + b"".join(map(self.code, value)) + b"t"
            case list():
                return b"](" + b"".join(map(self.code, value)) + b"e"
            case dict():
                return b"}(" + b"".join(self.code(k) + self.code(v) for k, v in value.items()) + b"u"
            case Call():
                module, _, name = value.function.rpartition(".")
                return f"c{module}\n{name}\n".encode() + self.code(value.args) + b"R"
            case Tensor():
                return self.code(self.tensor(value))
            case np.ndarray():
                strides = tuple(np.cumprod([1, *value.shape[:0:-1]])[::-1].tolist()) if value.ndim else ()
                return self.code(Tensor(value, value.shape, strides))
        raise TypeError(value)

    def tensor(self, t):
        key = t.key or next((k for k, a in self.arrays.items() if a is t.storage), str(len(self.arrays)))
        self.arrays[key] = t.storage
        kind = Raw(f"ctorch\n{STORAGES[t.storage.dtype.name]}\n".encode())
        told = ("storage", kind, key, "cpu", t.storage.size if t.numel is None else t.numel)
        storage = Raw(self.code(told + (None,) * self.legacy) + b"Q")
        hooks = Call("collections.OrderedDict", ())
        return Call("torch._utils._rebuild_tensor_v2", (storage, t.offset, t.shape, t.strides, False, hooks))


def write(path, value, *, prefix="archive/", byteorder=b"little", extra=(), compression=zipfile.ZIP_STORED):
    """Write a zip archive as torch.save does; `extra` are records as (name, bytes)."""
    writer = Writer()
    top = value if isinstance(value, bytes) else writer.pickle(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{prefix}data.pkl", top)
        if byteorder is not None:
            archive.writestr(f"{prefix}byteorder", byteorder)
        for key, array in writer.arrays.items():
            archive.writestr(f"{prefix}data/{key}", np.ascontiguousarray(array).tobytes())
        for name, data in extra:
            archive.writestr(name, data)
    return path


def write_legacy(path, value, *, magic=LEGACY_MAGIC, version=1001, little=True):
    """Write the form of torch before 1.6."""
    writer = Writer(legacy=True)
    top = writer.pickle(value)
    parts = [writer.pickle(magic), writer.pickle(version), writer.pickle({"little_endian": little}), top]
    parts.append(writer.pickle(list(writer.arrays)))
    for array in writer.arrays.values():
        parts.append(struct.pack("<q", array.size) + np.ascontiguousarray(array).tobytes())
    path.write_bytes(b"".join(parts))
    return path


def damaged(whole, rng):
    """A file with one to five accidents."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.choice((1, 4, 50))]
            case 3:
                data[at:at] = rng.randbytes(rng.choice((1, 4)))
            case _:
                data[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"(.Rb"))
    return bytes(data)
