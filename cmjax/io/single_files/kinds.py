"""The kinds of Stable Diffusion that come as files of one piece: by which widths each is known, and what it is."""

from __future__ import annotations

import dataclasses

from cmjax.io.single_files.shapes import UNetShape

__all__ = ["KINDS", "Kind", "kind_by_shape", "pipeline_class", "said"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a kind of Stable Diffusion is known by, and what the shapes of its tensors do not say.

    Args:
      name: of the kind.
      width: channels of the UNet's finest level.
      context: the width of its context.
      label: the width of the text in one row and the sizes that it is told, or None.
      pipeline: what the class in diffusers' model_index.json begins with.
      encoders: whose text encoders it has, in order: "openai" or "openclip".
      scaling_factor: by which latents are multiplied.
      sample_size: latents a side that it was trained on.
      heads: of every attention; None for as many as have `head_width` channels.
      head_width: of a head: of the UNet, without `heads`, and of the text encoders.
      groups: of every group norm.
      size_width: in which each size is embedded.
      without_last: whether the last layer of OpenCLIP's encoder is left out.
    """

    name: str
    width: int
    context: int
    label: int | None
    pipeline: str
    encoders: tuple[str, ...]
    scaling_factor: float
    sample_size: int
    heads: int | None = None
    head_width: int = 64
    groups: int = 32
    size_width: int = 256
    without_last: bool = False

    @property
    def is_refiner(self) -> bool:
        """Whether the network refines what another one drew."""
        return self.label is not None and len(self.encoders) == 1

    @property
    def widths(self) -> tuple[int, int, int | None]:
        """By which it is known."""
        return self.width, self.context, self.label


_XL = {"pipeline": "StableDiffusionXL", "scaling_factor": 0.13025, "sample_size": 128}
KINDS: tuple[Kind, ...] = (
    Kind("Stable Diffusion 1", 320, 768, None, "StableDiffusion", ("openai",), 0.18215, 64, heads=8),
    Kind("Stable Diffusion 2", 320, 1024, None, "StableDiffusion", ("openclip",), 0.18215, 64, without_last=True),
    Kind("Stable Diffusion XL", 320, 2048, 2816, encoders=("openai", "openclip"), **_XL),
    Kind("Stable Diffusion XL's refiner", 384, 1280, 2560, encoders=("openclip",), **_XL),
)

# Depths of the layers of the way down, and of the middle, of networks that were made from others by leaving blocks out.
_BY_DEPTH = {
    ((0, 0), (2, 2), (10, 10), 10): "",
    ((0, 0), (2, 2), (4, 4), 0): "SSD-1B",
    ((0, 0), (1, 1), (2, 2), 0): "Segmind-Vega",
    ((0,), (2,), (5,), None): "KOALA-700M",
    ((0,), (2,), (6,), 6): "KOALA-1B",
    ((0, 0), (4, 4), (4, 4), (0, 0), 4): "",
    ((1, 1), (1, 1), (1, 1), (0, 0), 1): "",
    ((1,), (1,), (1,), (0,), 1): "BK-SDM base",
    ((1,), (1,), (1,), (0,), None): "BK-SDM small",
    ((1,), (1,), (1,), None): "BK-SDM tiny",
}


def kind_by_shape(shape: UNetShape, kinds: tuple[Kind, ...]) -> Kind:
    """Find the kind of a UNet by its widths.

    Raises:
      ValueError: it is none of the kinds; what was found is said, and nothing is guessed.
    """
    found = shape.widths[0], shape.context, shape.label
    for kind in kinds:
        if kind.widths == found:
            break
    else:
        told = "" if shape.label is None else f", told a row of {shape.label}"
        known = "; ".join(
            f"{kind.name} {kind.width}, {kind.context}{'' if kind.label is None else f', {kind.label}'}"
            for kind in kinds
        )
        raise ValueError(
            f"its UNet begins with {shape.widths[0]} channels and attends to a context of width {shape.context}{told}, "
            f"which is no Stable Diffusion that cmjax knows ({known}). A folder in diffusers' layout says in its "
            "configs what shapes do not."
        )
    if shape.in_channels not in (4, 8, 9) or shape.out_channels != 4:
        other = {5: ": it draws by depth", 7: ": it enlarges pictures"}.get(shape.in_channels, "")
        raise ValueError(
            f"its UNet ({kind.name}) maps {shape.in_channels} channels to {shape.out_channels}{other}; cmjax reads "
            "those that map 4, 8 (edits by instructions) or 9 (inpainting) channels to 4."
        )
    return kind


def said(kind: Kind, shape: UNetShape) -> str:
    """Say what a network is, in words."""
    depths = (*shape.down, shape.middle)
    smaller = _BY_DEPTH.get(depths, "of other depths")
    purpose = {9: "for inpainting", 8: "for edits by instructions"}.get(shape.in_channels, "")
    told = "told the guidance scale (LCM)" if shape.guidance is not None else ""
    return ", ".join(one for one in (kind.name, smaller, purpose, told) if one)


def pipeline_class(kind: Kind, shape: UNetShape) -> str:
    """Name the class of diffusers that draws with a network."""
    if kind.is_refiner:
        return f"{kind.pipeline}Img2ImgPipeline"
    if shape.in_channels == 8:
        return f"{kind.pipeline}InstructPix2PixPipeline"
    if shape.in_channels == 9:
        return f"{kind.pipeline}InpaintPipeline"
    if shape.guidance is not None and kind.label is None:
        return "LatentConsistencyModelPipeline"
    return f"{kind.pipeline}Pipeline"
