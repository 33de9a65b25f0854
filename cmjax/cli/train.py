"""`cmjax train`: a few-step model from images, with a progress display, sample grids on the way, and resume."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

import cmjax
from cmjax import training
from cmjax.cli import compile_cache, train_autoencoder, train_text
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.labels import match_classes
from cmjax.cli.open_model import load_source, model_class_names
from cmjax.cli.options import TrainOptions
from cmjax.cli.processes import joined
from cmjax.cli.run_config import RUN, RunConfig, compute_dtype, run_config
from cmjax.cli.sampler_path import own_path
from cmjax.cli.training_run import agree, begin, check_out, console_of, draw_curves, train_with_bar
from cmjax.drawing import Hosts, class_grid, compile_draw, image_shape
from cmjax.io import Checkpoint, ImageData
from cmjax.io.configs import read_json
from cmjax.io.image_sets import read_images
from cmjax.io.images import to_uint8, write_png
from cmjax.models import UNet, from_nnx, with_target
from cmjax.samplers.cm import CMConfig

__all__ = ["run"]

_SAMPLED_CLASSES, _SAMPLES_A_CLASS = 10, 8
_MEANING = ("prediction_type", "sigma_data")  # of what a network says: in other terms its weights are noise


def run(options: TrainOptions) -> None:
    """Train a model and write the run's folder."""
    with joined(options) as hosts:
        if train_autoencoder.is_asked(options):
            train_autoencoder.run(options, hosts)
        elif train_text.is_asked(options):
            train_text.run(options, hosts)
        else:
            _run(options, hosts)


def _run(options: TrainOptions, hosts: Hosts) -> None:
    """Train a model of images alone."""
    out = Path(options.out)
    check_out(out, Path(options.data), resume=options.resume, index="model_index.json")
    if options.compile_cache:
        compile_cache.enable()
    with bad_input():
        data = read_images(options.data, classes=options.classes)
        names = _label_names(options.label_names, data)
        before = read_json(out / RUN) if options.resume else None
        dtype = compute_dtype(options.dtype, before)
        start = None if options.init is None else load_source(options.init, dtype=dtype)
        teacher = None if options.teacher is None else load_source(options.teacher, dtype=dtype)
        if before is None:
            numbers, names = _match_classes(options, data, names, start or teacher)
        else:
            numbers = before.get("classes") if isinstance(before, dict) else None
            if not options.label_names and (out / "model").is_dir():
                names = cmjax.io.label_names(out / "model") or names
        data = _renumbered(data, numbers)
        settled = run_config(options, data, before, start, teacher)
        classes = settled.network.num_class_embeds
        names = None if names is None or classes is None or len(names) < classes else names[:classes]
    recipe = settled.recipe
    _check_fit(data, settled, teacher)
    started = before["init"] if before and "init" in before else start is not None
    about = settled.to_dict(data, teacher, started=started, classes=numbers)
    agree(hosts, options, recipe, about)
    begin(out, about, hosts)

    model, origin = _first_model(settled, start, teacher)
    console = console_of(hosts)
    size = sum(leaf.size for leaf in jax.tree.leaves(model))
    classes = settled.network.num_class_embeds
    kinds = "" if classes is None else f" of {classes:,} classes"
    console.print(
        f"{len(data.images):,} images{kinds}, {size:,} parameters ({origin}), "
        f"{recipe.steps:,} steps of {recipe.batch_size}"
    )
    if teacher is not None and isinstance(teacher.config, CMConfig) and teacher.config.denoiser_steps is None:
        console.print("note: the teacher is taken for a denoiser, but its file does not say so (denoiser_steps)")
    train_with_bar(
        console,
        hosts,
        model,
        settled.config,
        data.images,
        data.labels,
        recipe=recipe,
        teacher=teacher,
        out=out,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        on_checkpoint=_CheckpointWriter(out, model, settled, names, _shown_classes(settled, data, numbers), console),
    )
    steps = "" if isinstance(settled.config, CMConfig) else f" --steps {recipe.method.sample_steps}"
    said = f"the model is in {out / 'model'}; draw from it: cmjax sample --model {out / 'model'}{steps}"
    console.print(said, soft_wrap=True)  # whole, to be copied


def _first_model(settled: RunConfig, start: Checkpoint | None, teacher: Checkpoint | None) -> tuple[Any, str]:
    """What a run begins with, and its name: the model of --init, a copy of a teacher of its kind, or new weights."""
    if start is not None:
        return _as_settled(start.model, settled), "of --init"
    if teacher is not None and _as_settled(teacher.model, settled).config == settled.network:
        meanings = [[getattr(c, name, None) for name in _MEANING] for c in (settled.config, teacher.config)]
        if meanings[0] == meanings[1]:
            return _as_settled(teacher.model, settled), "the teacher's"
    rngs = nnx.Rngs(settled.recipe.seed)
    return from_nnx(UNet(settled.network, rngs=rngs, dtype=jnp.dtype(settled.dtype))), "new"


def _as_settled(model: Any, settled: RunConfig) -> Any:
    """Give a network of one time the embedding of a second, where the method tells it."""
    return with_target(model) if settled.recipe.method.is_told_target else model


def _check_fit(data: ImageData, settled: RunConfig, teacher: Any) -> None:
    recipe, (height, width), factor = settled.recipe, data.images.shape[1:3], settled.network.downsampling
    if height % factor or width % factor:
        raise UsageError(
            f"--channels: pictures of {width}x{height} cannot be halved {factor.bit_length() - 1} times, which the "
            "network does: name fewer channels, one for each level, or bring the pictures to another size."
        )
    with bad_input():
        shape = image_shape(settled.network)
        own_path(recipe.method.made(settled.config, 0, recipe.steps), recipe.method.sample_steps)
    if recipe.batch_size > len(data.images):
        raise UsageError(
            f"--batch: a batch of {recipe.batch_size} needs more images than the {len(data.images)} in the data."
        )
    if tuple(data.images.shape[1:]) != shape:
        raise UsageError(f"the network is for images of {shape}, but these are {data.images.shape[1:]}.")
    if recipe.method.needs_teacher and teacher is None:
        raise UsageError("--teacher: this recipe distils a model; say which: a folder, a name, or a hub id.")
    if teacher is not None and not recipe.method.needs_teacher:
        raise UsageError("--teacher: this recipe has none; to start from a model's weights: --init.")
    if teacher is not None:
        depths = teacher.model.config.in_channels, teacher.model.config.out_channels
        if depths != (shape[-1],) * 2:
            raise UsageError(f"--teacher: the model has {depths} channels, but the images have {shape[-1]}.")
        with bad_input("--teacher"):
            recipe.method.check_teacher(settled.config, teacher.config)


class _CheckpointWriter:
    """At every checkpoint: the averaged weights as a model that `cmjax.load` reads, a grid of what it draws, curves."""

    def __init__(
        self,
        out: Path,
        model: Any,
        settled: RunConfig,
        names: tuple[str, ...] | None,
        shown: Sequence[int] | None,
        console: Console,
    ):
        self.out, self.model, self.settled, self.names, self.console = out, model, settled, names, console
        self.shown = shown
        self.titles = None if self.shown is None else [names[i] if names else str(i) for i in self.shown]
        self._drawing(self._made(0))  # what cannot be drawn is known before a run begins

    def _made(self, step: int) -> Any:
        """The config of the model after so many steps."""
        recipe = self.settled.recipe
        return recipe.method.made(self.settled.config, step, recipe.steps)

    @functools.cache  # noqa: B019 (one for a run, which asks for the same again)
    def _drawing(self, config: Any) -> tuple[Any, Any]:
        """How a model of this config is shown to a sampler, and the compiled call that draws the grid."""
        count = _SAMPLES_A_CLASS * (_SAMPLES_A_CLASS if self.shown is None else len(self.shown))
        show, state = own_path(config, self.settled.recipe.method.sample_steps)
        shape, shown = (count, *image_shape(self.settled.network)), show(Checkpoint(self.model, config))
        return show, compile_draw(shown, state, shape, classes=self.shown, seed=0)

    def __call__(self, state: training.TrainState) -> None:
        picture = self.out / "samples" / f"{int(state.step):07d}.png"
        made = Checkpoint(self.settled.recipe.method.student(state.ema), self._made(int(state.step)))
        show, draw = self._drawing(made.config)
        drawn = draw(0, show(made))
        with bad_input("--out"):
            cmjax.save(made, self.out / "model", label_names=self.names)
            write_png(class_grid(to_uint8(drawn.images), self.titles), picture)
            draw_curves(self.out)
        self.console.print(f"step {int(state.step):,}: {picture}")


def _match_classes(
    options: TrainOptions, data: ImageData, names: tuple[str, ...] | None, source: Checkpoint | None
) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """Find which classes of the model of --init, or else of --teacher, the data's are; and what all are called."""
    path = options.init or options.teacher
    classes = None if source is None else source.model.config.num_class_embeds
    if path is None or source is None or classes is None or data.labels is None:
        return None, names
    count = int(data.labels.max()) + 1
    if count > classes:  # which is refused later
        return None, names
    return match_classes(names, count, model_class_names(path, source), classes)


def _renumbered(data: ImageData, numbers: Sequence[int] | None) -> ImageData:
    """Number the data's classes as the model does."""
    if numbers is None or data.labels is None:
        return data
    if data.labels.max() >= len(numbers):
        raise UsageError(f"--resume: the run had {len(numbers)} classes, but the data has {data.labels.max() + 1}.")
    return data._replace(labels=np.array(numbers, np.int32)[data.labels])


def _shown_classes(settled: RunConfig, data: ImageData, numbers: Sequence[int] | None) -> Sequence[int] | None:
    """The classes that sample grids show: the first ten, or those of the data where a model has more than that."""
    classes = settled.network.num_class_embeds
    if classes is None or data.labels is None:
        return None
    if numbers is None and data.labels.max() + 1 == classes:
        return range(min(classes, _SAMPLED_CLASSES))
    return np.unique(data.labels)[:_SAMPLED_CLASSES].tolist()


def _label_names(given: tuple[str, ...] | None, data: ImageData) -> tuple[str, ...] | None:
    names = tuple(given) if given else data.label_names
    if data.labels is None or names is None:
        if given:
            raise UsageError("--label-names: the data has no labels.")
        return None
    if len(names) != data.labels.max() + 1:
        source = "--label-names" if given else "label_names in the data"
        raise UsageError(f"{source}: the data has {data.labels.max() + 1} classes, but there are {len(names)} names.")
    return names
