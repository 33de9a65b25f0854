"""The command `cmjax sample | edit | train | inspect | convert`: what may be said to it, and how mistakes are answered.

Arguments are parsed before JAX is imported, so `--help` and mistakes are answered at once. Each command is one file
beside this one, with a function `run(args)`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from cmjax import recipes
from cmjax._version import __version__
from cmjax.cli.errors import UsageError

__all__ = ["main", "parser"]

_DEFAULT_MODEL = "fashion-mnist-cm"
_SAMPLERS = ("cm", "tcd", "lcm")
_DTYPES = ("float32", "bfloat16", "float16")

_SAMPLE_EXAMPLES = """\
examples:
  cmjax sample                                    8 images of each class in 2 steps, to samples.png
  cmjax sample --steps 1 --seed 7                 one step, other images
  cmjax sample --labels Sneaker Bag 4 --num 30    ten each of three classes, by name or number (or Sneaker,Bag,4)
  cmjax sample --timesteps 22 0                   two noise levels by hand (cm: 0 is the noisiest)
  cmjax sample --sampler tcd --steps 4 --eta 0.3  another sampler on the same model
  cmjax sample --trajectory                       every step of every image, side by side
  cmjax sample --num 50000 --out samples.npz      arrays: images u8[N, H, W, C], labels i32[N]
  cmjax sample --model openai/diffusers-cd_imagenet64_l2 --labels 145 --out penguins/

Image i depends on the seed and on i alone, its label included: more images, another batch size
or more devices change none of those that were there before.
"""

_EDIT_EXAMPLES = """\
examples:
  cmjax edit inpaint boot.png --mask hole.png --labels "Ankle boot"    fill what is white in a mask
  cmjax edit upscale tiny.png --labels Bag                             enlarge; each pixel stays a block's mean
  cmjax edit interpolate --seeds 3 8 --labels Sneaker                  from one picture to another
  cmjax edit inpaint --help                                            what one task takes, with examples

Results go to --out: a .png shows, for each picture, what was given, what of it is known, and the
results side by side; a folder holds each result at its own size, NAME-1.png ..., and strip.png.
Any model and sampler will do: nothing is trained. Pictures must have the model's size (--resize
crops and resizes them) and may be PNG or JPEG files of any colour mode.
"""

_TASKS = {
    "inpaint": (
        "Fill holes in pictures; every other pixel stays as it is",
        """\
examples:
  cmjax edit inpaint boot.png --mask hole.png --labels "Ankle boot"    white in the mask is filled
  cmjax edit inpaint boot.png --labels 9                               transparent pixels are filled
  cmjax edit inpaint a.png b.png --mask m.png --labels Bag --num 5     five ways each, one mask for both
  cmjax edit inpaint photo.jpg --mask soft.png --soft --resize --model M --out filled/

A mask has its picture's size. Grey masks need --soft, which blends picture and model there: then
a grey pixel is not kept exactly.
""",
    ),
    "colorize": (
        "Colour grey pictures; every pixel's luminance stays as it is",
        """\
examples:
  cmjax edit colorize old.jpg --resize --model openai/diffusers-cd_cat256_l2 --num 4
  cmjax edit colorize a.png b.png --model M --out coloured/

The model must make colour pictures. A colour picture is turned to grey first.
""",
    ),
    "upscale": (
        "Enlarge pictures; every pixel stays the mean of its block",
        """\
examples:
  cmjax edit upscale tiny.png --labels Bag                   7x7 to a model's 28x28: the factor, 4, is found
  cmjax edit upscale bag.png --factor 4 --resize --labels 8  shrinks it first, to see what comes back

The result has the model's size.
""",
    ),
    "denoise": (
        "Remove noise of a known level, in one model call",
        """\
examples:
  cmjax edit denoise grainy.png --sigma 0.2 --labels Coat    noise of 0.2 * 127.5 = 25 grey levels

The model must be a consistency model.
""",
    ),
    "stroke": (
        "Redraw pictures: keep what noise leaves to be seen, draw the rest (SDEdit)",
        """\
examples:
  cmjax edit stroke sketch.png --labels Sneaker                          noise of 5.38, then of 2.24
  cmjax edit stroke sketch.png --labels Sneaker --sigmas 2.24            less noise keeps more
  cmjax edit stroke sketch.png --labels 7 --strength 0.4 --steps 4       0 keeps all ... 1 nothing
  cmjax edit stroke sketch.png --labels 7 --sampler tcd --strength 0.7
""",
    ),
    "interpolate": (
        "Go from one picture to another, by their seeds or classes",
        """\
examples:
  cmjax edit interpolate --seeds 3 8 --labels Sneaker               eight pictures from seed 3's to seed 8's
  cmjax edit interpolate --seeds 3 --labels Sneaker "Ankle boot"    one seed, from class to class
  cmjax edit interpolate --seeds 1 2 3 4 --labels Bag --num 6       a grid between four corners

A seed's picture is the first one of `cmjax sample --seed S`: without --labels for several classes
the first end is that picture itself. In a folder, pictures are 000.png ... and the grid strip.png.
""",
    ),
}

_TRAIN_EXAMPLES = """\
recipes (cmjax/recipes; a TOML file of your own may change any number):
{recipes}

examples:
  cmjax train ect --data fashion.npz --out runs/fashion     arrays images u8[N, H, W] and labels
  cmjax train ect --data photos/ --out runs/photos          a folder of images, or one folder a class
  cmjax train --data photos/ --out runs/photos --resume     go on where the run stopped
  cmjax train ect --data photos/ --out runs/tuned --init M  tune a model's weights further
  cmjax sample --model runs/fashion/model                   draw from what was trained

The run's folder holds model/ (what `cmjax sample --model` takes), samples/ (a grid at every
checkpoint), run.json (recipe, network, noise levels), log.jsonl and curves.png, and checkpoints/
(what --resume goes on from, to the same bits as a run that never stopped).
"""

_INSPECT_EXAMPLES = """\
examples:
  cmjax inspect                                     the model inside the package
  cmjax inspect checkpoints/mine --steps 4          its configs, parameters, and the path of four steps
  cmjax inspect --sampler tcd --steps 4 --eta 0.3   where TCD lands at each step
"""

_CONVERT_EXAMPLES = """\
examples:
  cmjax convert cd_imagenet64_l2.pt cd-imagenet64      a published checkpoint of openai/consistency_models
  cmjax convert ema_0.9999_600000.pt mine --num-train-timesteps 151     one of your own runs of it
  cmjax convert edm_cat256_ema.pt teacher              the diffusion model behind a published one
  cmjax convert downloads/old new                      a diffusers folder with .bin weights, as safetensors
  cmjax convert downloads/old small --dtype float16    half the size
  cmjax convert ddpm-cifar10-32 teacher                a network of another sampler, for cmjax.io.load_unet
  cmjax sample --model cd-imagenet64                   draw from what was converted

Nothing in a .pt or .bin file is executed, and PyTorch is not needed. A .pt file carries no config: the
network is read off the shapes of its tensors, and N off a published file's name. OUT is a folder in
diffusers' layout, which cmjax and diffusers load; it appears whole or not at all. Where cmjax has no
sampler for a folder's scheduler, that config is kept, and cmjax.io.load_unet loads the network.
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence."""

    def error(self, message: str) -> NoReturn:
        message = message[:1].lower() + message[1:]
        if message.endswith("required: IMAGE"):
            message += "; pictures come first, before options of several values"
        self.exit(2, f"{self.prog}: {message}{'' if message.endswith('.') else '.'} See {self.prog} --help.\n")


def parser() -> argparse.ArgumentParser:
    """Build the command's argument parser.

    Example:
      >>> parser().parse_args(["sample", "--steps", "4"]).steps
      4
    """
    top = _Parser(prog="cmjax", description="Draw images in a few steps with JAX, and train models that can.")
    top.add_argument("--version", action="version", version=f"cmjax {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, text: str, examples: str) -> argparse.ArgumentParser:
        formatter = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=text, description=f"{text}.", epilog=examples, formatter_class=formatter)

    _add_sample(command("sample", "Draw images from a model in one compiled call", _SAMPLE_EXAMPLES))
    _add_edit(command("edit", "Fill, colour, enlarge, clean or redraw pictures with a model", _EDIT_EXAMPLES))
    _add_train(command("train", "Train a consistency model on images", _train_examples()))
    _add_inspect(
        command("inspect", "Show a model's configs, its size, and the path a sampler takes", _INSPECT_EXAMPLES)
    )
    _add_convert(
        command("convert", "Read weights of PyTorch (.pt, .bin) and write a model's folder", _CONVERT_EXAMPLES)
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      argv: the arguments without the program's name; None for those of the process.

    Returns:
      The exit status: 0; 2 for a mistake in what was asked, after one sentence on standard error; 130 when interrupted.
    """
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:  # --help, --version, or a mistake: argparse has said all
        return int(stop.code or 0)
    name = f"cmjax {args.command} {args.task}" if args.command == "edit" else f"cmjax {args.command}"
    try:
        importlib.import_module(f"cmjax.cli.{args.command}").run(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone: no more of it, and no complaint at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        print(f"{name}: nothing more can be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    return 0


def _add_path_options(command: argparse.ArgumentParser, steps: str = "2") -> Any:
    """Add which sampler takes which path; returns the group of what says so, of which one may be given."""
    command.add_argument("--sampler", choices=_SAMPLERS, help="default: the one the model was made for")
    path = command.add_mutually_exclusive_group()
    path.add_argument("--steps", type=_count, metavar="N", help=f"model calls for an image (default {steps})")
    path.add_argument(
        "--timesteps",
        type=_numbers,
        nargs="+",
        metavar="T",
        help="the path by hand, strictly decreasing; for cm, indices of the grid of noise levels",
    )
    command.add_argument(
        "--eta", type=float, metavar="E", help="tcd only: 0 deterministic ... 1 fresh noise (default 0.3)"
    )
    return path


def _add_model_options(command: argparse.ArgumentParser) -> None:
    """Add which weights are read, and how they are run."""
    command.add_argument(
        "--model",
        default=_DEFAULT_MODEL,
        metavar="M",
        help="a folder, a model of the package, or a hub id (default %(default)s)",
    )
    _add_variant(command)
    command.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="what the network computes in (default %(default)s)"
    )
    command.add_argument("--no-compile-cache", action="store_true", help="do not keep compiled programs between runs")


def _add_variant(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--variant", metavar="V", help="which of the model's weights: fp16 reads those in half precision"
    )


def _add_sample(command: argparse.ArgumentParser) -> None:
    _add_model_options(command)
    _add_path_options(command)
    command.add_argument(
        "--labels", nargs="+", metavar="L", help="classes by name or number (default: all, or the first ten)"
    )
    command.add_argument("--num", type=_count, metavar="N", help="images in all (default: 8 of each class)")
    command.add_argument("--batch", type=_count, metavar="B", help="images computed at once (default: up to 128)")
    command.add_argument("--seed", type=_seed, default=0, metavar="S", help="which images (default %(default)s)")
    command.add_argument(
        "--out",
        type=_path,
        default="samples.png",
        metavar="PATH",
        help="a .png grid, an .npz of arrays, or a folder for .png files (default %(default)s)",
    )
    command.add_argument(
        "--trajectory", action="store_true", help="show x0 after every step: each image becomes a strip"
    )


def _add_edit(command: argparse.ArgumentParser) -> None:
    tasks = command.add_subparsers(dest="task", metavar="TASK", required=True, parser_class=_Parser)
    formatter = argparse.RawDescriptionHelpFormatter
    for name, (text, examples) in _TASKS.items():
        task = tasks.add_parser(name, help=text, description=f"{text}.", epilog=examples, formatter_class=formatter)
        if name == "interpolate":
            _add_interpolate(task)
        else:
            _add_pictures(task, name)
        task.add_argument(
            "--out",
            type=_path,
            default="edited.png",
            metavar="PATH",
            help="a .png that shows all, or a folder for .png files (default %(default)s)",
        )
        _add_model_options(task)


def _add_pictures(task: argparse.ArgumentParser, name: str) -> None:
    """Add what a task on pictures takes."""
    task.add_argument("images", nargs="+", metavar="IMAGE", help="PNG or JPEG files")
    if name == "inpaint":
        task.add_argument("--mask", nargs="+", metavar="FILE", help="white where to fill: one for all, or one each")
        task.add_argument("--soft", action="store_true", help="take a mask's grey levels as weights of a mixture")
    if name == "upscale":
        task.add_argument("--factor", type=_count, metavar="F", help="how many times larger (default: what fits)")
    task.add_argument("--resize", action="store_true", help="crop and resize pictures to the size that is needed")
    task.add_argument("--labels", nargs="+", metavar="L", help="class of all pictures, or of each, by name or number")
    if name == "denoise":
        task.add_argument(
            "--sigma",
            type=float,
            required=True,
            metavar="S",
            help="the noise's standard deviation, for pictures in [-1, 1]: grey levels / 127.5",
        )
        task.set_defaults(sampler="cm", steps=None, timesteps=None, eta=None, num=1, seed=0)
        return
    task.add_argument("--num", type=_count, default=3, metavar="N", help="results a picture (default %(default)s)")
    task.add_argument("--seed", type=_seed, default=0, metavar="S", help="which results (default %(default)s)")
    path = _add_path_options(task, "4, cm 2" if name == "stroke" else "8, cm the whole grid")
    if name == "stroke":
        path.add_argument(
            "--sigmas",
            type=_numbers,
            nargs="+",
            metavar="S",
            help="cm only: noise levels, the first is added to the picture (default 5.38 2.24)",
        )
        task.add_argument(
            "--strength", type=float, metavar="R", help="how much is redrawn, in (0, 1] (default, with --steps: 0.6)"
        )


def _add_interpolate(task: argparse.ArgumentParser) -> None:
    task.add_argument(
        "--seeds", type=_seed, nargs="+", default=[0, 1], metavar="S", help="two ends or four corners (default 0 1)"
    )
    task.add_argument("--labels", nargs="+", metavar="L", help="one class, or two to go from the one to the other")
    task.add_argument("--num", type=_count, default=8, metavar="N", help="pictures a side (default %(default)s)")
    task.add_argument("--rows", type=_count, metavar="R", help="of a grid (default: --num)")
    task.add_argument("--columns", type=_count, metavar="C", help="of a row or a grid (default: --num)")
    _add_path_options(task)


def _train_examples() -> str:
    names = "\n".join(f"  {name:<5} {about}" for name, about in recipes.built_in().items())
    return _TRAIN_EXAMPLES.format(recipes=names)


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe by name, or a TOML file (default: ect)")
    command.add_argument(
        "--data", required=True, metavar="DATA", help="an .npz file of images (and labels), or a folder of images"
    )
    command.add_argument("--teacher", metavar="M", help="the model to distil: a folder, a name, or a hub id")
    command.add_argument("--out", type=_path, required=True, metavar="DIR", help="the run's folder")
    command.add_argument("--steps", type=_count, metavar="N", help="training steps in all (default: the recipe's)")
    command.add_argument("--batch", type=_count, metavar="B", help="images a step (default: the recipe's)")
    command.add_argument("--seed", type=_seed, metavar="S", help="of weights, noise and data order (default 0)")
    network = command.add_mutually_exclusive_group()
    network.add_argument(
        "--channels",
        type=_count,
        nargs="+",
        metavar="C",
        help="the network's width at each level, finest first; multiples of 8",
    )
    network.add_argument("--network", metavar="FILE", help="the network as a diffusers UNet2DModel config.json")
    network.add_argument("--init", metavar="M", help="start from a model's weights: a folder, a name, or a hub id")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the network computes in; weights and sums stay float32 (default %(default)s)",
    )
    command.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    command.add_argument(
        "--label-names", nargs="+", metavar="NAME", help="names of the classes, in order; stored with the model"
    )
    command.add_argument(
        "--checkpoint-every",
        type=_count,
        default=500,
        metavar="N",
        help="steps between checkpoints (default %(default)s)",
    )
    command.add_argument("--no-compile-cache", action="store_true", help="do not keep compiled programs between runs")


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        nargs="?",
        default=_DEFAULT_MODEL,
        metavar="MODEL",
        help="a folder, a model of the package, or a hub id (default %(default)s)",
    )
    _add_variant(command)
    _add_path_options(command)


def _add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="IN", help="a .pt file of openai/consistency_models, or a diffusers folder")
    command.add_argument("out", metavar="OUT", help="the folder to write")
    command.add_argument("--dtype", choices=_DTYPES, help="what weights are stored in (default: float32)")
    file_only = command.add_argument_group("what a .pt file does not say (a folder says it itself)")
    file_only.add_argument(
        "--num-train-timesteps",
        type=_count,
        metavar="N",
        help="the grid of noise levels (default: as published with a file of that name, else 40)",
    )
    file_only.add_argument(
        "--sample-size",
        type=_count,
        metavar="S",
        help="pixels a side (default: 256, 128 or 64, whichever goes with the channels)",
    )
    file_only.add_argument("--head-dim", type=_count, metavar="D", help="channels of an attention head (default 64)")


def _numbers(text: str) -> list[float]:
    """Read `22`, `22,0` or `7.5`; whole numbers stay ints, as samplers on integer grids want them."""
    try:
        return [int(part) if part.isdecimal() else float(part) for part in text.split(",") if part]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers, got {text}.") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}.")
    return int(text)


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text.")
    return text


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1, got {text}.")
    return int(text)
