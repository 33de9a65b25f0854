"""Captioned pictures that stay in their files: folders, tar shards and parquet files, by number, in any order."""

from cmjax.io.captioned.opening import open_captions
from cmjax.io.captioned.source import CaptionedPicture, CaptionedSource

__all__ = ["CaptionedPicture", "CaptionedSource", "open_captions"]
