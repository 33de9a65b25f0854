"""What a compiled program sends between devices: read from its text, with loops multiplied out."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Sent", "collectives", "totals"]

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Sent(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: one of `KINDS`.
        times: how often it runs in one call of the program.
        bytes: of the arrays that one device gives to it, once.
        devices: how many take part together.
        array: their types, as the program writes them.
        of: the operation of JAX that it comes from, as the program says.
    """

    kind: str
    times: int
    bytes: int
    devices: int
    array: str
    of: str

    @property
    def shapes(self) -> str:
        """The shapes of its arrays."""
        return ", ".join(f"[{sizes}]" for _, sizes in ARRAY.findall(self.array))

    @property
    def wire(self) -> float:
        """Bytes that one device sends once, by the algorithm that sends least."""
        n = self.devices
        return self.bytes * {
            "all-reduce": 2 * (n - 1) / n, "all-gather": n - 1, "reduce-scatter": (n - 1) / n,
            "all-to-all": (n - 1) / n, "collective-permute": 1,
        }[self.kind]  # fmt: skip


def bytes_of(arrays: str) -> int:
    """Bytes of all arrays in a type such as `(bf16[2,3]{1,0}, f32[])`."""
    return (
        sum(
            BITS.get(dtype, int((re.findall(r"\d+", dtype) or ["0"])[0]))
            * math.prod(map(int, filter(None, sizes.split(","))))
            for dtype, sizes in ARRAY.findall(arrays)
        )
        // 8
    )


def computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the entry, and the lines of each computation."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return entry, found


def trips(line: str, found: dict[str, list[str]]) -> int:
    """How often a loop runs: as the compiler says, or as its condition compares with a constant."""
    said = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if said:
        return int(said[1])
    condition = found[re.search(r"condition=%?([\w.\-]+)", line)[1]]
    numbers = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(condition))
    if len(numbers) != 1:
        raise ValueError(f"a loop does not say how often it runs: {line.strip():.200}")
    return int(numbers[0])


def group(rest: str, devices: int) -> int:
    """How many devices take part together."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    if listed:
        return len(listed[1].split(","))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", named[2]))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if counted is None and "replica_groups={}" not in rest and "replica_groups" in rest:
        raise ValueError(f"a collective does not say who takes part: {rest:.200}")
    return int(counted[1]) if counted else devices


def collectives(text: str, devices: int) -> list[Sent]:
    """Read a compiled program.

    Args:
        text: of `jax.stages.Compiled.as_text`.
        devices: of the program.
    """
    entry, found = computations(text)
    return list(_of(entry, 1, found, devices, set()))


def _of(name: str, times: int, found: dict[str, list[str]], devices: int, seen: set[str]) -> Iterator[Sent]:
    types: dict[str, str] = {}
    for line in found[name]:
        match = LINE.match(line)
        if not match:
            continue
        here, kind, op, rest = match.groups()
        types[here] = kind
        plain = op.removesuffix("-start")
        channel = re.search(r"channel_id=(\d+)", rest)
        if plain in KINDS and channel:  # TPUs send while they compute: what is sent stands in several fusions
            if channel[1] in seen:
                continue
            seen.add(channel[1])
        if plain in KINDS:
            operands = rest.split(")", 1)[0]
            given = (
                operands if ARRAY.search(operands) else "".join(types[one.strip(" %")] for one in operands.split(","))
            )
            of = re.search(r'op_name="([^"]*)"', rest)
            yield Sent(plain, times, bytes_of(given), group(rest, devices), given, of[1] if of else "")
        inner = CALLED.findall(rest) + [one.strip(" %") for one in ",".join(BRANCHES.findall(rest)).split(",") if one]
        again = times * trips(line, found) if op == "while" else times
        for called in inner if plain not in KINDS else ():
            yield from _of(called, again, found, devices, seen)


def totals(sent: list[Sent]) -> dict[str, dict[str, Any]]:
    """Count by kind: how many run, the bytes that go in, and the bytes that a device sends."""
    found: dict[str, dict[str, Any]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0, "sent": 0.0})
    for one in sent:
        found[one.kind]["count"] += one.times
        found[one.kind]["bytes"] += one.times * one.bytes
        found[one.kind]["sent"] += one.times * one.wire
    return dict(found)
