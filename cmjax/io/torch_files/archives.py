"""Zip archives of records that are stored as they are: where in the file each lies, so that it can be mapped.

Two lists of an archive say the same, the directory at its end and a header before each record. Here both are read and
must agree, and no two records may share bytes: of a file that passes, there is one way to read it.

References:
  PKWARE, APPNOTE.TXT, .ZIP File Format Specification, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

from cmjax.io.torch_files.pickles import printable

__all__ = ["Record", "stored_records"]

_END = struct.Struct("<4s4H2LH")  # disks (2), entries here, entries, directory's size and offset, comment's length
_LOCATOR64 = struct.Struct("<4sLQL")  # disk, offset of the end record, disks
_END64 = struct.Struct("<4sQ2H2L4Q")  # own size, versions (2), disks (2), entries here, entries, size, offset
_ENTRY = struct.Struct("<4s6H3L5H2L")  # versions (2), flags, method, time, date, CRC, sizes (2), name's, extra's and
# comment's length, disk, attributes (2), offset of the header
_HEADER = struct.Struct("<4s5H3L2H")  # version, flags, method, time, date, CRC, sizes (2), name's and extra's length

_ENCRYPTED, _SIZES_FOLLOW = 1, 8  # flags
_IN_EXTRA = 0xFFFFFFFF  # of a size: it takes 64 bits, and stands in the extra field
_MOST, _LARGEST_DIRECTORY = 100_000, 1 << 24


class Record(NamedTuple):
    """Where in the file a record's bytes lie."""

    start: int
    size: int


def stored_records(file: mmap.mmap) -> dict[str, Record]:
    """Find every record of a zip archive.

    Args:
      file: the whole file.

    Returns:
      The records by name.

    Raises:
      ValueError: the archive is damaged or contradicts itself, or a record is compressed or encrypted.
    """
    offset, size, count = _directory(file)
    records: dict[str, Record] = {}
    taken = []
    at, end = offset, offset + size
    for _ in range(count):
        if at + _ENTRY.size > end:
            raise ValueError("the directory of the zip archive is damaged.")
        at, name, header, record = _entry(file, at, end)
        if name in records:
            raise ValueError(f"the zip archive holds two records {printable(name)}.")
        records[name] = record
        taken.append((header, record.start + record.size, name))
    if not taken:
        raise ValueError("the zip archive holds no records; the file is damaged.")
    taken.sort()
    for (_, stop, name), (start, _, other) in zip(taken, [*taken[1:], (offset, offset, "the directory")], strict=True):
        if stop > start:
            raise ValueError(
                f"in the zip archive, {printable(name)} and {printable(other)} overlap; the file is damaged."
            )
    return records


def _directory(file: mmap.mmap) -> tuple[int, int, int]:
    """Find the directory: its offset, size, and number of entries."""
    limit = file.rfind(b"PK\5\6", max(0, len(file) - _END.size - 0xFFFF))
    if limit < 0:
        raise ValueError("the end of the zip archive is missing; the file is truncated: fetch it again.")
    _, *disks, here, count, size, offset, _ = _unpack(_END, file, limit)
    locator = limit - _LOCATOR64.size
    if locator >= 0 and file[locator : locator + 4] == b"PK\6\7":
        _, _, limit, _ = _unpack(_LOCATOR64, file, locator)
        signature, _, _, _, *disks, here, count, size, offset = _unpack(_END64, file, limit)
        if signature != b"PK\6\6":
            raise ValueError("the end of the zip archive is damaged.")
    if any(disks) or here != count:
        raise ValueError("the zip archive is in several parts; put them together first.")
    if count > _MOST or size > _LARGEST_DIRECTORY or offset + size > limit:
        raise ValueError("the directory of the zip archive is damaged, or too large for one of torch.save.")
    return offset, size, count


def _entry(file: mmap.mmap, at: int, end: int) -> tuple[int, str, int, Record]:
    """Read one entry of the directory: where the next is, the name, where its header is, and where the record is."""
    signature, _, _, flags, method, _, _, _, packed, size, *lengths, _, _, _, header = _unpack(_ENTRY, file, at)
    name_at, extra_at = at + _ENTRY.size, at + _ENTRY.size + lengths[0]
    following = at + _ENTRY.size + sum(lengths)
    if signature != b"PK\1\2" or following > end:
        raise ValueError("the directory of the zip archive is damaged.")
    raw = file[name_at:extra_at]
    name = raw.decode("utf-8", "surrogateescape")
    size, packed, header = _large([size, packed, header], file[extra_at : extra_at + lengths[1]])
    if flags & _ENCRYPTED or method or size != packed:
        raise ValueError(
            f"record {printable(name)} of the zip archive is compressed or encrypted, but torch.save stores records as "
            "they are. Is it a TorchScript program? Load it with torch and save its state_dict()."
        )
    signature, _, flags_too, method_too, _, _, _, *sizes, name_length, extra_length = _unpack(_HEADER, file, header)
    start = header + _HEADER.size + name_length + extra_length
    allowed = {size, _IN_EXTRA, 0} if flags & _SIZES_FOLLOW else {size, _IN_EXTRA}
    agree = (signature, flags_too, method_too) == (b"PK\3\4", flags, method) and allowed.issuperset(sizes)
    if not agree or file[header + _HEADER.size : header + _HEADER.size + name_length] != raw:
        raise ValueError(f"the zip archive says two things of its record {printable(name)}; the file is damaged.")
    return following, name, header, Record(start, size)


def _large(values: list[int], extra: bytes) -> list[int]:
    """Take those of a record's sizes and offset that need 64 bits from its extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == 1:
            words = (word for (word,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8]))
            return [next(words, value) if value == _IN_EXTRA else value for value in values]
        at += 4 + length
    return values


def _unpack(form: struct.Struct, file: mmap.mmap, at: int) -> tuple:
    if at < 0 or at + form.size > len(file):
        raise ValueError("the zip archive points outside of the file; the file is damaged or truncated.")
    return form.unpack_from(file, at)
