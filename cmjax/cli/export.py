"""`cmjax export`: a model and its sampler as one program for several platforms."""

from __future__ import annotations

import time
from pathlib import Path

import cmjax
from cmjax import artifact
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.model_parts import refuse_parts
from cmjax.cli.open_artifact import notes_of
from cmjax.cli.open_model import open_model
from cmjax.cli.options import ExportOptions
from cmjax.cli.output import print_rows
from cmjax.cli.prompts import four_steps, of_texts, open_text_checkpoint
from cmjax.cli.published import published_settings
from cmjax.cli.sampler_path import choose_sampler, two_steps
from cmjax.io.atomic import check_writable
from cmjax.text_to_image import for_export

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
    options, note = published_settings(options)
    is_text = of_texts(options.model, options.variant)
    if not is_text and (options.size is not None or options.guided):
        raise UsageError(f"--{'guided' if options.guided else 'size'} is for models of texts, and this is none.")
    if not is_text:
        refuse_parts(options, "is for models of texts, and this is none")
    opened = (
        open_text_checkpoint(options)
        if is_text
        else open_model(options.model, dtype=options.dtype, variant=options.variant)
    )
    setup = choose_sampler(opened.checkpoint, options.model, options, four_steps if is_text else two_steps)
    steps = setup.state.num_steps
    room = options.max_steps or max(_ROOM, steps)
    if room < steps:
        raise UsageError(f"--max-steps must be at least the {steps} steps of the path, got {room}.")
    with bad_input("--max-steps"):
        path = cmjax.pad(setup.state, room)
    with bad_input():
        model = setup.with_weights(opened.load())
    with bad_input():
        shown = (
            for_export(model, size=options.size, guided=options.guided)
            if is_text
            else {"image": opened.shape, "classes": opened.classes, "label_names": opened.names}
        )
    start = time.perf_counter()
    with bad_input("OUT"):
        artifact.save(
            out,
            model,
            setup.config,
            path,
            **shown,
            platforms=options.platforms,
            weights=options.weights,
            notes=notes_of(options.model, options, opened.checkpoint),
        )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print_rows(
        (
            ("model", options.model),
            ("sampler", setup.sampler),
            ("steps", f"{steps} unless asked for others, up to {room}{note or setup.note}"),
            ("platforms", ", ".join(options.platforms)),
            ("weights", f"{options.weights} the program"),
            ("export", f"{time.perf_counter() - start:.2f} s"),
            ("artifact", f"{out} ({size / 2**20:.1f} MiB)"),
        )
    )
