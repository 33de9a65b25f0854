"""`cmjax sample`: draw images, into one file or folder, or into numbered shards that several processes divide."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cmjax
from cmjax.cli import compile_cache
from cmjax.cli.draw import draw, get_ready, progress_bar
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.labels import class_names, class_numbers
from cmjax.cli.lora_option import lora_rows, read_loras
from cmjax.cli.model_parts import digests_of_parts, options_of_parts
from cmjax.cli.open_artifact import OpenedArtifact, open_artifact
from cmjax.cli.open_model import UnloadedModel, open_model
from cmjax.cli.open_text_artifact import open_text_artifact
from cmjax.cli.options import SampleOptions
from cmjax.cli.output import check_out, report
from cmjax.cli.processes import joined
from cmjax.cli.prompts import (
    OpenedText,
    four_steps,
    open_preview,
    open_text_model,
    read_embeddings,
    read_prompts,
    refuse_classes,
)
from cmjax.cli.published import published_settings
from cmjax.cli.sampler_path import SamplerSetup, choose_sampler
from cmjax.drawing import (
    Batches,
    BatchPlan,
    Drawn,
    Hosts,
    Shards,
    choose_devices,
    class_grid,
    class_of,
    compile_draw,
    default_batch,
    draw_shards,
    plan_batch,
    read_run,
    strips,
)
from cmjax.io.images import to_uint8, write_npz, write_png

__all__ = ["run"]

_IMAGES_A_CLASS = 8
_IMAGES_A_PROMPT = 4
_UNCONDITIONAL = 64  # images, where there are no classes
_CLASSES = 10  # drawn from, of a model that has many
_SHARD = 1000  # images
_MOST = 1 << 16  # images that a device may draw at once


def run(options: SampleOptions) -> None:
    """Draw the images that were asked for, write them, and print what was done."""
    options, note = published_settings(options)
    with joined(options) as hosts:
        out = Path(options.out)
        kind = check_out(out, (".png", ".npz"))
        if options.sharded and kind:
            raise UsageError(f"--out: shards go into a folder, not into a {kind} file.")
        if options.compile_cache:
            compile_cache.enable()
        plan = _plan(options)
        plan = plan._replace(setup=plan.setup._replace(note=note or plan.setup.note))
        channels = plan.opened.shape[-1]
        in_arrays = options.shard_format != "png" if options.sharded else kind == ".npz"
        if channels not in (1, 3) and not in_arrays:
            raise UsageError(
                f"the model makes images of {channels} channels, which only an .npz file holds: --out samples.npz."
            )
        if options.sharded:
            _sample_shards(options, plan, out, hosts)
        else:
            _sample(options, plan, out, kind)


# ---- what is drawn ---------------------------------------------------------------------------------------------------


class _Classes(NamedTuple):
    """The classes drawn in turn: their numbers, and their names or else the numbers as text."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]


class _Plan(NamedTuple):
    """What is drawn: the model and its path, how many images, of which classes, and by which function."""

    opened: UnloadedModel
    setup: SamplerSetup
    generate: Any
    classes: _Classes | None
    count: int
    text: OpenedText | None = None

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """Of the classes, or None."""
        return None if self.classes is None else self.classes.numbers

    def compile(self, batch: BatchPlan, seed: int, *, every_step: bool = False) -> Batches:
        """Compile the call that draws a batch."""
        return compile_draw(
            self.setup.model,
            self.setup.state,
            (batch.batch, *(self.opened.shape if self.text is None else self.text.latents)),
            classes=self.numbers,
            seed=seed,
            every_step=every_step,
            devices=batch.devices,
            generate=self.generate,
            cond_of=None if self.text is None else self.text.prompt_of,
        )

    def load(self) -> Any:
        """Read the weights, and show them to the sampler."""
        return self.setup.with_weights(self.opened.load())


def _plan(options: SampleOptions) -> _Plan:
    """Look the model or the artifact up, and plan what is drawn."""
    prompts, has_preview = read_prompts(options), options.preview_autoencoder is not None
    if has_preview and not (prompts and options.trajectory and options.artifact is None):
        raise UsageError("--preview-autoencoder shows the steps of a text-to-image model: give --prompt, --trajectory.")
    if prompts:
        return _plan_text(options, prompts)
    if options.artifact is None:
        opened = open_model(options.model, dtype=options.dtype, variant=options.variant)
        setup, generate = choose_sampler(opened.checkpoint, options.model, options), cmjax.generate
    else:
        opened, setup, generate = _open_artifact(options)
        if setup.model.held.prompt is not None:
            raise UsageError("the artifact draws what a text says: give --prompt.")
    classes = _choose_classes(options.labels, opened.classes, opened.names)
    count = options.num or (_UNCONDITIONAL if classes is None else _IMAGES_A_CLASS * len(classes.numbers))
    return _Plan(opened, setup, generate, classes, count)


def _open_artifact(options: SampleOptions) -> OpenedArtifact:
    fixed = {"sampler": options.sampler, "variant": options.variant, "trajectory": options.trajectory or None}
    fixed |= {"embedding": options.embedding, "lora": options.lora}
    fixed |= options_of_parts(options)
    fixed["dtype"] = None if options.dtype == "float32" else options.dtype
    return open_artifact(str(options.artifact), options, fixed)


def _plan_text(options: SampleOptions, prompts: tuple[str, ...]) -> _Plan:
    """Look the text-to-image model or artifact up, and plan what is drawn: prompts in turn, as classes otherwise."""
    refuse_classes(options)
    if options.artifact is None:
        text, generate = open_text_model(options), cmjax.text_to_image.draw_prompt
        setup = choose_sampler(text.model.checkpoint, options.model, options, four_steps)
        if options.preview_autoencoder is not None:
            setup, generate = _previewed(setup, open_preview(options, setup.model)), _draw_previewed
    else:
        opened = _open_artifact(options)
        text, setup, generate = open_text_artifact(opened, options, prompts), opened.setup, opened.generate
    classes = _Classes(tuple(range(len(prompts))), text.prompts)
    return _Plan(text.model, setup, generate, classes, options.num or _IMAGES_A_PROMPT * len(prompts), text)


def _previewed(setup: SamplerSetup, load: Callable[..., Any]) -> SamplerSetup:
    """Let a model be a pair, with the autoencoder that decodes steps."""
    pair = setup.model, load(abstract=True)
    return setup._replace(model=pair, with_weights=lambda checkpoint: (setup.with_weights(checkpoint), load()))


def _draw_previewed(pair: Any, *arguments: Any, **options: Any) -> Any:
    pipe, preview = pair
    return cmjax.text_to_image.draw_prompt(pipe, *arguments, preview=preview, **options)


def _choose_classes(
    wanted: tuple[str, ...] | None, classes: int | None, names: tuple[str, ...] | None
) -> _Classes | None:
    """Read --labels; without them, take all classes or the first ten."""
    if classes is None and not wanted:
        return None
    known = class_names(classes or 0, names if classes else None)
    numbers = class_numbers(wanted, classes, names) if wanted else range(min(classes or 0, _CLASSES))
    return _Classes(tuple(numbers), tuple(known[i] for i in numbers))


# ---- one file or folder ----------------------------------------------------------------------------------------------


def _sample(options: SampleOptions, plan: _Plan, out: Path, kind: str) -> None:
    """Draw all images, and write them to one file or one folder."""
    per_device, strict = default_batch(*plan.opened.shape[:2]), options.devices is not None
    with bad_input():
        devices = choose_devices(options.devices, plan.setup.model)
        batch = plan_batch(devices, options.batch, plan.count, per_device, strict=strict)
    done = draw(lambda: plan.compile(batch, options.seed, every_step=options.trajectory), plan.load, plan.count)
    with bad_input("the model"):  # NaN, which no picture holds
        drawn = Drawn(*(None if part is None else to_uint8(part) for part in done.images))
    with bad_input("--out"):
        _write(out, kind, drawn, plan)
    _report(options, plan, done.compile_seconds, _speed(plan.count, done.seconds, batch))


def _write(out: Path, kind: str, drawn: Drawn, plan: _Plan) -> None:
    """Write u8 arrays, a grid with one row a class or a prompt, or one file an image."""
    classes, is_text = plan.classes, plan.text is not None
    labels = class_of(np.arange(len(drawn.images)), None if classes is None else classes.numbers)
    if kind == ".npz":
        prompts = np.array(classes.names) if is_text and classes else None
        arrays = {"images": drawn.images, "labels": labels, "x0": drawn.x0, "prompts": prompts}
        write_npz(out, **{name: array for name, array in arrays.items() if array is not None})
    elif kind == ".png":
        write_png(class_grid(strips(drawn), None if classes is None else classes.names, under=is_text), out)
    else:
        out.mkdir(exist_ok=True)
        for i, image in enumerate(strips(drawn)):
            kind = "" if labels is None else f"-{'prompt' if is_text else 'class'}{labels[i]}"
            write_png(image, out / f"{i:05}{kind}.png")


def _report(
    options: SampleOptions, plan: _Plan, compile_seconds: float, speed: str, notes: tuple[str, ...] = ()
) -> None:
    source = ("model", options.model) if options.artifact is None else ("artifact", options.artifact)
    sources = (source, *lora_rows(options))
    report(sources, plan.setup.sampler, plan.setup.steps, compile_seconds, speed, notes, options.out)


def _speed(count: int, seconds: float, batch: BatchPlan) -> str:
    devices = len(batch.devices)
    return f"{count / seconds:.1f} images/s{f' on {devices} devices' if devices > 1 else ''}"


# ---- shards ----------------------------------------------------------------------------------------------------------


def _sample_shards(options: SampleOptions, plan: _Plan, out: Path, hosts: Hosts) -> None:
    """Draw the shards that are missing and this process's to draw, write them, and print what was done."""
    if options.trajectory:
        raise UsageError("--trajectory shows every step of a few images; shards hold images alone.")
    with bad_input():
        devices = choose_devices(options.devices, plan.setup.model)
    size = options.shard_size or _SHARD
    with bad_input("--out"):
        recorded = _recorded_batch(out)
    with bad_input("--distributed"):
        recorded = hosts.largest(recorded)
    if options.batch is None:  # all of a run draw as many images at once on a device, since the last bits depend on it
        per_device = recorded or min(default_batch(*plan.opened.shape[:2]), size)
        batch = BatchPlan(devices, per_device * len(devices))
    else:
        with bad_input():
            batch = plan_batch(devices, options.batch, options.batch, 1, strict=True)
    about = {**_run(options, plan), "shard_size": size, "shard_format": options.shard_format or "npz"}
    about["images_a_device"] = batch.per_device
    shards = Shards(out, plan.count, size, about, "png" if options.shard_format == "png" else "npz")
    with bad_input("--out"):
        shards.check()
        done = shards.done()
    with bad_input("--distributed"):
        done = hosts.agree(about, done)
    with bad_input("--out"):
        shards.begin()
    mine = hosts.share(done)
    compile_seconds, speed = 0.0, "nothing was left to draw"
    if mine:
        compile_seconds, speed = _draw_shards(plan, options.seed, batch, shards, mine)
    with bad_input("--out"):
        shards.sweep()
    note = f"{len(mine)} of {shards.number} shards drawn here, {int(done.sum())} were there"
    _report(options, plan, compile_seconds, speed, (note,))


def _draw_shards(plan: _Plan, seed: int, batch: BatchPlan, shards: Shards, mine: list[int]) -> tuple[float, str]:
    """Draw these shards; returns the seconds that compiling took, and the speed of drawing."""
    ready = get_ready(lambda: plan.compile(batch, seed), plan.load)
    start, bar = time.perf_counter(), partial(progress_bar, what="drawing shards")
    try:
        count = draw_shards(ready.draw, ready.model, shards, mine, classes=plan.numbers, progress=bar)
    except ValueError as error:
        raise UsageError(f"the model: {error}") from error
    except OSError as error:
        with bad_input("--out"):
            raise error
    return ready.compile_seconds, _speed(count, time.perf_counter() - start, batch)


def _recorded_batch(out: Path) -> int:
    """How many images a device drew at once in the run that is there; 0 where there is none."""
    recorded = read_run(out).get("images_a_device")
    return recorded if type(recorded) is int and 0 < recorded <= _MOST else 0


def _run(options: SampleOptions, plan: _Plan) -> dict[str, Any]:
    """What run.json says: all that the images depend on."""
    path = cmjax.artifact.tables(plan.setup.state)
    with bad_input():
        digest = cmjax.io.digest(
            options.artifact or options.model, variant=options.variant, whole=plan.text is not None
        )
    text: dict[str, Any] = {}
    if plan.text is not None:
        text = {"negative": options.negative, "guidance": options.guidance}
    if embeddings := read_embeddings(options):
        text["embeddings"] = [[one.token, one.digest] for one in embeddings]
    if loras := read_loras(options):
        text["loras"] = [[one.digest, one.scale] for one in loras]
    if parts := digests_of_parts(options):
        text["parts"] = parts
    return {
        **text,
        "cmjax": "samples",
        "model": digest,
        "variant": options.variant,
        "dtype": options.dtype,
        "sampler": cmjax.io.config_dict(plan.setup.config),
        "path": {name: np.asarray(table).tolist() for name, table in path.items()},
        "seed": options.seed,
        "num": plan.count,
        "classes": None if plan.classes is None else list(plan.classes.numbers),
        "class_names": None if plan.classes is None else list(plan.classes.names),
        "image": list(plan.opened.shape),
    }
