"""`cmjax convert`: weights of PyTorch in, a model's folder in diffusers' layout out."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.io import Checkpoint, read_config, read_pt
from cmjax.io.assembly import assemble
from cmjax.io.atomic import check_writable
from cmjax.io.configs import read_json
from cmjax.io.original import load_original
from cmjax.io.published import published
from cmjax.models import UNetConfig
from cmjax.samplers.cm import CMConfig

__all__ = ["run"]

_BIN = "diffusion_pytorch_model.bin"
_FILE_ONLY = ("num_train_timesteps", "sample_size", "head_dim")


def run(args: argparse.Namespace) -> None:
    """Read the weights of `args`, write the folder, and print what was done."""
    source, out = Path(args.source).expanduser(), Path(args.out).expanduser()
    _check_out(out)
    console = Console(stderr=True)
    with console.status(f"reading {escape(args.source)}") as status, jax.default_device(jax.devices("cpu")[0]):
        with bad_input():
            checkpoint, names = _read_folder(source, args) if source.is_dir() else (_read_file(source, args), None)
        status.update(f"writing {escape(args.out)}")
        with bad_input("OUT"):
            cmjax.save(checkpoint, out, label_names=names, dtype=args.dtype)
    _report(args, checkpoint, out)


def _check_out(out: Path) -> None:
    """Refuse what cannot be written, before anything is read."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"OUT: {out} is a file, not a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / "model_index.json").exists():
        raise UsageError(f"OUT: {out} holds other files than a model's; choose a new or empty folder.")
    with bad_input("OUT"):
        check_writable(out)


def _read_file(source: Path, args: argparse.Namespace) -> Checkpoint:
    given = {name: value for name in _FILE_ONLY if (value := getattr(args, name)) is not None}
    return load_original(source, **given)


def _read_folder(folder: Path, args: argparse.Namespace) -> tuple[Checkpoint, tuple[str, ...] | None]:
    """Read a model in diffusers' layout, be its weights safetensors or a pickle; and the names of its classes."""
    for name in _FILE_ONLY:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for a .pt file; {folder} says it itself in its configs.")
    weights = folder / "unet" / _BIN
    if any((folder / "unet").glob("*.safetensors")) or not weights.is_file():
        checkpoint = cmjax.load(folder)
    else:
        config = read_config(folder / "scheduler")
        network = UNetConfig.from_dict(read_json(folder / "unet" / "config.json"))
        checkpoint = Checkpoint(assemble(network, read_pt(weights)), config)
    return checkpoint, cmjax.io.label_names(folder)


def _report(args: argparse.Namespace, checkpoint: Checkpoint, out: Path) -> None:
    network, leaves = checkpoint.model.module.config, jax.tree.leaves(checkpoint.model)
    written = sum(path.stat().st_size for path in (out / "unet").glob("*.safetensors"))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("read", f"{escape(args.source)}: {sum(leaf.size for leaf in leaves):,} parameters")
    table.add_row("network", _levels(network))
    table.add_row("", _ends(network))
    table.add_row("sampler", _sampler(args, checkpoint.config))
    table.add_row("written", f"{escape(args.out)}: {written / 2**20:.1f} MiB of {args.dtype or 'float32'}")
    table.add_row("try", escape(f"cmjax sample --model {shlex.quote(args.out)}{_path(args)}"))
    Console(highlight=False).print(table)


def _levels(network: UNetConfig) -> str:
    """The network inside: widths, depth, attention."""
    channels = network.block_out_channels
    attends = [str(c) for c, kind in zip(channels, network.down_block_types, strict=True) if kind.startswith("Attn")]
    places = f" at {', '.join(attends)} channels and in the middle" if attends else " in the middle only"
    heads = f", attention{places}, heads of {network.attention_head_dim}" if network.add_attention else ""
    depth = network.layers_per_block
    return f"{', '.join(map(str, channels))} channels, {depth} block{'s' if depth > 1 else ''} a level{heads}"


def _ends(network: UNetConfig) -> str:
    """The network from outside: pictures, classes, time."""
    size = network.sample_size
    height, width = size if isinstance(size, tuple) else (size, size)
    depth = f"{network.in_channels}" + (
        f" to {network.out_channels}" if network.out_channels != network.in_channels else ""
    )
    classes = f"{network.num_class_embeds} classes" if network.num_class_embeds else "no classes"
    time = "scales and shifts" if network.resnet_time_scale_shift == "scale_shift" else "is added"
    return f"pictures of {height} x {width} x {depth}, {classes}, the time {time}"


def _sampler(args: argparse.Namespace, config: Any) -> str:
    said = type(config).scheduler
    if not isinstance(config, CMConfig):
        return said
    if Path(args.source).expanduser().is_dir():
        why = "as its folder says"
    elif args.num_train_timesteps is not None:
        why = "as given"
    elif published(args.source):
        why = "as published"
    else:
        why = "the default, as of distilled models: for another, --num-train-timesteps"
    return f"{said}, N = {config.num_train_timesteps} ({why})"


def _path(args: argparse.Namespace) -> str:
    """The two steps that were published with a file, where the new folder's name does not bring them along."""
    entry = published(args.source)
    if entry is None or entry.timesteps is None or published(args.out) or args.num_train_timesteps is not None:
        return ""
    return f" --timesteps {' '.join(map(str, entry.timesteps))}"
