"""UNets that attend to a text against diffusers: the same weights give the same numbers, for every option."""

import jax
import numpy as np
import pytest
from parity.networks import close, nchw, ours, shaken

from cmjax.models.text_cond import TextCond
from cmjax.models.unet2d_condition import UNetCondition, UNetConditionConfig

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
COMMON = {"norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 10, "attention_head_dim": 2}
# Two levels as in Stable Diffusion 1 and 2, and as in XL, which also embeds sizes.
SD = {"block_out_channels": (8, 16), "down_block_types": (CROSS, PLAIN), "up_block_types": (PLAIN_UP, CROSS_UP)}
XL = {
    "block_out_channels": (8, 16),
    "down_block_types": (PLAIN, CROSS),
    "up_block_types": (CROSS_UP, PLAIN_UP),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 12,
}
ONE = {"block_out_channels": (8,), "down_block_types": (CROSS,), "up_block_types": (CROSS_UP,)}

UNETS = {
    "heads by level, linear projections": {
        "block_out_channels": (8, 12, 16),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
        "attention_head_dim": (2, 3, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "mid_block_scale_factor": 2**0.5,
    },
    "Stable Diffusion 1": SD | {"layers_per_block": 2},
    "Stable Diffusion 2": SD | {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
    "XL": XL | {"layers_per_block": 2, "transformer_layers_per_block": (1, 2)},
    "XL's refiner": XL
    | {
        "block_out_channels": (8, 16, 16),
        "down_block_types": (PLAIN, CROSS, PLAIN),
        "up_block_types": (PLAIN_UP, CROSS_UP, PLAIN_UP),
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": 2,
        "projection_class_embeddings_input_dim": 5 * 8 + 12,
    },
    "XL told its guidance": XL | {"time_cond_proj_dim": 16},
    "XL to fill holes": XL | {"in_channels": 9},
    "SSD": XL
    | {
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, (2, 1)),
        "reverse_transformer_layers_per_block": ((1, 2, 3), 1),
        "mid_block_type": "UNetMidBlock2D",
    },
    "layers that differ, with a middle that attends": XL
    | {
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, (3, 1)),
        "reverse_transformer_layers_per_block": ((1, 1, 2), 1),
    },
    "the way up differs by level": XL
    | {"transformer_layers_per_block": (1, 2), "reverse_transformer_layers_per_block": (1, 2)},
    "KOALA": XL
    | {
        "block_out_channels": (8, 12, 16),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
        "attention_head_dim": (2, 3, 4),
        "transformer_layers_per_block": (1, 2, 3),
        "mid_block_type": None,
    },
    "BK-SDM": SD | {"mid_block_type": None},
    "tiny-sd": ONE
    | {"block_out_channels": (8, 16), "mid_block_type": None}
    | {"down_block_types": (CROSS, CROSS), "up_block_types": (CROSS_UP, CROSS_UP)},
    "told its guidance": SD | {"time_cond_proj_dim": 16},
    "told its guidance in an odd width": ONE | {"time_cond_proj_dim": 9, "act_fn": "mish"},
    "filling holes": SD | {"in_channels": 9},
    "following instructions": SD | {"in_channels": 8},
    "layers by level": {
        "block_out_channels": (8, 8, 16),
        "down_block_types": (CROSS, CROSS, PLAIN),
        "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP),
        "layers_per_block": (2, 1, 3),
        "transformer_layers_per_block": (1, 2, 1),
    },
    "attending to the context alone": SD | {"only_cross_attention": True},
    "attending to the context alone at a level": XL | {"only_cross_attention": (False, True)},
    "all channels at once": SD
    | {
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "downsample_padding": 0,
        "center_input_sample": True,
        "in_channels": 9,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
    },
    "sizes with sines first": XL
    | {"flip_sin_to_cos": False, "freq_shift": 1, "addition_time_embed_dim": 6}
    | {"projection_class_embeddings_input_dim": 6 * 6 + 12},
    "a thin middle": ONE | {"mid_block_type": "UNetMidBlock2D", "norm_eps": 1e-3, "act_fn": "gelu"},
    "no middle": ONE | {"mid_block_type": None, "attention_head_dim": 3},  # 3 does not divide 8: heads are 2 wide
    "another output": ONE | {"in_channels": 3, "out_channels": 6, "act_fn": "relu", "mid_block_scale_factor": 2},
    "four levels": {
        "block_out_channels": (8, 8, 12, 12),
        "down_block_types": (CROSS, CROSS, CROSS, PLAIN),
        "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP),
    },
}
ODD = ("four levels", "XL", "all channels at once", "KOALA")
# The least that covers every option; the others take minutes together.
QUICK = ("heads by level, linear projections", "XL", "SSD", "told its guidance", "filling holes", "layers by level")
QUICK += ("attending to the context alone at a level", "all channels at once", "no middle")
WHOLE = ("all channels at once",)  # x has all channels; elsewhere cond has those beyond 4


def inputs(config, height, width, whole):
    """x, t and cond for a network, and the same for the reference."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    full = draw(2, height, width, config.in_channels)
    own = config.in_channels if whole else min(config.in_channels, 4)
    t = np.array([999, 3])
    cond = TextCond(draw(2, 5, config.cross_attention_dim), extra_channels=None)
    given = {"encoder_hidden_states": torch.from_numpy(cond.context)}
    if own < config.in_channels:
        cond = cond.replace(extra_channels=full[..., own:])
    if (each := config.addition_time_embed_dim) is not None:
        num = (config.projection_class_embeddings_input_dim - 12) // each
        sizes = np.array([[1024, 768, 0, 64, 512, 1000.0], [512, 512, 7, 0, 300, 6.5]], np.float32)[:, :num]
        cond = cond.replace(pooled=draw(2, 12), sizes=sizes)
        texts, ids = torch.from_numpy(cond.pooled), torch.from_numpy(sizes)
        given["added_cond_kwargs"] = {"text_embeds": texts, "time_ids": ids}
    if (dim := config.time_cond_proj_dim) is not None:
        cond = cond.replace(guidance=np.array([8.0, 1.5], np.float32))
        pipeline = diffusers.LatentConsistencyModelPipeline
        w = torch.from_numpy(cond.guidance) - 1
        given["timestep_cond"] = pipeline.get_guidance_scale_embedding(None, w, embedding_dim=dim)
    return (full[..., :own], t, cond), (nchw(full), torch.from_numpy(t)), given


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in UNETS]
)
def test_unets(name):
    options = COMMON | UNETS[name]
    theirs = shaken(diffusers.UNet2DConditionModel(**options), 0)
    config = UNetConditionConfig.from_dict(dict(theirs.config))
    module = ours(UNetCondition, config, theirs)
    run = jax.jit(lambda module, *inputs: module(*inputs))
    factor = config.downsampling
    for height, width in ((15, 9),) if name in ODD else ((4 * factor, 2 * factor),):
        mine, positional, given = inputs(config, height, width, name in WHOLE)
        with torch.no_grad():
            expected = theirs(*positional, **given).sample
        close(run(module, *mine), expected.permute(0, 2, 3, 1))
    again = diffusers.UNet2DConditionModel.from_config(config.to_dict())
    assert UNetConditionConfig.from_dict(dict(again.config)) == config


def test_a_context_alone_will_do_and_what_no_option_reads_is_left():
    theirs = shaken(diffusers.UNet2DConditionModel(**COMMON | ONE), 0)
    config = UNetConditionConfig.from_dict(dict(theirs.config))
    module = ours(UNetCondition, config, theirs)
    (x, t, cond), _, _ = inputs(config, 4, 4, whole=True)
    run = jax.jit(lambda module, *inputs: module(*inputs))
    alone = run(module, x, t, cond.context)
    more = cond.replace(pooled=np.ones((2, 7), np.float32), sizes=np.ones((2, 6), np.float32))
    np.testing.assert_array_equal(alone, run(module, x, t, more))
