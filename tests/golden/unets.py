"""What tensors published text-to-image UNets have: `unets.json`, written by `record_unets.py`.

The file holds names as a tree, the words between their dots; children in a row that are alike are written once:
`{"transformer_blocks": {"0-9": {"norm1": {"weight": "640", "bias": "640"}, ...}}}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FILE", "UNETS", "folded", "unfolded"]

FILE = Path(__file__).parent / "unets.json"
Shapes = Mapping[str, tuple[int, ...]]


def folded(shapes: Shapes) -> dict[str, Any]:
    """Fold names and shapes into the file's tree."""
    tree: dict[str, Any] = {}
    for name, shape in shapes.items():
        *path, last = name.split(".")
        node = tree
        for word in path:
            node = node.setdefault(word, {})
        node[last] = "x".join(map(str, shape))
    return _merged(tree)


def _merged(tree: dict[str, Any]) -> dict[str, Any]:
    """Write numbered children in a row that are alike once."""
    rows: list[tuple[str, str, Any]] = []
    for word, child in tree.items():
        child = _merged(child) if isinstance(child, dict) else child
        if rows and word.isdigit() and rows[-1][2] == child and int(word) == int(rows[-1][1]) + 1:
            rows[-1] = (rows[-1][0], word, child)
        else:
            rows.append((word, word, child))
    return {first if first == last else f"{first}-{last}": child for first, last, child in rows}


def unfolded(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Read names and shapes from the file's tree: the inverse of `folded`."""
    return dict(_walk(tree, ()))


def _walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for words, child in tree.items():
        first, _, last = words.partition("-")
        for word in map(str, range(int(first), int(last) + 1)) if last else (first,):
            if isinstance(child, str):
                yield ".".join((*path, word)), tuple(map(int, child.split("x")))
            else:
                yield from _walk(child, (*path, word))


# By the name of the model on the hub: its config, number of parameters and tensors.
UNETS: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
