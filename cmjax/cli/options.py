"""What may be said to `cmjax`: commands and their options. Nothing here imports JAX, so that mistakes are quick."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from cmjax._version import __version__
from cmjax.cli import help_texts

__all__ = ["parser"]

_DEFAULT_MODEL = "fashion-mnist-cm"
_SAMPLERS = ("cm", "tcd", "lcm")
_DTYPES = ("float32", "bfloat16", "float16")


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

    def command(name: str, text: str, shown: str) -> argparse.ArgumentParser:
        formatter = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=text, description=f"{text}.", epilog=shown, formatter_class=formatter)

    _add_sample(command("sample", "Draw images from a model in one compiled call", help_texts.SAMPLE))
    _add_edit(command("edit", "Fill, colour, enlarge, clean or redraw pictures with a model", help_texts.EDIT))
    _add_train(command("train", "Train a few-step model on images", help_texts.train()))
    _add_evaluate(command("evaluate", "Measure how good a model's images are, beside real ones", help_texts.EVALUATE))
    _add_export(
        command("export", "Write a model and its sampler as one program, for CPU, GPU and TPU", help_texts.EXPORT)
    )
    _add_inspect(
        command("inspect", "Show a model's configs, its size, and the path a sampler takes", help_texts.INSPECT)
    )
    _add_convert(
        command("convert", "Read weights of PyTorch (.pt, .bin) and write a model's folder", help_texts.CONVERT)
    )
    return top


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


def _add_model_options(command: argparse.ArgumentParser, *, or_artifact: bool = False) -> None:
    """Add which weights are read, and how they are run."""
    source: Any = command
    if or_artifact:
        source = command.add_mutually_exclusive_group()
        source.add_argument(
            "--artifact",
            type=_path,
            metavar="DIR",
            help="in the model's place: what cmjax export wrote (a program: only if you trust its maker)",
        )
    source.add_argument(
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
    _add_model_options(command, or_artifact=True)
    _add_path_options(command)
    command.add_argument(
        "--labels", nargs="+", metavar="L", help="classes by name or number (default: all, or the first ten)"
    )
    command.add_argument("--num", type=_count, metavar="N", help="images in all (default: 8 of each class)")
    command.add_argument(
        "--batch", type=_count, metavar="B", help="images computed at once, on all devices (default: up to 128 on each)"
    )
    command.add_argument("--devices", type=_count, metavar="D", help="draw on the first D local devices (default: all)")
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
    many = command.add_argument_group(
        "many images (--out is a folder; the same command again goes on with what is missing)"
    )
    many.add_argument("--shard-size", type=_count, metavar="K", help="write numbered shards of K images (default 1000)")
    many.add_argument("--shard-format", choices=("npz", "png"), help="arrays, or a folder of pictures (default npz)")
    many.add_argument(
        "--distributed",
        nargs="*",
        metavar="WHO",
        help="be one of several processes, which share the shards: HOST:PORT of the first one, how many there are, and "
        "which this is, from 0; or nothing where Slurm, Open MPI or a TPU pod says so",
    )
    many.add_argument(
        "--wait", type=_count, default=300, metavar="S", help="seconds to wait for the others (default %(default)s)"
    )


def _add_edit(command: argparse.ArgumentParser) -> None:
    tasks = command.add_subparsers(dest="task", metavar="TASK", required=True, parser_class=_Parser)
    formatter = argparse.RawDescriptionHelpFormatter
    for name, (text, shown) in help_texts.TASKS.items():
        task = tasks.add_parser(name, help=text, description=f"{text}.", epilog=shown, formatter_class=formatter)
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


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe by name, or a TOML file (default: ect)")
    command.add_argument(
        "--data", required=True, metavar="DATA", help="an .npz file of images (and labels), or a folder of images"
    )
    command.add_argument(
        "--teacher",
        metavar="M",
        help="the model to distil: a folder, a name, or a hub id; the student begins as a copy of it, unless it has "
        "another network or --init",
    )
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
    network.add_argument(
        "--network",
        metavar="FILE",
        help="the network as a diffusers UNet2DModel config.json; its size, channels and classes follow the data",
    )
    network.add_argument("--init", metavar="M", help="start from a model's weights: a folder, a name, or a hub id")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what the network computes in; weights and sums stay float32 (default float32)",
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


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        nargs="?",
        default=_DEFAULT_MODEL,
        metavar="MODEL",
        help="a folder, a model of the package, or a hub id (default %(default)s)",
    )
    _add_variant(command)
    _add_path_options(command)
    command.add_argument("--data", type=_path, metavar="DATA", help="real images: an .npz file, or a folder of images")
    command.add_argument(
        "--split",
        choices=("test", "train"),
        default="test",
        help="which images of an .npz file that holds both (default %(default)s)",
    )
    command.add_argument("--num", type=_count, metavar="N", help="images a seed (default: half the data, up to 10000)")
    command.add_argument("--batch", type=_count, metavar="B", help="images computed at once (default: up to 128)")
    command.add_argument(
        "--seed", type=_seed, nargs="+", default=[0], metavar="S", help="which images; several for mean and spread"
    )
    command.add_argument(
        "--features",
        type=_path,
        default="fashion-mnist-classifier",
        metavar="F",
        help="the extractor: %(default)s (default), or package.module:function of your own",
    )
    command.add_argument(
        "--neighbours", type=_count, default=3, metavar="K", help="k of precision and recall (default %(default)s)"
    )
    command.add_argument(
        "--reference",
        type=_path,
        metavar="FILE",
        help="statistics to measure the distance from, .npz with mu and sigma (default: half of the data)",
    )
    command.add_argument(
        "--save-statistics", type=_path, metavar="FILE", help="write mu and sigma of all the data, as .npz"
    )
    command.add_argument("--json", type=_path, metavar="FILE", help="also write all figures here")
    command.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="what the network computes in (default %(default)s)"
    )
    command.add_argument("--no-compile-cache", action="store_true", help="do not keep compiled programs between runs")


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=_path, metavar="MODEL", help="a folder, a model of the package, or a hub id")
    command.add_argument("out", type=_path, metavar="OUT", help="the folder to write")
    _add_variant(command)
    _add_path_options(command)
    command.add_argument(
        "--max-steps", type=_count, metavar="N", help="the most steps that may be asked of it (default: 8, or --steps)"
    )
    command.add_argument(
        "--platforms",
        nargs="+",
        choices=("cpu", "cuda", "rocm", "tpu"),
        default=["cpu", "cuda", "tpu"],
        metavar="P",
        help="what it will run on: %(choices)s (default: cpu cuda tpu)",
    )
    command.add_argument(
        "--weights",
        choices=("inside", "beside"),
        default="inside",
        help="in the program, or in a safetensors file beside it (default %(default)s; large ones are better beside)",
    )
    command.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="what the network computes in (default %(default)s)"
    )


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
    if int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be less than 2^31, got {text}.")
    return int(text)


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text.")
    return text


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1, got {text}.")
    return int(text)
