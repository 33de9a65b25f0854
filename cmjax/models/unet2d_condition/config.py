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
# Transformer blocks: one number for all levels; or one for each; or one for each layer of a level.
_Depths = int | tuple[int | tuple[int, ...], ...]
_MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)

# Options that networks here do not have, at the values that switch them off. Some files hold null for false.
_OFF: dict[str, tuple[Any, ...]] = {
    "dropout": (0.0, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False, None),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False, None),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False, None),
}
# Options that have one entry for each level, where they are lists.
_BY_LEVEL = (
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "only_cross_attention",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "attention_head_dim",
)
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
      layers_per_block: residual blocks on the way down (one more on the way up), for all levels or for each.
      downsample_padding: padding of the strided convolution: 1 on every side, or 0 for one row at the bottom and one
        column at the right.
      mid_block_scale_factor: the mid block's sums are divided by it.
      act_fn: activation of the residual blocks: "silu" ("swish"), "mish", "gelu" or "relu".
      norm_num_groups: groups of every group norm.
      norm_eps: epsilon of the residual blocks' norms and of the last; transformers have their own.
      cross_attention_dim: channels of the context.
      only_cross_attention: whether pixels attend to the context twice and not to each other, for all levels or for
        each; the middle attends to both.
      transformer_layers_per_block: transformer blocks in each transformer: for all levels, for each, or for each layer
        of a level. The way up takes them in reverse order, the middle those of the last level.
      reverse_transformer_layers_per_block: the same for the way up, from coarse to fine, where it differs; it is needed
        where layers of a level differ.
      attention_head_dim: the number of heads, for all levels or for each. (The name is an old mistake of the files.)
      use_linear_projection: whether files hold the transformers' projections as linear layers.
      time_cond_proj_dim: width in which a guidance scale is embedded (latent consistency models); None for networks
        that are not told it.
      addition_embed_type: "text_time" for networks that are told a text in one row and the sizes of pictures (Stable
        Diffusion XL), or None.
      addition_time_embed_dim: width in which each size is embedded.
      projection_class_embeddings_input_dim: width of that row and of all sizes together.

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
    layers_per_block: Annotated[int | tuple[int, ...], each(_POSITIVE), each(at_most(64))] = 2
    downsample_padding: Annotated[int, one_of(0, 1)] = 1
    mid_block_scale_factor: Annotated[float, at_least(1e-6)] = 1
    act_fn: Annotated[str, one_of("silu", "swish", "mish", "gelu", "relu")] = "silu"
    norm_num_groups: Annotated[int, _POSITIVE, _MOST] = 32
    norm_eps: Annotated[float, at_least(0, says="not be negative")] = 1e-5
    cross_attention_dim: Annotated[int, _POSITIVE, _MOST] = 1280
    only_cross_attention: bool | tuple[bool, ...] = False
    transformer_layers_per_block: Annotated[_Depths, each(_POSITIVE), each(at_most(64))] = 1
    reverse_transformer_layers_per_block: Annotated[_Depths | None, each(_POSITIVE), each(at_most(64))] = None
    attention_head_dim: Annotated[int | tuple[int, ...], each(_POSITIVE), each(_MOST)] = 8
    use_linear_projection: bool = False
    time_cond_proj_dim: Annotated[int | None, at_least(4), _MOST] = None
    addition_embed_type: Annotated[str | None, one_of(None, "text_time")] = None
    addition_time_embed_dim: Annotated[int | None, _POSITIVE, _MOST] = None
    projection_class_embeddings_input_dim: Annotated[int | None, _POSITIVE, _MOST] = None

    def __post_init__(self):
        check_fields(self)
        levels = len(self.block_out_channels)
        if not 1 <= levels <= 16:
            raise ValueError(f"block_out_channels may have 1 to 16 levels, got {levels}.")
        for name in _BY_LEVEL:
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
        self._check_depths()
        if self.addition_embed_type is not None:
            for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
                if getattr(self, name) is None:
                    raise ValueError(f'{name} must be given where addition_embed_type is "text_time", got None.')

    def _check_depths(self) -> None:
        """Hold lists of transformer blocks to the layers that have transformers."""
        down, up = self.transformer_layers_per_block, self.reverse_transformer_layers_per_block
        if up is None and isinstance(down, tuple) and any(isinstance(entry, tuple) for entry in down):
            raise ValueError(
                "reverse_transformer_layers_per_block must be given where transformer_layers_per_block has lists in "
                "it: the way up has one layer more than the way down."
            )
        last = len(self.block_out_channels) - 1
        for name, depths, kinds, more in (
            ("transformer_layers_per_block", down, self.down_block_types, 0),
            ("reverse_transformer_layers_per_block", up, self.up_block_types, 1),
        ):
            for i, entry in enumerate(depths if isinstance(depths, tuple) else ()):
                layers = self.layers(last - i if more else i) + more
                if isinstance(entry, tuple) and kinds[i].startswith("CrossAttn") and len(entry) != layers:
                    raise ValueError(
                        f"{name}[{i}] must have one entry for each of the {layers} layers, got {list(entry)}."
                    )
        if isinstance(down, tuple) and down[-1] == ():
            raise ValueError("transformer_layers_per_block must not end in an empty list: the middle reads its first.")

    @property
    def downsampling(self) -> int:
        """The factor between the finest and the coarsest level. Heights and widths need not be multiples of it."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return 4 * self.block_out_channels[0]

    def heads(self, level: int) -> int:
        """Heads of the attentions of a level, counted from the finest."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, int) else heads[level]

    def layers(self, level: int) -> int:
        """Residual blocks of a level on the way down, counted from the finest; the way up has one more."""
        layers = self.layers_per_block
        return layers if isinstance(layers, int) else layers[level]

    def down_depths(self, level: int) -> tuple[int, ...]:
        """Transformer blocks of each layer of a level on the way down; () where it has no transformers."""
        if not self.down_block_types[level].startswith("CrossAttn"):
            return ()
        return _depths(self.transformer_layers_per_block, level, self.layers(level))

    def up_depths(self, level: int) -> tuple[int, ...]:
        """Transformer blocks of each layer of a level on the way up; () where it has no transformers."""
        place = len(self.block_out_channels) - 1 - level
        if not self.up_block_types[place].startswith("CrossAttn"):
            return ()
        if self.reverse_transformer_layers_per_block is None:
            return _depths(self.transformer_layers_per_block, level, self.layers(level) + 1)
        return _depths(self.reverse_transformer_layers_per_block, place, self.layers(level) + 1)

    @property
    def mid_depth(self) -> int:
        """Transformer blocks in the middle."""
        return _depths(self.transformer_layers_per_block, -1, 1)[0]

    def attends_to_context_only(self, level: int) -> bool:
        """Whether the pixels of a level do not attend to each other."""
        only = self.only_cross_attention
        return only if isinstance(only, bool) else only[level]

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
        for name in ("center_input_sample", "use_linear_projection", "only_cross_attention"):
            if name in given and given[name] is None:
                given[name] = False
        for name, allowed in _OFF.items():
            if given.pop(name, allowed[0]) not in allowed:
                raise ValueError(f"{name} must be {allowed[0]!r}: cmjax has no other, got {d[name]!r}.")
        return cls(**{name: value for name, value in given.items() if name not in _IDLE})

    def to_dict(self) -> dict[str, Any]:
        """Write the mapping of a diffusers config.json: every option, lists for tuples, and the class name."""
        values = {field.name: _listed(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"_class_name": "UNet2DConditionModel", **values}


def _depths(depths: _Depths, place: int, layers: int) -> tuple[int, ...]:
    """What a config says of the layers at a place, as one number for each."""
    entry = depths if isinstance(depths, int) else depths[place]
    return (entry,) * layers if isinstance(entry, int) else entry


def _listed(value: Any) -> Any:
    return list(map(_listed, value)) if isinstance(value, tuple) else value
