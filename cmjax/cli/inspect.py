"""`cmjax inspect`: a model's configs, its size, and the path that a sampler takes through noise."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.open_model import load_abstract, model_class_names
from cmjax.cli.options import InspectOptions
from cmjax.cli.prompts import four_steps, of_texts
from cmjax.cli.sampler_path import SamplerSetup, choose_sampler
from cmjax.io import Checkpoint

__all__ = ["run"]


def run(options: InspectOptions) -> None:
    """Print what a model is, and the path that a sampler takes."""
    if of_texts(options.model, options.variant):
        return _run_text(options)
    checkpoint = load_abstract(options.model, lambda: cmjax.load(options.model, variant=options.variant, abstract=True))
    with bad_input():
        names = model_class_names(options.model, checkpoint, variant=options.variant)
    setup = choose_sampler(checkpoint, options.model, options)
    network, sampler = checkpoint.model.config.to_dict(), cmjax.io.config_dict(setup.config)
    console = Console(highlight=False)
    for title, table in (
        (f"model: {options.model}", _model_table(checkpoint, names)),
        (f"network: {network.pop('_class_name')}", _config_table(network)),
        (f"sampler: {sampler.pop('_class_name')}", _config_table(sampler)),
        (f"path: {setup.sampler}, {setup.state.num_steps} steps{setup.note}", _path_table(setup)),
    ):
        console.print(f"[bold]{escape(title)}[/bold]")
        console.print(table)
        console.print()
    return None


def _run_text(options: InspectOptions) -> None:
    """Print the parts of a text-to-image model, its sizes, and the path."""
    try:
        with bad_input():
            pipe = cmjax.text_to_image.load(options.model, variant=options.variant, abstract=True)
    except MemoryError as error:
        raise UsageError(str(error)) from error
    setup = choose_sampler(Checkpoint(pipe, pipe.config), options.model, options, four_steps)  # pyright: ignore
    sampler = cmjax.io.config_dict(setup.config)
    console = Console(highlight=False)
    for title, table in (
        (f"model: {options.model} ({pipe.pipeline})", _parts_table(pipe)),
        ("pictures", _pictures_table(pipe)),
        (f"sampler: {sampler.pop('_class_name')}", _config_table(sampler)),
        (f"path: {setup.sampler}, {setup.state.num_steps} steps{setup.note}", _path_table(setup)),
    ):
        console.print(f"[bold]{escape(title)}[/bold]")
        console.print(table)
        console.print()


def _parts_table(pipe: Any) -> Table:
    table = _table("part", "class", "parameters", "float32", "bfloat16", "of it")
    parts = [("unet", pipe.unet), ("vae", pipe.autoencoder.network)]
    parts += [(f"text encoder {i + 1}", encoder) for i, encoder in enumerate(pipe.text_encoders)]
    total = 0
    for name, network in parts:
        count = sum(leaf.size for leaf in jax.tree.leaves(network))
        total += count
        about = network.config
        said = {
            "unet": lambda c: f"context {c.cross_attention_dim}, {c.in_channels} channels to {c.out_channels}",
            "vae": lambda c: f"{c.latent_channels} latents for {c.downsampling} x {c.downsampling} pixels",
        }.get(name, lambda c: f"{c.num_hidden_layers} layers of width {c.hidden_size}, {c.vocab_size} tokens")
        kind = type(network.module).__name__
        table.add_row(name, kind, f"{count:,}", _gib(4 * count), _gib(2 * count), escape(said(about)))
    table.add_row("all", "", f"{total:,}", _gib(4 * total), _gib(2 * total), "")
    return table


def _gib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _pictures_table(pipe: Any) -> Table:
    table = _table("", "")
    height, width = pipe.native_size
    table.add_row("native size", f"{height} x {width}, latents {' x '.join(map(str, pipe.latent_shape(1)[1:]))}")
    table.add_row("words", f"at most {pipe.tokenizers[0].max_length - 2} tokens of a prompt")
    config = pipe.unet.config
    if config.time_cond_proj_dim is not None:
        table.add_row("guidance", "the network is told it: --guidance costs nothing, and there is no negative prompt")
    if config.addition_embed_type == "text_time":
        table.add_row("sizes", "the network is told the size and crop of the picture")
    return table


def _model_table(checkpoint: Any, names: tuple[str, ...] | None) -> Table:
    leaves = jax.tree.leaves(checkpoint.model)
    table = _table("", "")
    table.add_row("parameters", f"{sum(leaf.size for leaf in leaves):,} in {len(leaves)} arrays")
    table.add_row("size", f"{sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 2**20:.1f} MiB")
    if names is not None:
        table.add_row("classes", escape(", ".join(names)))
    return table


def _config_table(values: dict[str, Any]) -> Table:
    table = _table("", "")
    for key, value in values.items():
        table.add_row(key, escape("null" if value is None else str(value)))
    return table


def _path_table(setup: SamplerSetup) -> Table:
    """One row a model call: where x is, what the network is told, and where TCD lands before it adds noise."""
    state = setup.state
    landings = getattr(state, "landings", None)
    columns = ["step", "alpha", "sigma", "timestep"] + ([] if landings is None else ["landing"])
    table = _table(*columns, justify="right")
    timesteps = np.asarray(state.timesteps)
    for k in range(state.num_steps):
        alpha, sigma = (float(rate) for rate in cmjax.skip(state, k).rates())
        row = [str(k), f"{alpha:.6g}", f"{sigma:.6g}", f"{timesteps[k]:.8g}"]
        table.add_row(*row, *([] if landings is None else [str(int(landings[k]))]))
    return table


def _table(*columns: str, justify: Any = "left") -> Table:
    table = Table(box=None, show_header=any(columns), pad_edge=False)
    for column in columns:
        table.add_column(column, justify=justify, overflow="fold")
    return table
