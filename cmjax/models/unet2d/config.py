"""Network configs: the content of a diffusers `UNet2DModel` config.json as one frozen dataclass.

Field names and defaults are the file's keys; an option that the network here does not have is refused by name,
before any weight is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from cmjax._bounds import Rule, at_least, at_most, each, one_of, positive, within
from cmjax._typed import check_fields
from cmjax.models.config_files import options
from cmjax.models.unet2d.block_types import check_blocks, check_norms, num_groups, without_prefix

__all__ = ["UNetConfig"]

ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")

# Beyond these a damaged file is likelier than such a network, and making it would take all memory.
_MOST_LEVELS, _MOST_BLOCKS = 16, 256
_POSITIVE, _MOST, _MOST_ROWS = positive("be a positive integer"), at_most(1 << 16), at_most(1 << 24)

# Where an option acts nowhere, diffusers looks at it nowhere and takes anything; here a value that no network could
# have is refused all the same.
_MID_BLOCKS = one_of("UNetMidBlock2D", None, why="UNet2DModel has no other; diffusers builds 'UNetMidBlock2D' for any")
_HALVES = one_of("conv", "resnet", None, why="with any other an attention block would not halve its picture")
_DOUBLES = one_of("conv", "resnet", None, why="with any other an attention block would not double its picture")
_PADDINGS = one_of(0, 1, why="with any other, pictures of the two ways would differ in size")
_SHIFTS = one_of(
    "default",
    "scale_shift",
    why="'ada_group' is what K blocks do by themselves, and 'spatial' is for decoders of latent pictures",
)
_CLASS_EMBEDS = one_of(None, "timestep", "identity", why="diffusers would build a network without classes")
_ACTIVATIONS = Rule(f"be one of {', '.join(map(repr, ACTIVATIONS))}", lambda name: name.lower() in ACTIVATIONS)
_DIVISOR = Rule("not be 0: the mid block's sums are divided by it", lambda factor: factor != 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Describe a `UNet`; names and defaults are the keys of a diffusers `UNet2DModel` config.json.

    Args:
      sample_size: pixels a side (or height and width) the network is meant for; the network takes any size that its
        downsampling divides.
      in_channels: channels of x.
      out_channels: channels of the output.
      center_input_sample: give the network 2 x - 1 in place of x.
      time_embedding_type: how t is embedded: "positional" (sines and cosines of t), "fourier" (of
        random frequencies of ln t, and the output is divided by t, which must be above 0), or "learned" (a table over
        integer t; fractions are cut off).
      time_embedding_dim: width of the time embedding; None means 4 x block_out_channels[0].
      freq_shift: subtracted from the number of frequencies when they are spaced (positional).
      flip_sin_to_cos: cosines first (positional).
      down_block_types: one block per level, from fine to coarse: "DownBlock2D", "AttnDownBlock2D",
        "ResnetDownsampleBlock2D"; of NCSN++, "SkipDownBlock2D" or "AttnSkipDownBlock2D"; or all of them "KDownBlock2D".
        A "UNetRes" before a name, as in old files, is ignored.
      mid_block_type: "UNetMidBlock2D" or None.
      up_block_types: one block per level, from coarse to fine: "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D";
        "SkipUpBlock2D" or "AttnSkipUpBlock2D"; or all of them "KUpBlock2D".
      block_out_channels: channels of each level, from fine to coarse.
      layers_per_block: residual blocks per level on the way down (one more on the way up).
      mid_block_scale_factor: the mid block's sums are divided by it.
      downsample_padding: padding of the strided convolution: 1 on every side, or 0 for one row at the bottom and
        one column at the right.
      downsample_type: how an "AttnDownBlock2D" halves the picture: "conv" (also None) or "resnet".
      upsample_type: how an "AttnUpBlock2D" doubles it: "conv" (also None) or "resnet".
      dropout: rate of the dropout inside every residual block; it acts only when the network is given a key.
      act_fn: activation of the residual blocks: "silu" ("swish"), "mish", "gelu" or "relu", in capitals or not.
      attention_head_dim: channels of one attention head; None means a single head.
      norm_num_groups: groups of every group norm, except in skip blocks, which have min(channels // 4, 32), and in K
        blocks, which have one group per 32 channels. None means min(channels // 4, 32), if all blocks are skip or K
        blocks.
      attn_norm_num_groups: groups of the mid attention's norm; None means norm_num_groups, and with
        resnet_time_scale_shift="scale_shift" it means that the mid attention has no norm at all.
      norm_eps: epsilon of every group norm.
      resnet_time_scale_shift: "default" (the time embedding is added) or "scale_shift" (it scales and shifts).
      add_attention: whether the mid block has attention.
      class_embed_type: none (a table of num_class_embeds rows, if that is given), "timestep" (the class is a number,
        embedded as t is) or "identity" (the condition is already an embedding).
      num_class_embeds: number of classes, or None for an unconditional network; no effect with a class_embed_type.
      num_train_timesteps: rows of the learned time table.
      target_embed_type: "timestep" for a network that is told where a step lands too, as `s=`, in an embedding like
        that of the time; None for others. diffusers does not know this key. (A network whose class_embed_type is
        "timestep" can be told s in place of a class.)

    Raises:
      ValueError: an option is not supported or two options contradict each other.

    Example:
      >>> config = UNetConfig(block_out_channels=(32, 64), norm_num_groups=8,
      ...                     down_block_types=("DownBlock2D", "AttnDownBlock2D"),
      ...                     up_block_types=("AttnUpBlock2D", "UpBlock2D"))
      >>> config.downsampling
      2
      >>> UNetConfig.from_dict(config.to_dict()) == config
      True
    """

    sample_size: Annotated[int | tuple[int, int] | None, each(_POSITIVE), each(_MOST)] = None
    in_channels: Annotated[int, _POSITIVE, _MOST] = 3
    out_channels: Annotated[int, _POSITIVE, _MOST] = 3
    center_input_sample: bool = False
    time_embedding_type: Annotated[str, one_of("positional", "fourier", "learned")] = "positional"
    time_embedding_dim: Annotated[int | None, _POSITIVE, _MOST] = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: Annotated[str | None, _MID_BLOCKS] = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: Annotated[tuple[int, ...], each(_POSITIVE), each(_MOST)] = (224, 448, 672, 896)
    layers_per_block: Annotated[int, _POSITIVE, _MOST] = 2
    mid_block_scale_factor: Annotated[float, _DIVISOR] = 1
    downsample_padding: Annotated[int, _PADDINGS] = 1
    downsample_type: Annotated[str | None, _HALVES] = "conv"
    upsample_type: Annotated[str | None, _DOUBLES] = "conv"
    dropout: Annotated[float, within("[0, 1)")] = 0.0
    act_fn: Annotated[str, _ACTIVATIONS] = "silu"
    attention_head_dim: Annotated[int | None, _POSITIVE, _MOST] = 8
    norm_num_groups: Annotated[int | None, _POSITIVE, _MOST] = 32
    attn_norm_num_groups: Annotated[int | None, _POSITIVE, _MOST] = None
    norm_eps: Annotated[float, at_least(0, says="not be negative")] = 1e-5
    resnet_time_scale_shift: Annotated[str, _SHIFTS] = "default"
    add_attention: bool = True
    class_embed_type: Annotated[str | None, _CLASS_EMBEDS] = None
    num_class_embeds: Annotated[int | None, _POSITIVE, _MOST_ROWS] = None
    num_train_timesteps: Annotated[int | None, _POSITIVE, _MOST_ROWS] = None
    target_embed_type: Annotated[str | None, one_of(None, "timestep")] = None

    def __post_init__(self):
        check_fields(self)
        self._check_kinds()
        self._check_sizes()

    def _check_kinds(self):
        check_blocks(
            self.down_block_types,
            self.up_block_types,
            levels=len(self.block_out_channels),
            in_channels=self.in_channels,
            out_channels=self.out_channels,
        )
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise ValueError("time_embedding_type='learned' needs num_train_timesteps, the rows of its table.")

    def _check_sizes(self):
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels or levels == 0:
                raise ValueError(
                    f"{name} must have one entry for each of the {levels} block_out_channels, "
                    f"got {len(getattr(self, name))}."
                )
        if levels * self.layers_per_block > _MOST_BLOCKS or levels > _MOST_LEVELS:
            raise ValueError(
                f"block_out_channels may have {_MOST_LEVELS} levels at most, of {_MOST_BLOCKS} blocks in all, got "
                f"{levels} with layers_per_block = {self.layers_per_block}."
            )
        check_norms(
            self.down_kinds,
            self.up_kinds,
            self.block_out_channels,
            layers=self.layers_per_block,
            groups=self.norm_num_groups,
            has_mid_block=self.mid_block_type is not None,
        )
        for i, channels in enumerate(self.block_out_channels):
            if self.attention_head_dim is not None and self._attends(i) and channels < self.attention_head_dim:
                raise ValueError(
                    f"attention_head_dim = {self.attention_head_dim} is more than block_out_channels[{i}] = {channels}."
                )
        half = self.block_out_channels[0] // 2
        if self.time_embedding_type == "positional" and self.freq_shift >= half:
            raise ValueError(
                f"freq_shift = {self.freq_shift} must be less than the {half} frequencies (half of the first of "
                "block_out_channels)."
            )
        groups = self.attn_norm_num_groups
        if groups is not None and self._mid_attends and self.block_out_channels[-1] % groups:
            raise ValueError(
                f"block_out_channels[-1] = {self.block_out_channels[-1]} must be a multiple of attn_norm_num_groups = "
                f"{groups}."
            )

    @property
    def _mid_attends(self) -> bool:
        return self.mid_block_type is not None and self.add_attention

    def _attends(self, level: int) -> bool:
        """Whether there is an attention at a level, counted from the finest."""
        kinds = (self.down_kinds[level], self.up_kinds[::-1][level])
        is_last = level == len(self.block_out_channels) - 1
        return any(kind.startswith("Attn") for kind in kinds) or (is_last and self._mid_attends)

    @property
    def down_kinds(self) -> tuple[str, ...]:
        """The down_block_types, without the prefix that the first files have."""
        return tuple(map(without_prefix, self.down_block_types))

    @property
    def up_kinds(self) -> tuple[str, ...]:
        """The up_block_types, without the prefix that the first files have."""
        return tuple(map(without_prefix, self.up_block_types))

    @property
    def downsampling(self) -> int:
        """The factor between the finest and the coarsest level: heights and widths must be multiples of it."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def conditional(self) -> bool:
        """Whether the network takes a condition."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def is_told_target(self) -> bool:
        """Whether the network takes s, where a step lands."""
        return self.target_embed_type is not None or self.class_embed_type == "timestep"

    def num_groups(self, channels: int) -> int:
        """Groups of a norm over so many channels, outside skip and K blocks."""
        return num_groups(channels, self.norm_num_groups)

    @property
    def mid_attention_groups(self) -> int | None:
        """Groups of the mid attention's norm, or None where it has no norm."""
        if self.attn_norm_num_groups is None and self.resnet_time_scale_shift == "default":
            return self.num_groups(self.block_out_channels[-1])
        return self.attn_norm_num_groups

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> UNetConfig:
        """Read the content of a diffusers config.json.

        Args:
          d: the file's mapping. Keys that begin with an underscore are diffusers' own bookkeeping and are skipped, as
            are those that other tools leave there (`cmjax.models.config_files`).

        Returns:
          The config.

        Raises:
          ValueError: the file is for another class, has a key that is not an option of `UNet2DModel`, or asks for
            something that is not supported.
        """
        return cls(**options(d, "UNet2DModel", (field.name for field in dataclasses.fields(cls))))

    def to_dict(self) -> dict[str, Any]:
        """Write the mapping of a diffusers config.json: every option, lists for tuples, and the class name."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        if self.target_embed_type is None:  # diffusers warns of keys that it does not know
            del values["target_embed_type"]
        return {"_class_name": "UNet2DModel", **values}
