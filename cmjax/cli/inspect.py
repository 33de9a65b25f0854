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
from cmjax.cli.open_model import load_abstract, model_class_names
from cmjax.cli.options import InspectOptions
from cmjax.cli.sampler_path import SamplerSetup, choose_sampler

__all__ = ["run"]


def run(options: InspectOptions) -> None:
    """Print what a model is, and the path that a sampler takes."""
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
