"""The content of a diffusers `AutoencoderKL` config.json as one frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from cmjax._bounds import Rule, at_most, each, one_of, positive
from cmjax._typed import check_fields
from cmjax.models.config_files import options

__all__ = ["AutoencoderConfig"]

_POSITIVE, _MOST = positive("be a positive integer"), at_most(1 << 16)
_NOT_ZERO = Rule("not be 0: latents are divided by it", lambda factor: factor != 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Describe an `Autoencoder`; names and defaults are the keys of a diffusers `AutoencoderKL` config.json.

    Args:
      in_channels: channels of pictures.
      out_channels: channels of decoded pictures.
      down_block_types: "DownEncoderBlock2D" for each level.
      up_block_types: "UpDecoderBlock2D" for each level.
      block_out_channels: channels of each level, from fine to coarse.
      layers_per_block: residual blocks per level of the encoder (one more in the decoder).
      act_fn: activation of the residual blocks.
      latent_channels: channels of latents.
      norm_num_groups: groups of every group norm.
      sample_size: pixels a side that it is meant for.
      scaling_factor: a diffusion model sees latents times this number.
      shift_factor: subtracted from latents before that; None for nothing.
      latents_mean: mean of the latents by channel; subtracted in place of `shift_factor`.
      latents_std: their standard deviation by channel; latents are divided by it, and multiplied by `scaling_factor`.
      force_upcast: whether float16 is too narrow for it.
      use_quant_conv: whether a convolution of one pixel follows the encoder.
      use_post_quant_conv: whether one precedes the decoder.
      mid_block_add_attention: whether the middles have an attention.

    Raises:
      ValueError: an option is not supported or two options contradict each other.

    Example:
      >>> config = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4,
      ...     down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
      >>> config.downsampling, AutoencoderConfig.from_dict(config.to_dict()) == config
      (2, True)
    """

    in_channels: Annotated[int, _POSITIVE, _MOST] = 3
    out_channels: Annotated[int, _POSITIVE, _MOST] = 3
    down_block_types: Annotated[tuple[str, ...], each(one_of("DownEncoderBlock2D"))] = ("DownEncoderBlock2D",)
    up_block_types: Annotated[tuple[str, ...], each(one_of("UpDecoderBlock2D"))] = ("UpDecoderBlock2D",)
    block_out_channels: Annotated[tuple[int, ...], each(_POSITIVE), each(_MOST)] = (64,)
    layers_per_block: Annotated[int, _POSITIVE, at_most(64)] = 1
    act_fn: Annotated[str, one_of("silu", "swish", "mish", "gelu", "relu")] = "silu"
    latent_channels: Annotated[int, _POSITIVE, _MOST] = 4
    norm_num_groups: Annotated[int, _POSITIVE, _MOST] = 32
    sample_size: Annotated[int | tuple[int, int] | None, each(_POSITIVE), each(_MOST)] = 32
    scaling_factor: Annotated[float, _NOT_ZERO] = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: Annotated[tuple[float, ...] | None, each(_NOT_ZERO)] = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self):
        check_fields(self)
        levels = len(self.block_out_channels)
        if not 1 <= levels <= 16:
            raise ValueError(f"block_out_channels may have 1 to 16 levels, got {levels}.")
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name} must have one entry for each of the {levels} levels, got {len(getattr(self, name))}."
                )
        for i, channels in enumerate(self.block_out_channels):
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels[{i}] = {channels} must be a multiple of norm_num_groups = "
                    f"{self.norm_num_groups}."
                )
        for name in ("latents_mean", "latents_std"):
            value = getattr(self, name)
            if value is not None and len(value) != self.latent_channels:
                raise ValueError(f"{name} must have {self.latent_channels} numbers, got {len(value)}.")
        if (self.latents_mean is None) != (self.latents_std is None):
            given, other = ("mean", "std") if self.latents_std is None else ("std", "mean")
            raise ValueError(f"latents_{other} must be given beside latents_{given}: a model uses both or none.")
        if self.latents_mean is not None and self.shift_factor:
            raise ValueError(f"shift_factor must be null beside latents_mean, got {self.shift_factor}.")

    @property
    def downsampling(self) -> int:
        """Pixels of a picture for one of its latents, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> AutoencoderConfig:
        """Read the content of a diffusers config.json.

        Raises:
          ValueError: the file is for another class, has a key that is not an option of `AutoencoderKL`, or asks for
            something that is not supported.
        """
        return cls(**options(d, "AutoencoderKL", (field.name for field in dataclasses.fields(cls))))

    def to_dict(self) -> dict[str, Any]:
        """Write the mapping of a diffusers config.json: every option, lists for tuples, and the class name."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {"_class_name": "AutoencoderKL", **values}
