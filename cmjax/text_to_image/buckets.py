"""Pictures of many sizes in batches of one size: buckets of about one area, and the crop that fits a picture to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from cmjax._numerics import whole

__all__ = ["Fitted", "bucket_sizes", "fit_to", "nearest_buckets"]


def bucket_sizes(
    size: tuple[int, int],
    *,
    step: int = 64,
    most: float = 2.0,
    pictures: np.ndarray | None = None,
    least: int = 1,
) -> tuple[tuple[int, int], ...]:
    """Choose sizes for pictures of many aspect ratios: (H, W) of at most the area of `size`, from tall to wide.

    Each has sides that are multiples of `step`, and one that is as long as the area allows.

    Args:
      size: (H, W) of pictures that the network is for; only the area counts.
      step: a multiple of the pixels of a latent, such as 8, and of what the network halves its latents to.
      most: the largest ratio of the longer side to the shorter one.
      pictures: sizes of pictures, i[N, 2], such as `CaptionedSource.sizes`. Then buckets that would have fewer than
        `least` of them are left out, the emptiest first, and their pictures go to the nearest ones that stay.
      least: of pictures in a bucket; a batch, so that no picture comes twice in one.

    Returns:
      The sizes.

    Raises:
      ValueError: step is no positive number, most is below 1, the area has no room for step x step, or there are fewer
        than `least` pictures.

    Example:
      >>> bucket_sizes((512, 512), step=128)
      ((640, 384), (512, 512), (384, 640))
      >>> pictures = np.array([[400, 300], [900, 600], [300, 400], [300, 300]])
      >>> bucket_sizes((512, 512), step=128, pictures=pictures, least=2)
      ((640, 384), (512, 512))

    References:
      Podell et al., SDXL, 2023, section 2.3 (training on several aspect ratios).
    """
    step, area = whole("step", step, 1), size[0] * size[1]
    if most < 1 or area < step * step:
        raise ValueError(f"most must be at least 1 and {step} x {step} within the area {area}, got most = {most}.")
    found = set()
    for one in range(step, int((area * most) ** 0.5) + 1, step):
        other = area // one // step * step
        if other and max(one, other) <= most * min(one, other):
            found |= {(one, other), (other, one)}
    best = [s for s in found if not any(s != o and s[0] <= o[0] and s[1] <= o[1] for o in found)]
    sizes = sorted(best, key=lambda s: (s[1] / s[0], s))
    if pictures is None:
        return tuple(sizes)
    known = np.asarray(pictures)
    known = known[(known > 0).all(axis=1)]
    if len(known) < least:
        raise ValueError(f"least is {least}, but there are {len(known)} pictures: use a smaller batch.")
    while True:
        counts = np.bincount(nearest_buckets(known, sizes), minlength=len(sizes))
        if counts.min() >= least:
            return tuple(sizes)
        # the emptiest; of several the one that is farthest from a square
        ratios = [abs(np.log(width / height)) for height, width in sizes]
        sizes.pop(min(range(len(sizes)), key=lambda i: (counts[i], -ratios[i])))


def nearest_buckets(sizes: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Find for each picture the bucket whose aspect ratio is nearest, on a logarithmic scale: i64[N].

    Args:
      sizes: of pictures, i[N, 2], positive.
      buckets: their sizes, (H, W).

    Example:
      >>> nearest_buckets(np.array([[300, 300], [200, 900]]), [(640, 384), (512, 512), (384, 640)])
      array([1, 2])
    """
    own, shapes = np.asarray(sizes, np.float64).reshape(-1, 2), np.asarray(buckets, np.float64)
    ratios, known = np.log(own[:, 1] / own[:, 0]), np.log(shapes[:, 1] / shapes[:, 0])
    return np.abs(ratios[:, None] - known).argmin(axis=1)


class Fitted(NamedTuple):
    """A picture u8[H, W, C] in the size of its bucket, and what Stable Diffusion XL is told of it, i32[6].

    These are, in pixels: the height and width of the picture that it was made from; the top and left of the crop, after
    the picture was resized; and the height and width of the bucket.
    """

    image: np.ndarray
    sizes: np.ndarray


def fit_to(image: np.ndarray, size: tuple[int, int]) -> Fitted:
    """Resize a picture without aliasing until it covers a size, and crop its middle.

    Args:
      image: u8[h, w, 3].
      size: (H, W).

    Returns:
      The picture u8[H, W, 3], and the sizes.

    Example:
      >>> fit_to(np.zeros((40, 30, 3), np.uint8), (64, 64)).sizes.tolist()
      [40, 30, 10, 0, 64, 64]
    """
    (height, width), (own_height, own_width) = size, image.shape[:2]
    scale = max(height / own_height, width / own_width)
    covers = max(height, round(own_height * scale)), max(width, round(own_width * scale))
    top, left = (covers[0] - height) // 2, (covers[1] - width) // 2
    told = np.array([own_height, own_width, top, left, height, width], np.int32)
    if covers == (own_height, own_width):
        return Fitted(np.ascontiguousarray(image[top : top + height, left : left + width]), told)
    down, along = own_height / covers[0], own_width / covers[1]
    box = (left * along, top * down, (left + width) * along, (top + height) * down)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, box=box)
    return Fitted(np.asarray(resized), told)
