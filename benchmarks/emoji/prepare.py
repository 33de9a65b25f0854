"""Choose the pictograms: `prepare.py emoji.npz pictograms.npz` keeps the subjects of the grammar, in all four styles.

emoji.npz has `png` (all files end to end), `offsets`, `names` and `styles`; see benchmarks/README.md.
"""

from __future__ import annotations

import io
import sys

import numpy as np
from captions import SUBJECTS
from PIL import Image

STYLES = ("fluent-flat", "fluent", "noto", "noto-v1")


def main(source: str, target: str) -> None:
    """Write u8[subjects, styles, 64, 64, 4]."""
    files = np.load(source)
    where = {(str(n), str(s)): i for i, (n, s) in enumerate(zip(files["names"], files["styles"], strict=True))}
    rgba = np.zeros((len(SUBJECTS), len(STYLES), 64, 64, 4), np.uint8)
    for i, (_, _, pictogram) in enumerate(SUBJECTS):
        for j, style in enumerate(STYLES):
            k = where[pictogram, style]
            data = files["png"][files["offsets"][k] : files["offsets"][k + 1]].tobytes()
            rgba[i, j] = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    np.savez_compressed(target, rgba=rgba)


if __name__ == "__main__":
    main(*sys.argv[1:])
