"""From the command line to a frozen dataclass of `options`. Nothing here imports JAX, so that mistakes are quick."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

from cmjax._version import __version__
from cmjax.cli import help_texts, options
from cmjax.cli.options import GROUPS, Options, SampleOptions, TrainOptions

__all__ = ["parse", "parse_distributed"]

_COMMANDS: dict[str, tuple[type[Options], str]] = {
    "sample": (options.SampleOptions, "Draw images from a model"),
    "edit": (options.EditOptions, "Fill, colour, enlarge, clean or redraw pictures with a model"),
    "train": (options.TrainOptions, "Train a few-step model on images"),
    "evaluate": (options.EvaluateOptions, "Measure how good a model's images are, beside real ones"),
    "export": (options.ExportOptions, "Compile a model and its sampler into one portable program"),
    "inspect": (options.InspectOptions, "Show a model's configs, its size, and the path that a sampler takes"),
    "lora": (options.LoRAOptions, "Look into LoRA files, merge them into models, extract them"),
    "convert": (options.ConvertOptions, "Convert PyTorch weights (.pt, .bin) to a model's folder"),
}
_EDITS: dict[str, type[Options]] = {
    "inpaint": options.InpaintOptions,
    "colorize": options.ColorizeOptions,
    "upscale": options.UpscaleOptions,
    "denoise": options.DenoiseOptions,
    "stroke": options.StrokeOptions,
    "interpolate": options.InterpolateOptions,
}
_LORAS: dict[str, type[Options]] = {
    "inspect": options.InspectLoRAOptions,
    "merge": options.MergeLoRAOptions,
    "extract": options.ExtractLoRAOptions,
}
_TASKS = {"edit": _EDITS, "lora": _LORAS}


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read the command line.

    Args:
      argv: the arguments without the program's name; None for those of the process.

    Returns:
      The options of the command, an instance of its class in `options`.

    Raises:
      SystemExit: `--help` or `--version` was asked for, or there is a mistake; argparse has printed all.

    Example:
      >>> parse(["sample", "--steps", "4"]).steps
      4
    """
    values = vars(_parser().parse_args(argv))
    kind = values.pop("options")
    named = {field.name for field in options.flags(kind)}
    return kind(**{name: _frozen(name, value) for name, value in values.items() if name in named})


def parse_distributed(argv: Sequence[str]) -> SampleOptions | TrainOptions | None:
    """Read `--distributed` and `--wait` alone off a command line that has a mistake elsewhere; None without them."""
    command = argv[0] if argv else ""
    if command not in ("sample", "train"):
        return None
    quiet, kind = _Quiet(add_help=False), SampleOptions if command == "sample" else TrainOptions
    _add_options(quiet, kind, only=("distributed", "wait"))
    try:
        values = vars(quiet.parse_known_args(argv[1:])[0])
    except ValueError:
        return None
    if values["distributed"] is None:
        return None
    told: dict[str, Any] = {"distributed": tuple(values["distributed"]), "wait": values["wait"]}
    return SampleOptions(**told) if kind is SampleOptions else TrainOptions(data="", out="", **told)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence."""

    def error(self, message: str) -> NoReturn:
        message = message[:1].lower() + message[1:]
        if message.endswith("required: IMAGE"):
            message += "; pictures come first, before options of several values"
        self.exit(2, f"{self.prog}: {message}{'' if message.endswith('.') else '.'} See {self.prog} --help.\n")


class _Quiet(argparse.ArgumentParser):
    """An argument parser that raises."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    top = _Parser(prog="cmjax", description="Draw images in a few steps with JAX, and train models that can.")
    top.add_argument("--version", action="version", version=f"cmjax {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    formatter = argparse.RawDescriptionHelpFormatter
    for name, (kind, about) in _COMMANDS.items():
        examples = help_texts.of(name)
        command = commands.add_parser(
            name, help=about, description=f"{about}.", epilog=examples, formatter_class=formatter
        )
        if name not in _TASKS:
            _add_options(command, kind)
            continue
        tasks = command.add_subparsers(dest="task", metavar="TASK", required=True, parser_class=_Parser)
        for task, (text, shown) in help_texts.TASKS[name].items():
            added = tasks.add_parser(task, help=text, description=f"{text}.", epilog=shown, formatter_class=formatter)
            _add_options(added, _TASKS[name][task])
    return top


def _add_options(parser: argparse.ArgumentParser, kind: type[Options], only: Sequence[str] | None = None) -> None:
    """Add the fields of a command's class, under the headings of `GROUPS`."""
    fields = [field for field in options.flags(kind) if only is None or field.name in only]
    used = {field.metadata["group"] for field in fields}
    groups: dict[str | None, Any] = {None: parser}
    groups |= {title: parser.add_argument_group(title) for title in GROUPS if title in used}
    exclusive: dict[str, Any] = {}
    for field in fields:
        said: dict[str, Any] = dict(field.metadata)
        place = groups[said.pop("group")]
        if name := said.pop("exclusive"):
            place = exclusive.setdefault(name, None) or place.add_mutually_exclusive_group()
            exclusive[name] = place
        required = field.default is dataclasses.MISSING
        if not required:
            said["default"] = field.default
        if said.pop("positional", False):
            place.add_argument(field.name, **said)
            continue
        flag = said.pop("flag", f"--{field.name.replace('_', '-')}")
        place.add_argument(flag, dest=field.name, required=required, **said)
    parser.set_defaults(options=kind)


def _frozen(name: str, value: Any) -> Any:
    """Make a tuple of a list; numbers between commas join those between spaces."""
    if name in ("timesteps", "sigmas") and value is not None:
        return tuple(number for part in value for number in part)
    return tuple(value) if isinstance(value, list) else value
