"""`cmjax export`: a model and its sampler as one program for several platforms."""

from __future__ import annotations

import time
from pathlib import Path

import cmjax
from cmjax import artifact
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.open_artifact import notes_of
from cmjax.cli.open_model import open_model
from cmjax.cli.options import ExportOptions
from cmjax.cli.output import print_rows
from cmjax.cli.sampler_path import choose_sampler
from cmjax.io.atomic import check_writable

__all__ = ["run"]

_ROOM = 8  # steps, at least


def run(options: ExportOptions) -> None:
    """Export a model with its sampler, write the artifact, and print what it is."""
    out = Path(options.out)
    with bad_input("OUT"):
        check_writable(out)
        if (out.exists() or out.is_symlink()) and not out.is_dir():
            raise UsageError(f"OUT: {out} is not a folder: name a new one.")
        artifact.refuse_other_files(out)
    opened = open_model(options.model, dtype=options.dtype, variant=options.variant)
    setup = choose_sampler(opened.checkpoint, options.model, options)
    steps = setup.state.num_steps
    room = options.max_steps or max(_ROOM, steps)
    if room < steps:
        raise UsageError(f"--max-steps must be at least the {steps} steps of the path, got {room}.")
    with bad_input("--max-steps"):
        path = cmjax.pad(setup.state, room)
    with bad_input():
        model = setup.with_weights(opened.load())
    start = time.perf_counter()
    with bad_input("OUT"):
        artifact.save(
            out,
            model,
            setup.config,
            path,
            opened.shape,
            classes=opened.classes,
            label_names=opened.names,
            platforms=options.platforms,
            weights=options.weights,
            notes=notes_of(options.model, options, opened.checkpoint),
        )
    size = sum(file.stat().st_size for file in out.iterdir())
    print_rows(
        (
            ("model", options.model),
            ("sampler", setup.sampler),
            ("steps", f"{steps} unless asked for others, up to {room}{setup.note}"),
            ("platforms", ", ".join(options.platforms)),
            ("weights", f"{options.weights} the program"),
            ("export", f"{time.perf_counter() - start:.2f} s"),
            ("artifact", f"{out} ({size / 2**20:.1f} MiB)"),
        )
    )
