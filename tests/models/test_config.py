import dataclasses
import json

import pytest
from full_size import IMAGENET_64

from cmjax.models import UNetConfig

TWO_LEVELS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}


def test_a_published_file_is_read():
    config = UNetConfig.from_dict(json.loads(IMAGENET_64))
    assert config.block_out_channels == (192, 384, 576, 768)
    assert config.downsampling == 8
    assert config.time_width == 768
    assert config.mid_attention_groups == 32
    assert config.conditional


def test_a_config_survives_json():
    config = UNetConfig(**TWO_LEVELS, sample_size=(8, 16), dropout=0.1)
    assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_key_of_the_file_comes_back():
    d = json.loads(IMAGENET_64)
    written = UNetConfig.from_dict(d).to_dict()
    assert all(written[k] == v for k, v in d.items() if k != "_diffusers_version")


def test_a_config_is_hashable_with_lists_inside():
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in TWO_LEVELS.items()}
    assert hash(UNetConfig(**lists)) == hash(UNetConfig(**TWO_LEVELS))


def test_the_mid_attention_has_no_norm_only_with_scale_shift():
    assert UNetConfig(**TWO_LEVELS).mid_attention_groups == 4
    shifted = UNetConfig(**TWO_LEVELS, resnet_time_scale_shift="scale_shift")
    assert shifted.mid_attention_groups is None
    assert dataclasses.replace(shifted, attn_norm_num_groups=2).mid_attention_groups == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("DownBlock2D", "Nothing2D")}, "down_block_types may hold .*, got 'Nothing2D'"),
        ({"up_block_types": ("UpBlock2D", "DownBlock2D")}, "up_block_types may hold .*, got 'DownBlock2D'"),
        ({"up_block_types": ("UpBlock2D", "UNetResUNetResUpBlock2D")}, "got 'UNetResUNetResUpBlock2D'"),
        ({"up_block_types": ("UpBlock2D", "KUpBlock2D")}, "must hold only K blocks or none.*got 'DownBlock2D'"),
        ({"down_block_types": ("DownBlock2D", "KDownBlock2D")}, "must hold only K blocks or none"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type must be one of"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift must be one of .*, got 'spatial'"),
        ({"downsample_type": "fir"}, "downsample_type must be one of"),
        ({"upsample_type": "fir"}, "upsample_type must be one of"),
        ({"downsample_padding": 2}, "downsample_padding must be one of 0, 1, got 2"),
        ({"act_fn": "tanh"}, "act_fn must be one of .*, got 'tanh'"),
        ({"time_embedding_type": "rotary"}, "time_embedding_type must be one of"),
        ({"time_embedding_type": "learned"}, "needs num_train_timesteps"),
        ({"class_embed_type": "projection"}, "class_embed_type must be one of"),
        ({"block_out_channels": (8, 16, 16)}, "one entry for each of the 3 block_out_channels, got 2"),
        ({"block_out_channels": (8, 18)}, r"block_out_channels\[1\] = 18 must be a multiple of norm_num_groups = 4"),
        ({"attn_norm_num_groups": 3}, r"16 must be a multiple of attn_norm_num_groups = 3"),
        ({"attention_head_dim": 17}, r"attention_head_dim = 17 is more than block_out_channels\[1\] = 16"),
        ({"norm_num_groups": None}, "norm_num_groups must be a whole number with 'DownBlock2D', got None"),
        ({"norm_num_groups": 0}, "norm_num_groups must be a positive integer, got 0"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor must not be 0"),
        ({"norm_eps": -1e-6}, "norm_eps must not be negative, got -1e-06"),
        ({"mid_block_type": ""}, "mid_block_type must be one of .*, got ''"),
        (
            {"resnet_time_scale_shift": "ada_group"},
            "resnet_time_scale_shift must be one of .*K blocks do by themselves",
        ),
        ({"act_fn": "geglu"}, "act_fn must be one of .*, got 'geglu'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be a positive integer, got 0"),
        ({"layers_per_block": (1, 1)}, "layers_per_block must be a whole number"),
        ({"layers_per_block": 0}, "layers_per_block must be a positive integer, got 0"),
        ({"num_class_embeds": 0}, "num_class_embeds must be a positive integer, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"freq_shift": 4}, "freq_shift = 4 must be less than the 4 frequencies"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**(TWO_LEVELS | change))


TEXT, ENCODER, DECODER = (
    "text encoder: it is for UNet2DConditionModel",
    "no picture for the way up",
    "from the way down",
)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("CrossAttnDownBlock2D", TEXT),
        ("SimpleCrossAttnDownBlock2D", TEXT),
        ("KCrossAttnDownBlock2D", TEXT),
        ("UNetResCrossAttnDownBlock2D", TEXT),
        ("DownEncoderBlock2D", ENCODER),
        ("AttnDownEncoderBlock2D", ENCODER),
        ("CrossAttnUpBlock2D", TEXT),
        ("SimpleCrossAttnUpBlock2D", TEXT),
        ("KCrossAttnUpBlock2D", TEXT),
        ("UpDecoderBlock2D", DECODER),
        ("AttnUpDecoderBlock2D", DECODER),
    ],
)
def test_blocks_of_other_networks_are_refused_with_the_reason(kind, reason):
    option = "down_block_types" if "Down" in kind else "up_block_types"
    blocks = (*TWO_LEVELS[option][:1], kind)
    with pytest.raises(ValueError, match=f"{option} may hold .*, got '{kind}' .*{reason}"):
        UNetConfig(**(TWO_LEVELS | {option: blocks}))


SKIP = {
    "block_out_channels": (32, 32),
    "down_block_types": ("SkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D"),
    "norm_num_groups": None,
}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
K_BLOCKS = {"down_block_types": ("KDownBlock2D",) * 2, "up_block_types": ("KUpBlock2D",) * 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 1}, "in_channels must be 3 with 'SkipDownBlock2D', .* got 1"),
        ({"out_channels": 6}, "out_channels must be 3 with 'SkipUpBlock2D', .* got 6"),
        (
            {
                "block_out_channels": (32, 32, 32),
                "down_block_types": ("DownBlock2D", "SkipDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D",) * 3,
                "norm_num_groups": 4,
            },
            "down_block_types: a skip block that halves the picture must come before all others",
        ),
        (
            PLAIN | {"up_block_types": ("SkipUpBlock2D", "UpBlock2D")},
            "up_block_types: after a skip block that doubles the picture all must be skip blocks",
        ),
        ({"block_out_channels": (32, 30)}, r"a norm of mid_block has 30 channels in 7 groups"),
        ({"block_out_channels": (30, 32)}, r"a norm of the output has 30 channels in 7 groups"),
        ({"block_out_channels": (2, 32)}, r"2 channels in 0 groups"),
        (
            PLAIN | {"block_out_channels": (36, 32), "up_block_types": ("UpBlock2D", "AttnSkipUpBlock2D")},
            r"a norm of up_blocks.1 \(AttnSkipUpBlock2D\) has 68 channels in 32 groups",
        ),
        (
            PLAIN | {"block_out_channels": (16, 36), "down_block_types": ("DownBlock2D", "AttnSkipDownBlock2D")},
            r"a norm of down_blocks.1 \(AttnSkipDownBlock2D\) has 36 channels in 32 groups",
        ),
        (K_BLOCKS | {"block_out_channels": (32, 16)}, r"down_blocks.1 \(KDownBlock2D\) has 16 channels in 0 groups"),
        (K_BLOCKS | {"block_out_channels": (32, 96)}, r"up_blocks.0 \(KUpBlock2D\) has 32 channels in 3 groups"),
    ],
)
def test_blocks_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**(SKIP | change))


def test_an_option_is_checked_only_where_it_acts():
    plain = SKIP | PLAIN
    UNetConfig(**plain, attention_head_dim=100, attn_norm_num_groups=5, add_attention=False)
    UNetConfig(**plain, attention_head_dim=100, attn_norm_num_groups=5, mid_block_type=None)
    UNetConfig(**(plain | {"up_block_types": ("UpBlock2D", "SkipUpBlock2D")}), out_channels=6)  # nothing to add it to


def test_the_prefix_of_the_first_files_is_read_past_and_kept():
    names = {
        "down_block_types": ("UNetResSkipDownBlock2D", "UNetResAttnSkipDownBlock2D"),
        "up_block_types": ("UNetResAttnSkipUpBlock2D", "UNetResSkipUpBlock2D"),
        "act_fn": "SiLU",
    }
    config = UNetConfig(**(SKIP | names))
    assert config.down_kinds == ("SkipDownBlock2D", "AttnSkipDownBlock2D")
    assert config.up_kinds == ("AttnSkipUpBlock2D", "SkipUpBlock2D")
    assert config.to_dict()["down_block_types"] == list(names["down_block_types"])
    assert config.to_dict()["act_fn"] == "SiLU" and config.to_dict()["norm_num_groups"] is None


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown options: encoder_hid_dim"):
        UNetConfig.from_dict({"encoder_hid_dim": 3})


def test_what_other_tools_leave_in_the_file_passes():
    left = {
        "decay": 0.9999,
        "inv_gamma": 1.0,
        "min_decay": 0.0,
        "optimization_step": 100,
        "power": 0.75,
        "update_after_step": 0,
        "use_ema_warmup": True,
    }  # diffusers' EMAModel.save_pretrained
    published = json.loads(IMAGENET_64)
    assert UNetConfig.from_dict(published | left) == UNetConfig.from_dict(published)
    with pytest.raises(ValueError, match="unknown options: power_of_attention"):
        UNetConfig.from_dict(published | left | {"power_of_attention": 2})


def test_another_class_is_refused():
    with pytest.raises(ValueError, match="is for UNet2DConditionModel; cmjax reads UNet2DModel"):
        UNetConfig.from_dict({"_class_name": "UNet2DConditionModel"})
