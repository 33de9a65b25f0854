"""Configs of Stable Diffusion's networks from the shapes of their tensors, by either set of names.

A file of one piece has no config. Its names and shapes say how many levels and blocks there are, how wide each is, how
many transformer blocks each layer has, and what else the network is told. They do not say how many heads attention
has, how many groups norms have and by what number latents are scaled: those go by what the model is (`kinds`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from cmjax.models.autoencoder_kl import AutoencoderConfig
from cmjax.models.clip import TextConfig
from cmjax.models.unet2d_condition import UNetConditionConfig

__all__ = ["UNetShape", "autoencoder_config", "is_original", "text_config", "text_layers", "unet_shape"]

Shapes = Mapping[str, tuple[int, ...]]
_MOST_LEVELS, _MOST_BLOCKS = 16, 64


class _Layer(NamedTuple):
    """A layer of a level: the width that comes out of it, and its transformer blocks (0 without a transformer)."""

    width: int
    depth: int


class _Words(NamedTuple):
    """What one set of names calls the modules that are looked at."""

    conv_in: str
    conv_out: str
    time: str
    label: str
    second_convolution: str
    middle: tuple[str, str]
    first_transformer: str


_ORIGINAL = _Words(
    "input_blocks.0.0",
    "out.2",
    "time_embed.0",
    "label_emb.0.0",
    "out_layers.3",
    ("middle_block.0", "middle_block.1"),
    r"^(input|middle|output)_blocks?\.(\d+\.)?1\.",
)
_OURS = _Words(
    "conv_in",
    "conv_out",
    "time_embedding.linear_1",
    "add_embedding.linear_1",
    "conv2",
    ("mid_block.resnets.0", "mid_block.attentions.0"),
    r"^(down_blocks|mid_block|up_blocks)\.(\d+\.)?attentions\.0\.",
)


class UNetShape(NamedTuple):
    """What names and shapes say of a UNet.

    Attributes:
      in_channels: of x.
      out_channels: of the output.
      widths: channels of each level, from fine to coarse.
      layers: residual blocks of each level on the way down.
      down: transformer blocks of each layer of each level on the way down, from fine to coarse.
      up: the same on the way up, from coarse to fine.
      middle: transformer blocks in the middle; 0 for one residual block; None for no middle.
      context: the width of the context.
      linear: whether projections are linear layers.
      label: the width of what is added to the time's embedding: a text in one row and sizes; or None.
      guidance: the width in which a guidance scale is embedded, or None.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    down: tuple[tuple[int, ...], ...]
    up: tuple[tuple[int, ...], ...]
    middle: int | None
    context: int
    linear: bool
    label: int | None
    guidance: int | None

    def config(
        self, *, heads: int | None, head_width: int, groups: int, size_width: int, sample_size: int | None
    ) -> UNetConditionConfig:
        """Make the config, with what shapes do not say.

        Args:
          heads: of every attention; None for as many as have the width `head_width`.
          head_width: of a head, without `heads`.
          groups: of every group norm.
          size_width: in which each size is embedded, where sizes are told.
          sample_size: latents a side that the network is for.

        Raises:
          ValueError: no config describes such a network.
        """
        widths = self.widths
        by_level = tuple(max(1, width // head_width) for width in widths)
        depth, reverse = self._depths()
        return UNetConditionConfig(
            sample_size=sample_size,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            block_out_channels=widths,
            layers_per_block=self.layers[0] if len(set(self.layers)) == 1 else self.layers,
            down_block_types=tuple("CrossAttnDownBlock2D" if any(one) else "DownBlock2D" for one in self.down),
            up_block_types=tuple("CrossAttnUpBlock2D" if any(one) else "UpBlock2D" for one in self.up),
            mid_block_type=None
            if self.middle is None
            else ("UNetMidBlock2DCrossAttn" if self.middle else "UNetMidBlock2D"),
            norm_num_groups=groups,
            cross_attention_dim=self.context,
            transformer_layers_per_block=depth,
            reverse_transformer_layers_per_block=reverse,
            attention_head_dim=by_level if heads is None else heads,
            use_linear_projection=self.linear,
            time_cond_proj_dim=self.guidance,
            addition_embed_type=None if self.label is None else "text_time",
            addition_time_embed_dim=None if self.label is None else size_width,
            projection_class_embeddings_input_dim=self.label,
        )

    def _depths(self) -> tuple[int | tuple[int | tuple[int, ...], ...], tuple[int | tuple[int, ...], ...] | None]:
        """Transformer blocks as a config says them, in the shortest form; and those of the way up where they differ."""
        for way in (self.down, self.up):
            for place, depths in enumerate(way):
                if any(depths) and not all(depths):
                    raise ValueError(f"level {place} has layers with and without transformers, {list(depths)}.")
        up = self.up[::-1]
        regular = all(len(set(level)) == 1 for level in (*self.down, *up))
        regular = regular and all(not (a[0] and b[0]) or a[0] == b[0] for a, b in zip(self.down, up, strict=True))
        found = {n for level in (*self.down, *self.up) for n in level if n} | ({self.middle} if self.middle else set())
        if regular and len(found) == 1:
            return found.pop(), None
        if regular:
            levels = [max(a[0], b[0]) for a, b in zip(self.down, up, strict=True)]
            levels = [*levels[:-1], levels[-1] or self.middle or 1]
            self._check_middle(levels[-1])
            return tuple(level or 1 for level in levels), None
        down = tuple(level if any(level) else 1 for level in self.down)
        self._check_middle(down[-1][0] if isinstance(down[-1], tuple) else down[-1])
        return down, tuple(level if any(level) else 1 for level in self.up)

    def _check_middle(self, last: int) -> None:
        if self.middle and self.middle != last:
            raise ValueError(f"the middle has {self.middle} transformer blocks, but the last level {last}.")


def is_original(shapes: Shapes) -> bool | None:
    """Tell by which names a UNet is stored: True for its own files', False for ours, None for no UNet."""
    for words, answer in ((_ORIGINAL, True), (_OURS, False)):
        if f"{words.conv_in}.weight" in shapes and f"{words.time}.weight" in shapes:
            return answer
    return None


def unet_shape(shapes: Shapes) -> UNetShape:
    """Read what names and shapes say of a UNet.

    Args:
      shapes: of its tensors, by the names of its own files or by ours.

    Raises:
      ValueError: a tensor is missing, or it is another network.
    """
    original = is_original(shapes)
    words = _ORIGINAL if original else _OURS
    down, up = (_original_levels if original else _our_levels)(shapes)
    if len(down) != len(up):
        raise ValueError(f"the way down has {len(down)} levels, but the way up {len(up)}.")
    conv_in, time = _shape(shapes, f"{words.conv_in}.weight", 4), _shape(shapes, f"{words.time}.weight", 2)
    widths = tuple(level[-1].width for level in down)
    for level in down:
        if len({layer.width for layer in level}) != 1:
            raise ValueError(f"layers of one level have different widths, {[layer.width for layer in level]}.")
    if not conv_in[0] == time[1] == widths[0]:
        raise ValueError(f"the network begins with {conv_in[0]} channels, but its first level has {widths[0]}.")
    resnet, attention = words.middle
    middle = _depth(shapes, attention) if f"{resnet}.{words.second_convolution}.weight" in shapes else None
    first = min(
        (name for name in shapes if re.match(words.first_transformer, name) and ".attn2.to_k." in name), default=""
    )
    if not first:
        raise ValueError(
            "the network has no attention to a text: which one it is, a config.json beside the file says; give its "
            "folder."
        )
    projection = next(name for name in shapes if re.match(words.first_transformer, name) and ".proj_in.weight" in name)
    label, guidance = f"{words.label}.weight", "time_embed" if original else "time_embedding"
    guidance = f"{guidance}.cond_proj.weight"
    return UNetShape(
        in_channels=conv_in[1],
        out_channels=_shape(shapes, f"{words.conv_out}.weight", 4)[0],
        widths=widths,
        layers=tuple(len(level) for level in down),
        down=tuple(tuple(layer.depth for layer in level) for level in down),
        up=tuple(tuple(layer.depth for layer in level) for level in up),
        middle=middle,
        context=_shape(shapes, first, 2)[1],
        linear=len(shapes[projection]) == 2,
        label=_shape(shapes, label, 2)[1] if label in shapes else None,
        guidance=_shape(shapes, guidance, 2)[1] if guidance in shapes else None,
    )


def _original_levels(shapes: Shapes) -> tuple[list[list[_Layer]], list[list[_Layer]]]:
    """Divide the blocks that their own files count through into levels."""
    down: list[list[_Layer]] = [[]]
    for k in range(1, _MOST_LEVELS * _MOST_BLOCKS):
        if f"input_blocks.{k}.0.op.weight" in shapes:
            down.append([])
        elif (layer := _layer(shapes, f"input_blocks.{k}.0.out_layers.3", f"input_blocks.{k}.1")) is not None:
            down[-1].append(layer)
        else:
            break
    if len(down) > _MOST_LEVELS or not all(down):
        raise ValueError(f"the way down has {len(down)} levels, of which {sum(not one for one in down)} are empty.")
    up, k = [], 0
    for level in reversed(down):
        layers = []
        for _ in range(len(level) + 1):
            layer = _layer(shapes, f"output_blocks.{k}.0.out_layers.3", f"output_blocks.{k}.1")
            if layer is None:
                raise ValueError(f"output_blocks.{k} is missing: the way down has {[len(one) for one in down]} layers.")
            layers.append(layer)
            k += 1
        up.append(layers)
    return down, up


def _our_levels(shapes: Shapes) -> tuple[list[list[_Layer]], list[list[_Layer]]]:
    ways = []
    for way in ("down_blocks", "up_blocks"):
        levels = []
        for i in range(_MOST_LEVELS + 1):
            layers = []
            for j in range(_MOST_BLOCKS + 2):
                layer = _layer(shapes, f"{way}.{i}.resnets.{j}.conv2", f"{way}.{i}.attentions.{j}")
                if layer is None:
                    break
                layers.append(layer)
            if not layers:
                break
            levels.append(layers)
        ways.append(levels)
    down, up = ways
    if not down:
        raise ValueError("the network has no down_blocks.0.resnets.0.conv2.weight.")
    return down, up


def _layer(shapes: Shapes, convolution: str, attention: str) -> _Layer | None:
    """Read a layer by its last convolution; None where there is none."""
    if f"{convolution}.weight" not in shapes:
        return None
    return _Layer(_shape(shapes, f"{convolution}.weight", 4)[0], _depth(shapes, attention))


def _depth(shapes: Shapes, attention: str) -> int:
    n = 0
    while f"{attention}.transformer_blocks.{n}.norm1.weight" in shapes:
        n += 1
    return n


def _shape(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"tensor {name} is missing.")
    if len(shape) != axes or not all(0 < n < 1 << 17 for n in shape):
        raise ValueError(f"tensor {name} is {shape}, but it must have {axes} axes.")
    return shape


# ---- the other parts -------------------------------------------------------------------------------------------------


def autoencoder_config(
    shapes: Shapes, *, groups: int, scaling_factor: float, sample_size: int | None
) -> AutoencoderConfig:
    """Read the config of an autoencoder off names and shapes.

    Args:
      shapes: of its tensors, by the names of its own files or by ours.
      groups: of every group norm.
      scaling_factor: by which latents are multiplied.
      sample_size: pixels a side that it is for.

    Raises:
      ValueError: a tensor is missing, or it is another network.
    """
    original = "encoder.down.0.block.0.conv2.weight" in shapes
    level, middle = ("down.{}.block.{}", "mid.attn_1.norm") if original else ("down_blocks.{}.resnets.{}", "")
    middle = middle or "mid_block.attentions.0.group_norm"
    widths, layers = [], []
    for i in range(_MOST_LEVELS + 1):
        j = 0
        while f"encoder.{level.format(i, j)}.conv2.weight" in shapes and j <= _MOST_BLOCKS:
            j += 1
        if not j:
            break
        widths.append(_shape(shapes, f"encoder.{level.format(i, 0)}.conv2.weight", 4)[0])
        layers.append(j)
    if not widths:
        raise ValueError("the autoencoder has no encoder: tensor encoder.down.0.block.0.conv2.weight is missing.")
    if len(set(layers)) != 1:
        raise ValueError(f"the levels of the autoencoder have different numbers of blocks, {layers}.")
    return AutoencoderConfig(
        in_channels=_shape(shapes, "encoder.conv_in.weight", 4)[1],
        out_channels=_shape(shapes, "decoder.conv_out.weight", 4)[0],
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=layers[0],
        latent_channels=_shape(shapes, "decoder.conv_in.weight", 4)[1],
        norm_num_groups=groups,
        sample_size=sample_size,
        scaling_factor=scaling_factor,
        use_quant_conv="quant_conv.weight" in shapes,
        use_post_quant_conv="post_quant_conv.weight" in shapes,
        mid_block_add_attention=f"encoder.{middle}.weight" in shapes,
    )


def text_config(shapes: Shapes, *, head_width: int, quick: bool, projection: bool, layers: int | None) -> TextConfig:
    """Read the config of a text encoder off names and shapes.

    Args:
      shapes: of its tensors, by OpenCLIP's names or by ours (those of transformers).
      head_width: of a head of its attention.
      quick: whether its activation is x sigmoid(1.702 x), as OpenAI's is.
      projection: whether its pooled output is projected.
      layers: the number of layers that are used; None for all. Stable Diffusion 2 leaves the last one out.

    Raises:
      ValueError: a tensor is missing, or it is another network.
    """
    openclip = "positional_embedding" in shapes
    tokens = "token_embedding.weight" if openclip else "text_model.embeddings.token_embedding.weight"
    positions = "positional_embedding" if openclip else "text_model.embeddings.position_embedding.weight"
    layer = "transformer.resblocks.{}.mlp.c_fc.weight" if openclip else "text_model.encoder.layers.{}.mlp.fc1.weight"
    vocab, width = _shape(shapes, tokens, 2)
    inner = _shape(shapes, layer.format(0), 2)[0]
    to = _shape(shapes, "text_projection" if openclip else "text_projection.weight", 2) if projection else None
    return TextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=text_layers(shapes) if layers is None else layers,
        num_attention_heads=max(1, width // head_width),
        max_position_embeddings=_shape(shapes, positions, 2)[0],
        hidden_act="quick_gelu" if quick else "gelu",
        projection_dim=to[1 if openclip else 0] if to else width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        projection=projection,
    )


def text_layers(shapes: Shapes) -> int:
    """Count the layers of a text encoder, by OpenCLIP's names or by ours."""
    layers = 0
    while not {
        f"transformer.resblocks.{layers}.ln_1.weight",
        f"text_model.encoder.layers.{layers}.layer_norm1.weight",
    }.isdisjoint(shapes):
        layers += 1
    return layers
