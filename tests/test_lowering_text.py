"""Text-to-image on accelerators that are not here: this room lowers the whole of `draw` for TPU and CUDA, and reads it.

No weight is in memory. As in `test_lowering`: what lowers may still be wrong or slow there; but double precision, a
call of the host, a second loop and the square of 4096 pixels' logits would be seen.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import full_size_texts
import jax
import jax.numpy as jnp
import pytest

import cmjax
from cmjax import text_to_image

KEY = jax.random.key(0)
PLATFORMS = ("tpu", "cuda")


def lowered(name: str, platform: str, *, pixels: int, batch: int, **guided: Any) -> str:
    pipe = full_size_texts.abstract(name, dtype="bfloat16", param_dtype="bfloat16")
    state = cmjax.tcd.init(pipe.config, num_steps=4, eta=0.3)
    cond = full_size_texts.given(name, batch)
    if guided:
        guided["negative"] = cond
    draw = jax.jit(partial(text_to_image.draw, size=(pixels, pixels)))
    return jax.export.export(draw, platforms=[platform])(pipe, state, KEY, cond, **guided).mlir_module()


def holds(text: str, latents: str) -> None:
    """One loop over latents, nothing of the host or in double precision, no large square of logits.

    Up to 1024 x 1024 a head are held at once, and more of them where a batch has few heads: 128 MiB in all.
    """
    for word in ("callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv", "annotate_device_placement"):
        assert word not in text
    assert not re.search(r"\bf64\b|xf64>|complex<", text)
    loops = re.findall(r"stablehlo\.while\(.*?\) : (.*)", text)
    assert sum(f"tensor<{latents}>" in carried for carried in loops) == 1  # the others are attention's chunks
    squares = {int(size) for size, _ in re.findall(r"tensor<(?:\d+x)+(\d+)x(\1)xf32>", text)}
    assert max(squares, default=0) <= 1024
    kinds = set(re.findall(r"stablehlo\.convolution\(.*-> tensor<[\dx]*x(\w+)>", text))
    assert kinds == {"bf16"}


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ["tiny", "tiny-xl"])
def test_draw_is_one_loop_without_a_large_square(name: str, platform: str) -> None:
    """4096 latents: in the network's finest level of "tiny", and in the autoencoder of both."""
    text = lowered(name, platform, pixels=512, batch=4)
    holds(text, "4x64x64x4xf32")
    if platform == "tpu":  # the kernel, in place of chunks
        assert "tpu_custom_call" in text
        assert len(re.findall(r"stablehlo\.while\(", text)) == 1


@pytest.mark.slow
def test_guided_pictures_are_one_loop_too() -> None:
    holds(lowered("tiny", "cuda", pixels=512, batch=4, guidance=jnp.float32(7.5)), "4x64x64x4xf32")


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(("name", "pixels"), [("sd15", 512), ("sdxl", 1024)])
def test_published_sizes_lower(name: str, pixels: int, platform: str) -> None:
    side = pixels // 8
    holds(lowered(name, platform, pixels=pixels, batch=4), f"4x{side}x{side}x4xf32")
