"""The content of a diffusers `UNet2DConditionModel` config.json as one frozen dataclass.

An option that the network here does not have is accepted at the value that switches it off, and refused by name at any
other, before any weight is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from cmjax._bounds import at_least, at_most, each, one_of, positive
from cmjax._typed import check_fields
from cmjax.models.config_files import options

__all__ = ["UNetConditionConfig"]

_POSITIVE, _MOST = positive("be a positive integer"), at_most(1 << 16)
_MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)

# Options that networks here do not have, at the values that switch them off.
_OFF: dict[str, tuple[Any, ...]] = {
    "only_cross_attention": (False,),
    "dropout": (0.0,),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "projection_class_embeddings_input_dim": (None,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
}
# Options that act on nothing in these networks. Softmax is always float32 here, so upcast_attention is one of them.
_IDLE = ("upcast_attention", "mid_block_only_cross_attention", "cross_attention_norm", "addition_embed_type_num_heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConditionConfig:
    """Describe a `UNetCondition`; names and defaults are the keys of a diffusers `UNet2DConditionModel` config.json.

    Args:
      sample_size: pixels a side (or height and width) of the latents that the network is meant for.
      in_channels: channels of x.
      out_channels: channels of the output.
      center_input_sample: give the network 2 x - 1 in place of x.
      flip_sin_to_cos: cosines first, where t is embedded.
      freq_shift: subtracted from the number of frequencies when they are spaced.
      down_block_types: one block per level, from fine to coarse: "CrossAttnDownBlock2D" or "DownBlock2D".
      mid_block_type: "UNetMidBlock2DCrossAttn", "UNetMidBlock2D" (one residual block) or None.
      up_block_types: one block per level, from coarse to fine: "CrossAttnUpBlock2D" or "UpBlock2D".
      block_out_channels: channels of each level, from fine to coarse.
      layers_per_block: residual blocks per level on the way down (one more on the way up).
      downsample_padding: padding of the strided convolution: 1 on every side, or 0 for one row at the bottom and one
        column at the right.
      mid_block_scale_factor: the mid block's sums are divided by it.
      act_fn: activation of the residual blocks: "silu" ("swish"), "mish", "gelu" or "relu".
      norm_num_groups: groups of every group norm.
      norm_eps: epsilon of the residual blocks' norms and of the last; transformers have their own.
      cross_attention_dim: channels of the context.
      transformer_layers_per_block: transformer blocks in each transformer, for all levels or for each.
      attention_head_dim: the number of heads, for all levels or for each. (The name is an old mistake of the files.)
      use_linear_projection: whether files hold the transformers' projections as linear layers.

    Raises:
      ValueError: an option is not supported or two options contradict each other.

    Example:
      >>> config = UNetConditionConfig(block_out_channels=(32, 64), norm_num_groups=8,
      ...                              down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
      ...                              up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
      >>> config.downsampling, UNetConditionConfig.from_dict(config.to_dict()) == config
      (2, True)
    """

    sample_size: Annotated[int | tuple[int, int] | None, each(_POSITIVE), each(_MOST)] = None
    in_channels: Annotated[int, _POSITIVE, _MOST] = 4
    out_channels: Annotated[int, _POSITIVE, _MOST] = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: Annotated[tuple[str, ...], each(one_of("CrossAttnDownBlock2D", "DownBlock2D"))] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    mid_block_type: Annotated[str | None, one_of(*_MID_BLOCKS)] = "UNetMidBlock2DCrossAttn"
    up_block_types: Annotated[tuple[str, ...], each(one_of("CrossAttnUpBlock2D", "UpBlock2D"))] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
    block_out_channels: Annotated[tuple[int, ...], each(_POSITIVE), each(_MOST)] = (320, 640, 1280, 1280)
    layers_per_block: Annotated[int, _POSITIVE, at_most(64)] = 2
    downsample_padding: Annotated[int, one_of(0, 1)] = 1
    mid_block_scale_factor: Annotated[float, at_least(1e-6)] = 1
    act_fn: Annotated[str, one_of("silu", "swish", "mish", "gelu", "relu")] = "silu"
    norm_num_groups: Annotated[int, _POSITIVE, _MOST] = 32
    norm_eps: Annotated[float, at_least(0, says="not be negative")] = 1e-5
    cross_attention_dim: Annotated[int, _POSITIVE, _MOST] = 1280
    transformer_layers_per_block: Annotated[int | tuple[int, ...], each(_POSITIVE), each(at_most(64))] = 1
    attention_head_dim: Annotated[int | tuple[int, ...], each(_POSITIVE), each(_MOST)] = 8
    use_linear_projection: bool = False

    def __post_init__(self):
        check_fields(self)
        levels = len(self.block_out_channels)
        if not 1 <= levels <= 16:
            raise ValueError(f"block_out_channels may have 1 to 16 levels, got {levels}.")
        for name in ("down_block_types", "up_block_types", "transformer_layers_per_block", "attention_head_dim"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(f"{name} must have one entry for each of the {levels} levels, got {len(value)}.")
        for i, channels in enumerate(self.block_out_channels):
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels[{i}] = {channels} must be a multiple of norm_num_groups = "
                    f"{self.norm_num_groups}."
                )
            if channels < self.heads(i):
                raise ValueError(f"attention_head_dim = {self.heads(i)} heads are more than {channels} channels.")
        for a, b in zip(self.block_out_channels, self.block_out_channels[1:], strict=False):
            if (a + b) % self.norm_num_groups:
                raise ValueError(f"block_out_channels: {a} + {b} must be a multiple of norm_num_groups.")

    @property
    def downsampling(self) -> int:
        """The factor between the finest and the coarsest level: heights and widths must be multiples of it."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return 4 * self.block_out_channels[0]

    def heads(self, level: int) -> int:
        """Heads of the attentions of a level, counted from the finest."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, int) else heads[level]

    def transformer_blocks(self, level: int) -> int:
        """Blocks of each transformer of a level, counted from the finest."""
        blocks = self.transformer_layers_per_block
        return blocks if isinstance(blocks, int) else blocks[level]

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> UNetConditionConfig:
        """Read the content of a diffusers config.json.

        Args:
          d: the file's mapping. Keys that begin with an underscore are diffusers' own bookkeeping and are skipped.

        Returns:
          The config.

        Raises:
          ValueError: the file is for another class, has a key that is not an option of `UNet2DConditionModel`, or asks
            for something that is not supported.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        given = options(d, "UNet2DConditionModel", [*known, *_OFF, *_IDLE])
        for name, allowed in _OFF.items():
            if given.pop(name, allowed[0]) not in allowed:
                raise ValueError(f"{name} must be {allowed[0]!r}: cmjax has no other, got {d[name]!r}.")
        return cls(**{name: value for name, value in given.items() if name not in _IDLE})

    def to_dict(self) -> dict[str, Any]:
        """Write the mapping of a diffusers config.json: every option, lists for tuples, and the class name."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {"_class_name": "UNet2DConditionModel", **values}
