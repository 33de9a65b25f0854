"""Sample grids: fixed prompts, one picture each, with the prompt under it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["PROMPTS", "save_grid", "save_pairs"]

PROMPTS = [
    "a red apple on a blue background, noto style",
    "two foxes",
    "a small rocket at the left",
    "a large fox on a purple background, fluent style",
    "three tulips on a yellow background, flat style",
    "a castle on a pink background, classic style",
    "an owl at the right on a green background",
    "a dragon on a black background, noto style",
    "a bicycle on a white background",
    "two crabs on an orange background, fluent style",
    "a small penguin at the bottom on a red background",
    "a large panda",
    "a volcano on a gray background, classic style",
    "three balloons on a blue background",
    "a unicorn at the top on a purple background, noto style",
    "a pizza on a black background, flat style",
]


def _bytes(pictures: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip((np.asarray(pictures, np.float32) + 1) * 127.5, 0, 255) + 0.5)


def save_grid(file: Path, rows: dict[str, np.ndarray], texts: list[str], columns: int = 8, zoom: int = 2) -> None:
    """Write one block of pictures f[N, 64, 64, 3] for each name in `rows`, one below the other, with their texts."""
    side, line = 64 * zoom, 24
    per_block = -(-len(texts) // columns)
    height = len(rows) * (16 + per_block * (side + line))
    sheet = Image.new("RGB", (columns * (side + 4), height), (255, 255, 255))
    draw, y = ImageDraw.Draw(sheet), 0
    for name, pictures in rows.items():
        draw.text((2, y + 2), name, fill=(160, 0, 0))
        y += 16
        for i, picture in enumerate(_bytes(pictures)):
            x, top = (i % columns) * (side + 4), y + (i // columns) * (side + line)
            sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, top))
            words, half = texts[i].split(), (len(texts[i].split()) + 1) // 2
            draw.text((x + 1, top + side), " ".join(words[:half]), fill=(0, 0, 0))
            draw.text((x + 1, top + side + 11), " ".join(words[half:]), fill=(0, 0, 0))
        y += per_block * (side + line)
    sheet.save(file)


def save_pairs(file: Path, originals: np.ndarray, decoded: np.ndarray) -> None:
    """Write originals over their reconstructions."""
    lines = []
    for start in range(0, len(originals), 8):
        lines += [np.hstack(list(_bytes(part[start : start + 8]))) for part in (originals, decoded)]
    sheet = Image.fromarray(np.vstack(lines))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(file)
