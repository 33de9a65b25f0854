"""The content of a diffusers `AutoencoderTiny` config.json as one frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from cmjax._bounds import Rule, at_least, at_most, each, one_of, positive
from cmjax._typed import check_fields
from cmjax.models.config_files import options

__all__ = ["AutoencoderTinyConfig"]

_POSITIVE, _MOST = positive("be a positive integer"), at_most(1 << 16)
_BLOCKS = (each(at_least(0)), each(at_most(64)))
_NOT_ZERO = Rule("not be 0: latents are divided by it", lambda factor: factor != 0)
# diffusers writes the channels of the decoder a second time, under this name, and reads it nowhere.
_WRITTEN_TWICE = "block_out_channels"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderTinyConfig:
    """Describe an `AutoencoderTiny`; names and defaults are the keys of a diffusers `AutoencoderTiny` config.json.

    Args:
      in_channels: channels of pictures.
      out_channels: channels of decoded pictures.
      encoder_block_out_channels: channels of each level of the encoder, from fine to coarse; all the same.
      decoder_block_out_channels: channels of each level of the decoder, from coarse to fine; all the same.
      act_fn: activation between convolutions; blocks end with "relu" whatever it is.
      upsample_fn: how pictures are doubled: "nearest".
      latent_channels: channels of latents.
      upsampling_scaling_factor: how much larger each level of the decoder is: 2.
      num_encoder_blocks: blocks of each level of the encoder.
      num_decoder_blocks: blocks of each level of the decoder.
      latent_magnitude: latents lie in about [-latent_magnitude, latent_magnitude]; for storing them as bytes.
      latent_shift: for storing them as bytes, too.
      force_upcast: whether float16 is too narrow for it.
      scaling_factor: a diffusion model sees latents times this number.
      shift_factor: subtracted from latents before that.

    Raises:
      ValueError: an option is not supported or two options contradict each other.

    Example:
      >>> config = AutoencoderTinyConfig()
      >>> config.downsampling, AutoencoderTinyConfig.from_dict(config.to_dict()) == config
      (8, True)
    """

    in_channels: Annotated[int, _POSITIVE, _MOST] = 3
    out_channels: Annotated[int, _POSITIVE, _MOST] = 3
    encoder_block_out_channels: Annotated[tuple[int, ...], each(_POSITIVE), each(_MOST)] = (64, 64, 64, 64)
    decoder_block_out_channels: Annotated[tuple[int, ...], each(_POSITIVE), each(_MOST)] = (64, 64, 64, 64)
    act_fn: Annotated[str, one_of("silu", "swish", "mish", "gelu", "relu")] = "relu"
    upsample_fn: Annotated[str, one_of("nearest")] = "nearest"
    latent_channels: Annotated[int, _POSITIVE, _MOST] = 4
    upsampling_scaling_factor: Annotated[int, one_of(2)] = 2
    num_encoder_blocks: Annotated[tuple[int, ...], *_BLOCKS] = (1, 3, 3, 3)
    num_decoder_blocks: Annotated[tuple[int, ...], *_BLOCKS] = (3, 3, 3, 1)
    latent_magnitude: Annotated[float, _NOT_ZERO] = 3
    latent_shift: float = 0.5
    force_upcast: bool = False
    scaling_factor: Annotated[float, _NOT_ZERO] = 1.0
    shift_factor: float | None = 0.0

    def __post_init__(self):
        check_fields(self)
        levels = len(self.num_encoder_blocks)
        if not 1 <= levels <= 16:
            raise ValueError(f"num_encoder_blocks may have 1 to 16 levels, got {levels}.")
        for name in ("num_decoder_blocks", "encoder_block_out_channels", "decoder_block_out_channels"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name} must have one entry for each of the {levels} levels of num_encoder_blocks, got "
                    f"{len(getattr(self, name))}."
                )
        for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
            channels = getattr(self, name)
            if len(set(channels)) > 1:
                raise ValueError(f"{name} must be the same number for every level, got {list(channels)}.")

    @property
    def downsampling(self) -> int:
        """Pixels of a picture for one of its latents, along each side."""
        return 2 ** (len(self.num_encoder_blocks) - 1)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> AutoencoderTinyConfig:
        """Read the content of a diffusers config.json.

        Raises:
          ValueError: the file is for another class, has a key that is not an option of `AutoencoderTiny`, or asks for
            something that is not supported.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        given = options(d, "AutoencoderTiny", [*known, _WRITTEN_TWICE])
        given.pop(_WRITTEN_TWICE, None)
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Write the mapping of a diffusers config.json: every option, lists for tuples, and the class name."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {"_class_name": "AutoencoderTiny", **values}
