"""What a file in one piece is, by the names and shapes of its tensors: at full size, without weights."""

import dataclasses

import numpy as np
import pytest
from golden.unets import UNETS, unfolded

from cmjax.io.single_files.kinds import KINDS
from cmjax.io.single_files.stable_diffusion import UNET_PREFIX, original_of
from cmjax.models.original_names import unet_modules
from cmjax.models.unet2d_condition import UNetConditionConfig

SAID = {
    "stable-diffusion-v1-5": "Stable Diffusion 1",
    "stable-diffusion-inpainting": "Stable Diffusion 1, for inpainting",
    "instruct-pix2pix": "Stable Diffusion 1, for edits by instructions",
    "LCM_Dreamshaper_v7": "Stable Diffusion 1, told the guidance scale (LCM)",
    "stable-diffusion-2-1": "Stable Diffusion 2",
    "stable-diffusion-xl-base-1.0": "Stable Diffusion XL",
    "stable-diffusion-xl-1.0-inpainting-0.1": "Stable Diffusion XL, for inpainting",
    "stable-diffusion-xl-refiner-1.0": "Stable Diffusion XL's refiner",
    "SSD-1B": "Stable Diffusion XL, SSD-1B",
    "Segmind-Vega": "Stable Diffusion XL, Segmind-Vega",
    "koala-700m": "Stable Diffusion XL, KOALA-700M",
    "koala-1b": "Stable Diffusion XL, KOALA-1B",
    "bk-sdm-base": "Stable Diffusion 1, BK-SDM base",
    "bk-sdm-small": "Stable Diffusion 1, BK-SDM small",
    "bk-sdm-tiny": "Stable Diffusion 1, BK-SDM tiny",
}
XL = "stable-diffusion-xl-base-1.0"


def config_of(name):
    return UNetConditionConfig.from_dict(UNETS[name]["config"])


def tensors_of(name, *, ours=False, prefix=UNET_PREFIX):
    """The tensors of a published UNet, which take no memory, by the names of its own files or by ours."""
    theirs = {here: there for there, here in unet_modules(config_of(name)).items()}
    found = {}
    for key, shape in unfolded(UNETS[name]["tensors"]).items():
        module, _, word = key.rpartition(".")
        found[prefix + (key if ours else f"{theirs[module]}.{word}")] = np.broadcast_to(np.float32(0), shape)
    return found


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("name", UNETS)
def test_a_published_unet_is_known_by_its_shapes(name, ours):
    tensors = tensors_of(name, ours=ours, prefix="" if ours else UNET_PREFIX)
    found = original_of(tensors)
    said, expected = found.unet.config, config_of(name)
    assert found.said == SAID[name]
    levels = range(len(expected.block_out_channels))
    for of in ("heads", "layers", "down_depths", "up_depths"):
        assert [getattr(said, of)(i) for i in levels] == [getattr(expected, of)(i) for i in levels], of
    same = {"attention_head_dim", "layers_per_block", "sample_size"}
    same |= {"transformer_layers_per_block", "reverse_transformer_layers_per_block"}
    blank = dict.fromkeys(same, 1) | {"reverse_transformer_layers_per_block": None}
    assert dataclasses.replace(said, **blank) == dataclasses.replace(expected, **blank)
    assert said.mid_block_type != "UNetMidBlock2DCrossAttn" or said.mid_depth == expected.mid_depth
    if said.sample_size != expected.sample_size:  # 768 pixels, which a network that predicts v is for
        assert name == "stable-diffusion-2-1" and found.prediction_type is None
    assert set(found.unet.tensors) == set(unfolded(UNETS[name]["tensors"]))


@pytest.mark.parametrize(("spread", "said"), [(0.02, None), (0.2, "v_prediction")])
def test_stable_diffusion_2_says_v_by_its_biases(spread, said):
    tensors = tensors_of("stable-diffusion-2-1")
    name = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    tensors[name] = (spread * np.random.default_rng(0).normal(size=320)).astype(np.float16)
    found = original_of(tensors)
    assert found.prediction_type == said
    assert found.unet.config.sample_size == (96 if said else 64)


def test_markers_say_v_and_no_rest_of_the_signal():
    found = original_of(tensors_of(XL) | {"v_pred": np.empty(0, np.float32), "ztsnr": np.empty(0, np.float32)})
    assert found.prediction_type == "v_prediction" and found.zero_snr
    plain = original_of(tensors_of(XL))
    assert plain.prediction_type is None and not plain.zero_snr


def test_averages_are_taken_when_they_are_asked_for():
    tensors = tensors_of("stable-diffusion-v1-5")
    averages = {
        "model_ema.diffusion_model" + name.removeprefix(UNET_PREFIX).replace(".", ""): np.broadcast_to(
            np.float32(1), value.shape
        )
        for name, value in tensors.items()
    }
    both = tensors | averages | {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(3)}
    assert original_of(both).has_ema
    assert not any(value.any() for value in original_of(both).unet.tensors.values())
    assert all(value.all() for value in original_of(both, ema=True).unet.tensors.values())
    with pytest.raises(ValueError, match=r"no averages of its weights .*leave ema out"):
        original_of(tensors, ema=True)
    del both["model_ema.diffusion_modelout2bias"]
    with pytest.raises(ValueError, match=r"lacks the averages of out.2.bias"):
        original_of(both, ema=True)
    with pytest.raises(ValueError, match=r"holds no UNet of Stable Diffusion, but averages of a UNet \(686"):
        original_of(averages)


def test_what_is_no_kind_is_refused_with_what_was_found():
    tensors = tensors_of(XL)
    label = f"{UNET_PREFIX}label_emb.0.0.weight"
    with pytest.raises(ValueError, match=r"320 channels .* width 2048, told a row of 2000, which is no Stable"):
        original_of(tensors | {label: np.broadcast_to(np.float32(0), (1280, 2000))})
    del tensors[label]
    with pytest.raises(ValueError, match=r"320 channels .* width 2048, which is no Stable Diffusion that cmjax knows"):
        original_of(tensors)
    tensors = tensors_of("stable-diffusion-v1-5")
    tensors[f"{UNET_PREFIX}input_blocks.0.0.weight"] = np.broadcast_to(np.float32(0), (320, 5, 3, 3))
    with pytest.raises(ValueError, match=r"maps 5 channels to 4: it draws by depth"):
        original_of(tensors)


def test_leftovers_and_gaps_are_listed():
    tensors = tensors_of("stable-diffusion-v1-5")
    with pytest.raises(ValueError, match=r"holds input_blocks.1.0.odd.weight, which have no place in it"):
        original_of(tensors | {f"{UNET_PREFIX}input_blocks.1.0.odd.weight": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"holds control_model.a, which belong to no part .*, but to a ControlNet"):
        original_of(tensors | {"control_model.a": np.zeros(3, np.float32)})
    del tensors[f"{UNET_PREFIX}middle_block.1.proj_out.weight"]
    with pytest.raises(ValueError, match=r"lacks middle_block.1.proj_out.weight"):
        original_of(tensors)
    ignored = (
        "betas",
        "model_ema.decay",
        "global_step",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    )
    tensors = tensors_of("stable-diffusion-v1-5") | {name: np.zeros(3, np.float32) for name in ignored}
    assert original_of(tensors).text_encoders == (None,)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"], "Stable Diffusion 3"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"], "a ControlNet"),
        (["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"], "a LoRA"),
        (["unet.conv_in.lora_A.weight"], "a LoRA"),
        (["unet.up_blocks.0.attn1.processor.to_q_lora.down.weight"], "a LoRA"),
        (["lora_unet_conv_in.hada_w1_a"], "a LoRA"),
        (["blocks.0.cross_attn.norm_k.weight", "patch_embedding.weight"], "Wan"),
        (["emb_params"], "a textual inversion embedding"),
        (["clip_g", "clip_l"], "a textual inversion embedding"),
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "a motion module of AnimateDiff"),
        (["ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight"], "an IP-Adapter"),
        (["transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"], "Qwen-Image"),
        (["decoder.layers.0.weight"], r"a tiny autoencoder \(TAESD\)"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a text encoder of T5"),
        (["first_stage_model.encoder.conv_in.weight"], r"an autoencoder \(1 tensors\)"),
        (["x", "y"], "x, y, which is nothing that cmjax knows"),
        ([], "no weights"),
    ],
)
def test_files_of_other_kinds_are_named(names, kind):
    with pytest.raises(ValueError, match=f"it holds no UNet of Stable Diffusion, but {kind}"):
        original_of({name: np.zeros((2, 2), np.float32) for name in names})


def test_kinds_differ_in_what_they_are_known_by():
    assert len({kind.widths for kind in KINDS}) == len(KINDS)
