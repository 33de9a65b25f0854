"""From text to values; argparse reports what these refuse."""

from __future__ import annotations

import argparse
import math
import os

__all__ = ["count", "guidance_scale", "model_and_lora", "named_file", "numbers", "path", "scaled_file", "seed", "size"]

_LARGEST = 16384  # pixels a side


def numbers(text: str) -> tuple[float, ...]:
    """Read `22`, `22,0` or `7.5`; whole numbers stay ints, as samplers on integer grids want them."""
    try:
        return tuple(int(part) if part.isdecimal() else float(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers, got {text}.") from None


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}.")
    if int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be less than 2^31, got {text}.")
    return int(text)


def guidance_scale(text: str) -> float:
    """Read a scale of guidance, which is a number of at least 0."""
    try:
        scale = float(text)
    except ValueError:
        scale = -1.0
    if not 0 <= scale < 1000:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1000, got {text}.")
    return scale


def size(text: str) -> tuple[int, int]:
    """Read `512x768`, height first, or `512`."""
    numbers = [int(part) if part.isascii() and part.isdecimal() else 0 for part in text.lower().split("x")]
    if len(numbers) > 2 or not 0 < min(numbers) <= max(numbers) <= _LARGEST:
        raise argparse.ArgumentTypeError(
            f"must be a height and a width up to {_LARGEST}, such as 512x768, or one number, got {text}."
        )
    return numbers[0], numbers[-1]


def scaled_file(text: str) -> tuple[str, float | None]:
    """Read `style.safetensors:0.6`, or a name alone."""
    name, colon, said = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        return path(text), None
    if not name or not said:
        raise argparse.ArgumentTypeError(f"must be a FILE or FILE:SCALE, got {text}.")
    try:
        scale = float(said)
    except ValueError:  # a colon of the name's own
        return text, None
    if not math.isfinite(scale):
        raise argparse.ArgumentTypeError(f"must have a finite scale, got {text}.")
    return name, scale


def model_and_lora(text: str) -> tuple[str, str | None]:
    """Read `MODEL` or `MODEL:LORA`; a path that holds a colon is found."""
    model, colon, lora = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        return path(text), None
    if not model or not lora:
        raise argparse.ArgumentTypeError(f"must be a MODEL or MODEL:LORA, got {text}.")
    return model, lora


def named_file(text: str) -> tuple[str, str | None]:
    """Read `FILE` or `FILE:TOKEN`; a file whose name holds a colon is found."""
    file, colon, token = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        return path(text), None
    if not file or not token:
        raise argparse.ArgumentTypeError(f"must be a FILE or FILE:TOKEN, got {text}.")
    return file, token


def path(text: str) -> str:
    """Read a path, which is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text.")
    return text


def seed(text: str) -> int:
    """Read a seed."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1, got {text}.")
    return int(text)
