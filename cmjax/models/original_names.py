"""The names that modules of Stable Diffusion have in files of one piece, and those that they have here.

Such files keep the names of the repositories that the models were trained in: Stable Diffusion's and SDXL's for the
UNet and the autoencoder, OpenCLIP's for the text encoders of Stable Diffusion 2 and XL. The numbers are those of
diffusers' folders, whose names are ours. LoRA files use either set of names.

A UNet counts its blocks there through all levels, `input_blocks.5.1`, where we say level and place,
`down_blocks.1.attentions.1`. With L residual blocks a level:

| there | here |
|---|---|
| `time_embed.0`, `.2`; `label_emb.0.0`, `.0.2` | `time_embedding.linear_1`, `linear_2`; `add_embedding.linear_1`, ... |
| `input_blocks.0.0`, `out.0`, `out.2` | `conv_in`, `conv_norm_out`, `conv_out` |
| `input_blocks.{1 + i (L + 1) + j}.0`, `.1` | `down_blocks.{i}.resnets.{j}`, `attentions.{j}` |
| `input_blocks.{(i + 1) (L + 1)}.0.op` | `down_blocks.{i}.downsamplers.0.conv`, but for the last level |
| `middle_block.0`, `.1`, `.2` | `mid_block.resnets.0`, `attentions.0`, `resnets.1` |
| `output_blocks.{i (L + 1) + j}.0`, `.1` | `up_blocks.{i}.resnets.{j}`, `attentions.{j}` |
| the last part of `output_blocks.{i (L + 1) + L}`, `.conv` | `up_blocks.{i}.upsamplers.0.conv`, but for the last |

No repository of those has a network that is told the guidance scale; what embeds it is `time_embed.cond_proj` here.
"""

from __future__ import annotations

from collections.abc import Iterator

from cmjax.models.autoencoder_kl import AutoencoderConfig
from cmjax.models.clip import TextConfig
from cmjax.models.unet2d_condition import UNetConditionConfig

__all__ = ["autoencoder_modules", "openclip_tensors", "unet_modules"]

_Pairs = Iterator[tuple[str, str]]

_UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# Of a transformer block; these have one set of names.
_BLOCK = (
    "norm1",
    *(f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "norm2",
    *(f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "norm3",
    "ff.net.0.proj",
    "ff.net.2",
)
_OPENCLIP_LAYER = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def unet_modules(config: UNetConditionConfig) -> dict[str, str]:
    """Map the names of a UNet's modules in Stable Diffusion's own files to those here.

    Args:
      config: of the UNet.

    Returns:
      Every module that has weights, by its name there, without the prefix `model.diffusion_model.`. No name comes
      twice on either side, so that the mapping can be turned around.

    Example:
      >>> names = unet_modules(UNetConditionConfig())
      >>> names["input_blocks.4.1.transformer_blocks.0.attn1.to_q"]
      'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q'
      >>> names["output_blocks.5.2.conv"], len(names)
      ('up_blocks.1.upsamplers.0.conv', 391)

    References:
      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022; Podell et al., SDXL, 2023:
      the code that was published with them.
    """
    return dict(_unet(config))


def _unet(config: UNetConditionConfig) -> _Pairs:
    yield from {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}.items()
    if config.time_cond_proj_dim is not None:
        yield "time_embed.cond_proj", "time_embedding.cond_proj"
    if config.addition_embed_type is not None:
        yield from {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}.items()
    yield "input_blocks.0.0", "conv_in"
    yield from _way_down(config)
    yield from _middle(config)
    yield from _way_up(config)
    yield from {"out.0": "conv_norm_out", "out.2": "conv_out"}.items()


def _way_down(config: UNetConditionConfig) -> _Pairs:
    channels, k = config.block_out_channels, 1
    for i, width in enumerate(channels):
        depths = config.down_depths(i)
        for j in range(config.layers(i)):
            grows = j == 0 and width != channels[max(i - 1, 0)]
            yield from _unet_resnet(f"input_blocks.{k}.0", f"down_blocks.{i}.resnets.{j}", shortcut=grows)
            if depths:
                yield from _transformer(f"input_blocks.{k}.1", f"down_blocks.{i}.attentions.{j}", depths[j])
            k += 1
        if i < len(channels) - 1:
            yield f"input_blocks.{k}.0.op", f"down_blocks.{i}.downsamplers.0.conv"
            k += 1


def _middle(config: UNetConditionConfig) -> _Pairs:
    if config.mid_block_type is None:
        return
    yield from _unet_resnet("middle_block.0", "mid_block.resnets.0", shortcut=False)
    if config.mid_block_type == "UNetMidBlock2DCrossAttn":
        yield from _transformer("middle_block.1", "mid_block.attentions.0", config.mid_depth)
        yield from _unet_resnet("middle_block.2", "mid_block.resnets.1", shortcut=False)


def _way_up(config: UNetConditionConfig) -> _Pairs:
    last, k = len(config.block_out_channels) - 1, 0
    for i in range(last + 1):
        depths, layers = config.up_depths(last - i), config.layers(last - i) + 1
        for j in range(layers):
            # What comes in is what came up and what was kept, so that no width stays as it is.
            yield from _unet_resnet(f"output_blocks.{k}.0", f"up_blocks.{i}.resnets.{j}", shortcut=True)
            if depths:
                yield from _transformer(f"output_blocks.{k}.1", f"up_blocks.{i}.attentions.{j}", depths[j])
            if i < last and j == layers - 1:
                yield f"output_blocks.{k}.{2 if depths else 1}.conv", f"up_blocks.{i}.upsamplers.0.conv"
            k += 1


def _unet_resnet(theirs: str, ours: str, *, shortcut: bool) -> _Pairs:
    for name, here in _UNET_RESNET.items():
        if shortcut or here != "conv_shortcut":
            yield f"{theirs}.{name}", f"{ours}.{here}"


def _transformer(theirs: str, ours: str, depth: int) -> _Pairs:
    blocks = [f"transformer_blocks.{n}.{name}" for n in range(depth) for name in _BLOCK]
    for name in ("norm", "proj_in", *blocks, "proj_out"):
        yield f"{theirs}.{name}", f"{ours}.{name}"


def autoencoder_modules(config: AutoencoderConfig) -> dict[str, str]:
    """Map the names of an autoencoder's modules in Stable Diffusion's own files to those here.

    The decoder counts its levels from the finest there, and from the coarsest here. Attention's layers are
    convolutions of one pixel there.

    Args:
      config: of the autoencoder.

    Returns:
      Every module that has weights, by its name there, without the prefix `first_stage_model.`. No name comes twice on
      either side.

    Example:
      >>> config = AutoencoderConfig(block_out_channels=(128, 256), down_block_types=("DownEncoderBlock2D",) * 2,
      ...                            up_block_types=("UpDecoderBlock2D",) * 2)
      >>> names = autoencoder_modules(config)
      >>> names["decoder.up.1.upsample.conv"], names["encoder.mid.attn_1.q"]
      ('decoder.up_blocks.0.upsamplers.0.conv', 'encoder.mid_block.attentions.0.to_q')

    References:
      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022: the code that was published.
    """
    return dict(_autoencoder(config))


def _autoencoder(config: AutoencoderConfig) -> _Pairs:
    channels, layers = config.block_out_channels, config.layers_per_block
    last = len(channels) - 1
    for side in ("encoder", "decoder"):
        yield from {f"{side}.conv_in": f"{side}.conv_in", f"{side}.norm_out": f"{side}.conv_norm_out"}.items()
        yield f"{side}.conv_out", f"{side}.conv_out"
        for j in range(2):
            yield from _resnet(f"{side}.mid.block_{j + 1}", f"{side}.mid_block.resnets.{j}", shortcut=False)
        for name, here in _ATTENTION.items() if config.mid_block_add_attention else ():
            yield f"{side}.mid.attn_1.{name}", f"{side}.mid_block.attentions.0.{here}"
    for i in range(last + 1):
        grows = channels[i] != channels[max(i - 1, 0)]
        for j in range(layers):
            ours = f"encoder.down_blocks.{i}.resnets.{j}"
            yield from _resnet(f"encoder.down.{i}.block.{j}", ours, shortcut=grows and j == 0)
        shrinks = channels[i] != channels[min(i + 1, last)]
        for j in range(layers + 1):
            ours = f"decoder.up_blocks.{last - i}.resnets.{j}"
            yield from _resnet(f"decoder.up.{i}.block.{j}", ours, shortcut=shrinks and j == 0)
        if i < last:
            yield f"encoder.down.{i}.downsample.conv", f"encoder.down_blocks.{i}.downsamplers.0.conv"
        if i:
            yield f"decoder.up.{i}.upsample.conv", f"decoder.up_blocks.{last - i}.upsamplers.0.conv"
    for name, there in (("quant_conv", config.use_quant_conv), ("post_quant_conv", config.use_post_quant_conv)):
        if there:
            yield name, name


def _resnet(theirs: str, ours: str, *, shortcut: bool) -> _Pairs:
    for name, here in _RESNET.items():
        if shortcut or here != "conv_shortcut":
            yield f"{theirs}.{name}", f"{ours}.{here}"


def openclip_tensors(config: TextConfig) -> dict[str, tuple[str, ...]]:
    """Map the names of a text encoder's tensors in OpenCLIP's files to those here.

    Args:
      config: of the text encoder.

    Returns:
      By the name of each tensor there, the names of the tensors here: one; or three, of queries, keys and values, which
      are its rows in thirds. `text_projection` has its axes the other way around there.

    Example:
      >>> names = openclip_tensors(TextConfig(projection=True))
      >>> names["transformer.resblocks.0.attn.in_proj_bias"][0]
      'text_model.encoder.layers.0.self_attn.q_proj.bias'
      >>> names["positional_embedding"], names["text_projection"]
      (('text_model.embeddings.position_embedding.weight',), ('text_projection.weight',))

    References:
      Ilharco et al., OpenCLIP, 2021: the code.
    """
    names: dict[str, tuple[str, ...]] = {
        "positional_embedding": ("text_model.embeddings.position_embedding.weight",),
        "token_embedding.weight": ("text_model.embeddings.token_embedding.weight",),
    }
    for n in range(config.num_hidden_layers):
        theirs, ours = f"transformer.resblocks.{n}", f"text_model.encoder.layers.{n}"
        for kind in ("weight", "bias"):
            names |= {f"{theirs}.{name}.{kind}": (f"{ours}.{here}.{kind}",) for name, here in _OPENCLIP_LAYER.items()}
            parts = tuple(f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv")
            names[f"{theirs}.attn.in_proj_{kind}"] = parts
    names |= {f"ln_final.{kind}": (f"text_model.final_layer_norm.{kind}",) for kind in ("weight", "bias")}
    return names | ({"text_projection": ("text_projection.weight",)} if config.projection else {})
