"""Files of every form change weights as their formulas say, in float64."""

from __future__ import annotations

import functools
from pathlib import Path

import lora_files
import numpy as np
import pytest
from texts import text_model

import cmjax
from cmjax.io.safetensors_files import write_safetensors
from cmjax.text_to_image import TextToImage

LEVELS = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}


@functools.cache
def model(kind: str) -> TextToImage:
    """One like Stable Diffusion 1, or XL."""
    return text_model(xl=kind == "xl", use_linear_projection=kind == "xl", **LEVELS)


KINDS, RARE = ("sd", "xl"), ("loha_tucker", "lokr_tucker", "lokr", "dora_in")
CASES = [
    *(("sd", "kohya", form, "all") for form in lora_files.FORMS if form not in RARE),
    *(pytest.param("sd", "kohya", form, "all", marks=pytest.mark.slow) for form in RARE),
    *(("xl", style, "lora", "some") for style in lora_files.STYLES),
    *(pytest.param("xl", "kohya", form, "all", marks=pytest.mark.slow) for form in lora_files.FORMS),
    *(pytest.param("sd", style, "lora", "some", marks=pytest.mark.slow) for style in lora_files.STYLES),
    *(pytest.param(kind, "sgm", form, "none", marks=pytest.mark.slow) for kind in KINDS for form in lora_files.FORMS),
]


@pytest.mark.parametrize(("kind", "style", "form", "alphas"), CASES)
def test_a_file_changes_weights_as_its_formula_says(
    kind: str, style: str, form: str, alphas: str, tmp_path: Path
) -> None:
    pipe = model(kind)
    made = lora_files.make(pipe, style, form, alphas=alphas)
    assert made.tensors
    write_safetensors(made.tensors, tmp_path / "a.safetensors")
    merged = lora_files.weights(cmjax.lora.merge(pipe, cmjax.lora.read(tmp_path / "a.safetensors"), 0.7))
    for name, kernel in lora_files.weights(pipe).items():
        expected = kernel + 0.7 * made.change.get(name, np.zeros(()))
        np.testing.assert_allclose(merged[name], expected, rtol=0, atol=2e-6 * max(1.0, np.abs(expected).max()))
        assert (name in made.change) or np.array_equal(merged[name], kernel)


@pytest.mark.parametrize(("width", "base"), [(768, "Stable Diffusion 1"), (2048, "Stable Diffusion XL"), (7, None)])
def test_what_a_lora_seems_to_be_for(width: int, base: str | None) -> None:
    def factors(c_in: int) -> cmjax.lora.Factors:
        return cmjax.lora.Factors(cmjax.lora.Product(np.ones((c_in, 1)), np.ones((1, 4))), np.ones(()))

    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert cmjax.lora.base_of(cmjax.lora.LoRA({attention: factors(width), text: factors(768)})) == base
