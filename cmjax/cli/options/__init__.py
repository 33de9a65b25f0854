"""The options of every command: one frozen dataclass a command, one field an option.

A field made by `option` is read from the command line (`parser`); a plain field is not, and holds a fixed value.
Options that several commands share are inherited. Nothing here imports JAX, so that mistakes are answered at once.
"""

from cmjax.cli.options.edit import (
    ColorizeOptions,
    DenoiseOptions,
    EditOptions,
    InpaintOptions,
    InterpolateOptions,
    PictureOptions,
    StrokeOptions,
    UpscaleOptions,
)
from cmjax.cli.options.evaluate import EvaluateOptions
from cmjax.cli.options.field import GROUPS, Options, flags
from cmjax.cli.options.files import ConvertOptions, ExportOptions, InspectOptions
from cmjax.cli.options.lora import ExtractLoRAOptions, InspectLoRAOptions, LoRAOptions, MergeLoRAOptions
from cmjax.cli.options.sample import SampleOptions
from cmjax.cli.options.shared import ModelOptions, PartsOptions, PathOptions, TextOptions
from cmjax.cli.options.train import TrainOptions

__all__ = [
    "ColorizeOptions",
    "ConvertOptions",
    "DenoiseOptions",
    "EditOptions",
    "EvaluateOptions",
    "ExportOptions",
    "ExtractLoRAOptions",
    "GROUPS",
    "InpaintOptions",
    "InspectLoRAOptions",
    "InspectOptions",
    "InterpolateOptions",
    "LoRAOptions",
    "MergeLoRAOptions",
    "ModelOptions",
    "Options",
    "PartsOptions",
    "PathOptions",
    "PictureOptions",
    "SampleOptions",
    "StrokeOptions",
    "TextOptions",
    "TrainOptions",
    "UpscaleOptions",
    "flags",
]
