"""Names in files of one piece: the mapping holds every tensor of the published networks, once."""

import json
from pathlib import Path

import pytest
from golden.unets import UNETS, unfolded

from cmjax.models.autoencoder_kl import AutoencoderConfig
from cmjax.models.clip import TextConfig
from cmjax.models.original_names import autoencoder_modules, openclip_tensors, unet_modules
from cmjax.models.unet2d_condition import UNetConditionConfig

GOLDEN = Path(__file__).parents[1] / "golden"
ENCODERS = json.loads((GOLDEN / "clip_names.json").read_text())


def modules(tensors):
    """The modules that have these tensors."""
    return {name.rpartition(".")[0] for name in tensors}


def check_bijection(names, expected):
    assert len(set(names.values())) == len(names)
    assert set(names.values()) == expected


@pytest.mark.parametrize("name", UNETS)
def test_a_unets_names_are_those_of_its_files(name):
    said = UNETS[name]
    names = unet_modules(UNetConditionConfig.from_dict(said["config"]))
    check_bijection(names, modules(unfolded(said["tensors"])))


# Read off the code of Stable Diffusion, SDXL and the refiner, block by block.
@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("stable-diffusion-v1-5", "input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        ("stable-diffusion-v1-5", "input_blocks.11.0.in_layers.2", "down_blocks.3.resnets.1.conv1"),
        ("stable-diffusion-v1-5", "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        ("stable-diffusion-v1-5", "output_blocks.8.2.conv", "up_blocks.2.upsamplers.0.conv"),
        ("stable-diffusion-v1-5", "output_blocks.11.1.proj_in", "up_blocks.3.attentions.2.proj_in"),
        ("LCM_Dreamshaper_v7", "time_embed.cond_proj", "time_embedding.cond_proj"),
        ("stable-diffusion-xl-base-1.0", "label_emb.0.2", "add_embedding.linear_2"),
        ("stable-diffusion-xl-base-1.0", "input_blocks.4.1.norm", "down_blocks.1.attentions.0.norm"),
        (
            "stable-diffusion-xl-base-1.0",
            "middle_block.1.transformer_blocks.9.attn2.to_out.0",
            "mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0",
        ),
        ("stable-diffusion-xl-base-1.0", "output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("stable-diffusion-xl-refiner-1.0", "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        ("koala-700m", "output_blocks.1.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("SSD-1B", "middle_block.0.out_layers.3", "mid_block.resnets.0.conv2"),
        ("bk-sdm-tiny", "input_blocks.5.1.proj_out", "down_blocks.2.attentions.0.proj_out"),
    ],
)
def test_a_units_place_in_a_unet(name, theirs, ours):
    assert unet_modules(UNetConditionConfig.from_dict(UNETS[name]["config"]))[theirs] == ours


def test_levels_may_have_different_numbers_of_blocks():
    names = unet_modules(UNetConditionConfig(layers_per_block=(1, 2, 1, 1)))
    assert names["input_blocks.4.1.norm"] == "down_blocks.1.attentions.1.norm"
    assert names["output_blocks.6.2.conv"] == "up_blocks.2.upsamplers.0.conv"
    assert len(set(names.values())) == len(names)


def test_an_autoencoders_names_are_those_of_its_files():
    said = json.loads((GOLDEN / "names/autoencoder_kl.json").read_text())
    names = autoencoder_modules(AutoencoderConfig.from_dict(json.loads(said["config"])))
    check_bijection(names, modules(said["tensors"]))
    assert names["decoder.up.3.block.2.conv2"] == "decoder.up_blocks.0.resnets.2.conv2"
    assert names["decoder.up.1.block.0.nin_shortcut"] == "decoder.up_blocks.2.resnets.0.conv_shortcut"
    assert names["decoder.mid.attn_1.proj_out"] == "decoder.mid_block.attentions.0.to_out.0"


def test_an_autoencoder_may_lack_parts():
    config = AutoencoderConfig(use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False)
    assert not [name for name in autoencoder_modules(config) if "quant" in name or "attn" in name]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_encoders_names_are_those_of_its_files(name):
    said = ENCODERS[name]
    config = TextConfig.from_dict(said["config"])
    tensors = [
        path.format(n=n)
        for path in said["tensors"]
        for n in (range(config.num_hidden_layers) if "{n}" in path else [0])
    ]
    names = openclip_tensors(config)
    found = [ours for parts in names.values() for ours in parts]
    assert len(found) == len(set(found)) and set(found) == set(tensors)
    assert ("text_projection" in names) == config.projection
