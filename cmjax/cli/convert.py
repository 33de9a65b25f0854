"""`cmjax convert`: weights of PyTorch, or one file, in; a model's folder in diffusers' layout, or one file, out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.model_parts import given_parts, refuse_parts
from cmjax.cli.options import ConvertOptions
from cmjax.cli.prompts import of_texts
from cmjax.io import Checkpoint, other_folders, read_config
from cmjax.io.atomic import check_writable
from cmjax.io.single_files.consistency_models import load_original
from cmjax.io.single_files.published import published
from cmjax.models import Network, UNetConfig
from cmjax.models.families import family_of
from cmjax.samplers.base import SamplerConfig
from cmjax.samplers.cm import CMConfig

__all__ = ["run"]

_FILE_ONLY = ("num_train_timesteps", "sample_size", "head_dim")


class _Source(NamedTuple):
    """What was read: a network, its sampler's config or the name of a scheduler that is none here, and its classes."""

    network: Network
    sampler: SamplerConfig | str
    names: tuple[str, ...] | None


def run(options: ConvertOptions) -> None:
    """Read the weights, write the folder, and print what was done."""
    source, out = Path(options.source).expanduser(), Path(options.out).expanduser()
    if of_texts(options.source, None):
        return _run_text(options, out)
    refuse_parts(options, "is for models of texts, and this is none")
    with bad_input("OUT"):
        other_folders.check_target(out)
    console = Console(stderr=True)
    with console.status(f"reading {escape(options.source)}") as status, jax.default_device(jax.devices("cpu")[0]):
        with bad_input():
            found = _read_folder(source, options) if source.is_dir() else _read_file(source, options)
        status.update(f"writing {escape(options.out)}")
        with bad_input("OUT"):
            if isinstance(found.sampler, str):
                other_folders.save_network(
                    found.network, out, source=source, label_names=found.names, dtype=options.dtype
                )
            else:
                checkpoint = Checkpoint(found.network, found.sampler)
                cmjax.save(checkpoint, out, label_names=found.names, dtype=options.dtype)
    return _report(options, found, out)


def _run_text(options: ConvertOptions, out: Path) -> None:
    """Convert a text-to-image model: a file to a folder, or a folder to one file."""
    for name in _FILE_ONLY:
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for a .pt file of another model.")
    to_file = out.suffix == ".safetensors"
    with bad_input("OUT"):
        check_writable(out) if to_file else other_folders.check_target(out)
    console = Console(stderr=True)
    with console.status(f"reading {escape(options.source)}"), jax.default_device(jax.devices("cpu")[0]), bad_input():
        written = cmjax.text_to_image.convert(options.source, out, dtype=options.dtype, **given_parts(options))
    files = [out] if to_file else [*out.rglob("*.safetensors")]
    size = sum(file.stat().st_size for file in files)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    said = written.original.said if written.original else written.pipeline
    count = sum(tensor.size for part in written.parts.values() for tensor in part.tensors.values())
    table.add_row("read", f"{escape(options.source)}: {escape(said)}, {count:,} parameters")
    table.add_row("predicts", escape(str(getattr(written.sampler_config, "prediction_type", ""))))
    table.add_row(
        "written", f"{escape(options.out)}: {size / 2**20:.1f} MiB{f' of {options.dtype}' if options.dtype else ''}"
    )
    table.add_row("try", escape(f"cmjax sample --model {shlex.quote(options.out)} --prompt TEXT"))
    Console(highlight=False).print(table)


def _read_file(source: Path, options: ConvertOptions) -> _Source:
    given = {name: value for name in _FILE_ONLY if (value := getattr(options, name)) is not None}
    return _Source(*load_original(source, **given), None)


def _read_folder(folder: Path, options: ConvertOptions) -> _Source:
    """Read a folder of diffusers, be its weights safetensors or pickles, and its sampler known or not."""
    for name in _FILE_ONLY:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for a .pt file; {folder} has it in its configs.")
    scheduler = other_folders.other_scheduler(folder)
    sampler = read_config(other_folders.scheduler_file(folder)) if scheduler is None else scheduler
    network = other_folders.read_network(folder)
    return _Source(network, sampler, cmjax.io.label_names(folder) if network.config.num_class_embeds else None)


def _report(options: ConvertOptions, found: _Source, out: Path) -> None:
    network, leaves = found.network.config, jax.tree.leaves(found.network)
    family = family_of(network)
    written = (out / family.folder / f"{family.stem}.safetensors").stat().st_size
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("read", f"{escape(options.source)}: {sum(leaf.size for leaf in leaves):,} parameters")
    table.add_row("network", _inside(network))
    table.add_row("", _outside(network))
    table.add_row("sampler", escape(_sampler(options, found.sampler)))
    table.add_row("written", f"{escape(options.out)}: {written / 2**20:.1f} MiB of {options.dtype or 'float32'}")
    if isinstance(found.sampler, str):
        table.add_row("try", escape(f"cmjax.io.load_unet({options.out!r}) in Python"))
    else:
        table.add_row("try", escape(f"cmjax sample --model {shlex.quote(options.out)}{_path(options)}"))
    Console(highlight=False).print(table)


def _inside(network: UNetConfig) -> str:
    """The network from inside: widths, depth, attention."""
    channels, depth = network.block_out_channels, network.layers_per_block
    levels = f"{', '.join(map(str, channels))} channels, {depth} block{'s' if depth > 1 else ''} a level"
    places = [*_attentions(network)]
    if not places:
        return f"{levels}, no attention"
    heads = "one head" if network.attention_head_dim is None else f"heads of {network.attention_head_dim}"
    return f"{levels}, attention {' and '.join(places)}, {heads}"


def _attentions(network: UNetConfig) -> Iterator[str]:
    """Where the network attends."""
    levels = [*zip(network.block_out_channels, network.down_kinds, network.up_kinds[::-1], strict=True)]
    attends = [(str(c), down.startswith("Attn"), up.startswith("Attn")) for c, down, up in levels]
    ways = {(True, True): "", (True, False): " on the way down", (False, True): " on the way up"}
    for way, name in ways.items():
        if widths := [width for width, *sides in attends if tuple(sides) == way]:
            yield f"at {', '.join(widths)} channels{name}"
    if network.mid_block_type is not None and network.add_attention:
        yield "in the middle" + ("" if any(down or up for _, down, up in attends) else " only")


def _outside(network: UNetConfig) -> str:
    """The network from outside: pictures, classes, time."""
    return f"{_pictures(network)}, {_condition(network)}, the time {_time(network)}"


def _pictures(network: UNetConfig) -> str:
    size, into, out_of = network.sample_size, network.in_channels, network.out_channels
    depth = f"{into}" if into == out_of else f"{into} to {out_of}"
    if size is None:
        return f"pictures of any size, {depth} channel{'s' if depth != '1' else ''}"
    height, width = size if isinstance(size, tuple) else (size, size)
    return f"pictures of {height} x {width} x {depth}"


def _condition(network: UNetConfig) -> str:
    if network.class_embed_type == "timestep":
        return "the class a number that is embedded as the time is"
    if network.class_embed_type == "identity":
        return "the condition an embedding"
    return f"{network.num_class_embeds} classes" if network.num_class_embeds else "no classes"


def _time(network: UNetConfig) -> str:
    """How the time acts; in K blocks always by their norms, whatever the middle does."""
    scales = network.resnet_time_scale_shift == "scale_shift"
    if not network.down_kinds[0].startswith("K"):
        return "scales and shifts" if scales else "is added"
    return "scales and shifts" + ("" if scales or network.mid_block_type is None else ", and is added in the middle")


def _sampler(options: ConvertOptions, sampler: SamplerConfig | str) -> str:
    if isinstance(sampler, str):
        return f"none here for {sampler}, whose config is kept as it is; cmjax.io.load_unet loads the network"
    said = type(sampler).scheduler
    if not isinstance(sampler, CMConfig):
        return said
    if Path(options.source).expanduser().is_dir():
        why = "as its folder says"
    elif options.num_train_timesteps is not None:
        why = "as given"
    elif published(options.source):
        why = "as published"
    else:
        why = "the default, as of distilled models: for another, --num-train-timesteps"
    return f"{said}, N = {sampler.num_train_timesteps} ({why})"


def _path(options: ConvertOptions) -> str:
    """The two steps that were published with a file, where the new folder's name does not bring them along."""
    entry = published(options.source)
    if entry is None or entry.timesteps is None or published(options.out) or options.num_train_timesteps is not None:
        return ""
    return f" --timesteps {' '.join(map(str, entry.timesteps))}"
