"""Pictures of any size as CLIP's encoder of pictures was trained on them: resized, cropped and scaled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from cmjax._bounds import at_most, positive
from cmjax._numerics import f32
from cmjax._typed import check_fields
from cmjax.types import Array

__all__ = ["Preprocessing"]

_SIDE = (positive("be a positive integer"), at_most(1 << 16))
_BICUBIC = 3  # Pillow's number
_A = -0.5  # of Keys' cubic, as Pillow takes it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize the shorter side with a bicubic filter, crop the centre, and scale the channels.

    Resizing widens the filter where it shrinks (antialias), along rows first, and rounds to 256 levels after each
    direction, as Pillow does: the numbers are those of transformers' `CLIPImageProcessor`, but for a level where a sum
    lies halfway between two. It is pure JAX, so that it runs in the program that draws.

    Args:
      size: pixels of the shorter side.
      crop: pixels a side of the square that is cut out.
      mean: of the channels in [0, 1], which is subtracted.
      std: of the channels, by which is divided.

    Raises:
      ValueError: a value is out of range, or the crop is larger than the picture.

    Example:
      >>> Preprocessing(size=4, crop=4)(jnp.zeros((1, 8, 16, 3))).shape
      (1, 4, 4, 3)

    References:
      Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981, equation 8.
    """

    size: Annotated[int, *_SIDE] = 224
    crop: Annotated[int, *_SIDE] = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        check_fields(self)
        if self.crop > self.size:
            raise ValueError(f"crop = {self.crop} must be at most size = {self.size}.")
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError(f"std must be positive, one for each of the {len(self.mean)} channels, got {self.std}.")

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Preprocessing:
        """Read the content of a preprocessor_config.json.

        Raises:
          ValueError: it leaves a step out, or resizes in another way.

        Example:
          >>> Preprocessing.from_dict({"size": {"shortest_edge": 336}, "crop_size": 336, "resample": 3}).crop
          336
        """
        if not isinstance(d, Mapping):
            raise ValueError(f"preprocessor_config.json must hold a JSON object, got a {type(d).__name__}.")
        steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
        if off := [step for step in steps if d.get(step) is False]:
            raise ValueError(f"preprocessor_config.json says {off[0]} = false; cmjax reads CLIP's, with all steps.")
        if d.get("resample", _BICUBIC) != _BICUBIC:
            raise ValueError(f"preprocessor_config.json must say resample = 3 (bicubic), got {d['resample']!r}.")
        values: dict[str, Any] = {}
        for name, key, word in (("size", "size", "shortest_edge"), ("crop", "crop_size", "height")):
            said = d.get(key)
            said = said.get(word) if isinstance(said, Mapping) else said
            if said is not None:
                values[name] = said
        for name in ("mean", "std"):
            if (said := d.get(f"image_{name}")) is not None:
                values[name] = tuple(said) if isinstance(said, list) else said
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Write the mapping of a preprocessor_config.json."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.size},
            "resample": _BICUBIC,
            "do_center_crop": True,
            "crop_size": {"height": self.crop, "width": self.crop},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }

    def __call__(self, images: Array) -> Array:
        """Prepare pictures.

        Args:
          images: f[B, H, W, C] in [-1, 1]; they are rounded to the 256 levels of a file first. Pictures of one channel
            are repeated.

        Returns:
          f32[B, crop, crop, C].

        Raises:
          ValueError: they have neither one channel nor as many as the mean.
        """
        channels = len(self.mean)
        if images.ndim != 4 or images.shape[-1] not in (1, channels):
            raise ValueError(f"images must be f[B, H, W, 1 or {channels}], got {list(images.shape)}.")
        levels = _rounded((f32(images) + 1.0) * 127.5)
        height, width = images.shape[1:3]
        short = min(height, width)
        new = [self.size if side == short else int(self.size * side / short) for side in (height, width)]
        if (height, width) != tuple(new):
            levels = _rounded(jnp.einsum("bhwc,vw->bhvc", levels, _bicubic(width, new[1]), precision="highest"))
            levels = _rounded(jnp.einsum("bhwc,uh->buwc", levels, _bicubic(height, new[0]), precision="highest"))
        top, left = ((side - self.crop) // 2 for side in new)
        levels = levels[:, top : top + self.crop, left : left + self.crop]
        mean, std = (np.asarray(value, np.float32) for value in (self.mean, self.std))
        return jnp.broadcast_to((levels / 255.0 - mean) / std, (*levels.shape[:3], channels))


def _rounded(levels: Array) -> Array:
    return jnp.clip(jnp.floor(levels + 0.5), 0, 255)


def _bicubic(old: int, new: int) -> np.ndarray:
    """The weights of each old pixel in each new one, f32[new, old]; rows add up to 1."""
    scale = old / new
    wide = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    distance = np.abs((np.arange(old) + 0.5 - centre[:, None]) / wide)
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = _A * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
