"""`cmjax inspect`: a model's configs, its size, and the path that a sampler takes through noise."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cmjax
from cmjax.cli.errors import bad_input
from cmjax.cli.model_parts import given_parts, refuse_parts
from cmjax.cli.open_model import load_abstract, model_class_names
from cmjax.cli.options import InspectOptions
from cmjax.cli.prompts import four_steps, of_texts
from cmjax.cli.published import published_settings
from cmjax.cli.recommended import show
from cmjax.cli.sampler_path import SamplerSetup, choose_sampler
from cmjax.io import Checkpoint
from cmjax.models.families import family_of
from cmjax.text_to_image.clip_vocabulary import installed_vocabulary
from cmjax.text_to_image.folders import assemble_source
from cmjax.text_to_image.opening import open_source
from cmjax.text_to_image.sources import Source

__all__ = ["run"]


def run(options: InspectOptions) -> None:
    """Print what a model is, and the path that a sampler takes; or the settings of a published one."""
    if options.recommended is not None:
        return show(options.recommended)
    if of_texts(options.model, options.variant):
        return _run_text(options)
    refuse_parts(options, "is for models of texts, and this is none")
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
    given = given_parts(options)
    given.pop("tokenizer", None)  # none is needed to say what a file is
    with bad_input():
        source = open_source(options.model, variant=options.variant, **given)
        if set(source.encoders) | {"vae"} <= set(source.parts):
            source.check_fit()
            assemble_source(source, abstract=True)  # whether every tensor is there, and of its shape
    said = source.original.said if source.original else source.pipeline
    config = source.sampler_config
    options, note = published_settings(options, draws=False)
    setup = choose_sampler(Checkpoint(_no_model, config), options.model, options, four_steps)  # pyright: ignore
    sampler = cmjax.io.config_dict(setup.config)
    console = Console(highlight=False)
    for title, table in (
        (f"model: {options.model} ({said})", _parts_table(source)),
        ("pictures", _pictures_table(source)),
        (f"sampler: {sampler.pop('_class_name')}", _config_table(sampler)),
        (f"path: {setup.sampler}, {setup.state.num_steps} steps{note or setup.note}", _path_table(setup)),
    ):
        console.print(f"[bold]{escape(title)}[/bold]")
        console.print(table)
        console.print()


def _no_model(x: Any, t: Any, cond: Any) -> Any:
    """Stand for the network, of which only the configs are read."""
    return x


def _about_text(config: Any) -> str:
    return f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.vocab_size} tokens"


def _parts_table(source: Source) -> Table:
    table = _table("part", "parameters", "stored", "float32", "bfloat16", "of it")
    names = {"unet": "unet", "vae": "vae"} | {name: f"text encoder {i + 1}" for i, name in enumerate(source.encoders)}
    about = {
        "unet": lambda c: f"context {c.cross_attention_dim}, {c.in_channels} channels to {c.out_channels}",
        "vae": lambda c: f"{c.latent_channels} latents for {c.downsampling} x {c.downsampling} pixels",
    }
    total = 0
    for name, shown in names.items():
        if name not in source.parts:
            table.add_row(shown, "not here: --base", "", "", "", "")
            continue
        config, tensors = source.parts[name]
        family = family_of(config)
        kept = [value for key, value in tensors.items() if family.current(key) is not None]
        count = sum(value.size for value in kept)
        total += count
        stored = ", ".join(sorted({str(value.dtype) for value in kept}))
        said = about.get(name, _about_text)(config)
        table.add_row(shown, f"{count:,}", stored, _gib(4 * count), _gib(2 * count), escape(said))
    table.add_row("all", f"{total:,}", "", _gib(4 * total), _gib(2 * total), "")
    return table


def _gib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _pictures_table(source: Source) -> Table:
    table = _table("", "")
    config, vae = source.parts["unet"].config, source.parts.get("vae")
    if config.sample_size is not None:
        height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        factor = 8 if vae is None else vae.config.downsampling
        latents = f"{height} x {width} x {config.out_channels}"
        table.add_row("native size", f"{factor * height} x {factor * width}, latents {latents}")
    if source.tokenizers:
        words = next(iter(source.tokenizers.values())).max_length - 2
        table.add_row("words", f"at most {words} tokens of a prompt")
    elif installed_vocabulary() is not None:
        table.add_row("words", "no tokenizer in the file; the vocabulary of an installed package is read")
    else:
        table.add_row("words", "no tokenizer in the file: --tokenizer, or pip install --no-deps clip-anytorch")
    if source.original is not None and source.original.has_ema:
        table.add_row("averages", "of the network's weights: --ema takes them")
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
