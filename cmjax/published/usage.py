"""How to draw with a published model or LoRA: the command, and the same in Python."""

from __future__ import annotations

import shlex
from pathlib import PurePath
from typing import Any

from cmjax.published.row import BASES, Published

__all__ = ["command", "program"]

_PROMPT = "a red fox in the snow"


def command(row: Published) -> str | None:
    """The `cmjax sample` that draws with it; None where cmjax lacks the network.

    Example:
      >>> from cmjax.published import find
      >>> print(command(find("stabilityai/sdxl-turbo")))
      cmjax sample --model stabilityai/sdxl-turbo --dtype bfloat16 --prompt 'a red fox in the snow'
    """
    if not row.is_drawn:
        return None
    words = ["cmjax", "sample", *_parts(row), "--dtype", "bfloat16", "--prompt", _PROMPT]
    return shlex.join(words)


def program(row: Published) -> str:
    """The same in Python: six lines, or those of the path alone where cmjax lacks the network."""
    config, state = f"{row.sampler}.{row.module.Config.__name__}", f"state = cmjax.{row.sampler}.init(config"
    state += "".join(f", {name}={_written(value)}" for name, value in row.arguments.items()) + ")"
    keys = "".join(f", {name}={_written(value)}" for name, value in row.keys.items())
    if not row.is_drawn:
        return "\n".join(
            (
                "import jax, cmjax",
                f"config = cmjax.{config}({keys[2:]})",
                state,
                "latents = cmjax.generate(network, state, jax.random.key(0), shape)  # any network(x, t, cond)",
            )
        )
    load = {"lora": BASES.get(row.base), "unet": _file(row), "model": row.repo_id}[row.kind]
    base = f', base="{BASES[row.base]}"' if row.kind == "unet" else ""
    lines = [f'pipe = cmjax.text_to_image.load("{load}"{base}, dtype="bfloat16", param_dtype="bfloat16")']
    if row.kind == "lora":
        lines.append(f'pipe = cmjax.lora.merge(pipe, cmjax.lora.read("{_lora(row)}"), {row.scale:g})')
    lines.append(f"config = dataclasses.replace(pipe.config{keys})" if keys else "config = pipe.config")
    told = f", guidance={row.guidance:g}" if row.told else ""
    guided = f", guidance={row.guidance:g}" if row.guidance and not row.told else ""
    away = ", negative=pipe.without_text(cond)" if guided else ""
    return "\n".join(
        (
            "import dataclasses, jax, cmjax" if keys else "import jax, cmjax",
            *lines,
            state,
            f'cond = pipe.encode(pipe.tokenize(["{_PROMPT}"]){told})',
            f"images = cmjax.text_to_image.draw(pipe, state, jax.random.key(0), cond{guided}{away})",
        )
    )


def _parts(row: Published) -> list[str]:
    if row.kind == "lora":
        return ["--model", BASES[row.base], "--lora", _lora(row)]
    return ["--model", _file(row), "--base", BASES[row.base]] if row.kind == "unet" else ["--model", row.repo_id]


def _lora(row: Published) -> str:
    return f"{row.repo_id}/{row.files[0]}" if row.files else row.repo_id


def _file(row: Published) -> str:
    """The file of a network alone, as it is called after it was downloaded."""
    name = row.repo_id.rpartition("/")[2]
    return PurePath(row.files[0]).name if row.files else f"{name}/diffusion_pytorch_model.safetensors"


def _written(value: Any) -> str:
    """A value as Python writes it, a string in double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)
