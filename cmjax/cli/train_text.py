"""`cmjax train --model`: train or distil a text-to-image model on captioned pictures: a LoRA of it, or all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import cmjax
from cmjax import recipes, training
from cmjax._typed import unknown_names
from cmjax.cli import compile_cache
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.options import TrainOptions
from cmjax.cli.prompts import of_texts
from cmjax.cli.run_config import RUN, compute_dtype, recipe_as_asked
from cmjax.cli.sampler_path import own_path
from cmjax.cli.text_data import TextData, read_text_data
from cmjax.cli.training_run import agree, begin, check_out, console_of, draw_curves, train_with_bar
from cmjax.drawing import Hosts, class_grid
from cmjax.io.atomic import atomic_file
from cmjax.io.configs import config_dict, read_config, read_json
from cmjax.io.images import to_uint8, write_png
from cmjax.io.locate import LORA_FILE
from cmjax.lora import LoRA
from cmjax.models import Network
from cmjax.models.lora import Product
from cmjax.published import Published
from cmjax.samplers._vp import VPConfig

__all__ = ["is_asked", "run"]

_DEFAULT = "tcd-lora"
_SHOWN, _PICTURES = 8, 4  # prompts in a sample grid, and pictures of each
_GUIDANCE = 5.0  # of sample grids, where the model's own sampler draws
_LORA = "lora"  # the table of a recipe, and its entries
_ENTRIES = ("rank", "alpha", "targets")
_MEANINGLESS = {
    "teacher": "the teacher is --model itself",
    "init": "a run begins with --model, or with --lora",
    "network": "the network is that of --model",
    "channels": "the network is that of --model",
    "classes": "captions say what a picture shows",
    "label_names": "captions say what a picture shows",
}
_TEXT_OPTIONS = ("rank", "lora", "prompts", "variant", "buckets", "skip_unreadable", "cache")


class _Settled(NamedTuple):
    """All that decides a run but its data and weights, as run.json holds it.

    Attributes:
      recipe: the recipe.
      lora: rank, alpha and targets; None where the whole network is trained.
      config: of the method's sampler.
      dtype: that networks compute in.
      prompts: that sample grids show.
    """

    recipe: training.Recipe
    lora: dict[str, Any] | None
    config: Any
    dtype: str
    prompts: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What run.json says of it."""
        return {
            "recipe": self.recipe.to_dict(),
            "lora": self.lora,
            "scheduler": config_dict(self.config),
            "dtype": self.dtype,
            "prompts": list(self.prompts),
        }


def is_asked(options: TrainOptions) -> bool:
    """Whether a run is of a text-to-image model.

    Raises:
      UsageError: it is not, but an option or the recipe is of one.
    """
    if options.model is not None:
        return True
    for name in _TEXT_OPTIONS:
        if getattr(options, name) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} belongs to a text-to-image model: give --model too.")
    if options.recipe is not None:
        with bad_input():
            if _LORA in recipes.read(options.recipe):
                raise UsageError(f"{options.recipe} trains a LoRA of a text-to-image model: give --model.")
    return False


def run(options: TrainOptions, hosts: Hosts) -> None:
    """Train, and write the run's folder."""
    for name, why in _MEANINGLESS.items():
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')}: {why}; leave it out.")
    model_name = options.model
    assert model_name is not None
    out, before = Path(options.out), None
    with bad_input():
        given = recipes.read(options.recipe or _DEFAULT)
        if options.resume and (out / RUN).is_file():
            before = read_json(out / RUN)
            if not isinstance(before, dict) or not before.keys() >= {"recipe", "lora", "prompts", "model", "data"}:
                raise UsageError(f"--resume: {RUN} is not of a text-to-image run that this version can resume.")
    has_lora = _LORA in given if before is None else before["lora"] is not None
    check_out(out, Path(options.data), resume=options.resume, index=LORA_FILE if has_lora else "model_index.json")
    if not of_texts(model_name, options.variant):
        raise UsageError(
            f"--model: {model_name} is no text-to-image model, or is not there: give the folder, file or hub id of "
            "Stable Diffusion or one like it, or emoji."
        )
    if options.compile_cache:
        compile_cache.enable()
    with bad_input("--data"):
        data = read_text_data(options)
    with bad_input():
        about = {
            "model": cmjax.io.digest(model_name, variant=options.variant, whole=True),
            "data": data.fingerprint(),
        }
        dtype = compute_dtype(options.dtype, before)
        weights = dtype if has_lora else "float32"
        load = lambda abstract: cmjax.text_to_image.load(  # noqa: E731
            model_name, dtype=dtype, param_dtype=weights, variant=options.variant, abstract=abstract
        )
        pipe = load(True)
        begun = (
            None if options.lora is None else _of_one_form(cmjax.lora.resolve(cmjax.lora.read(options.lora), pipe.unet))
        )
        settled = _settled(options, given, pipe, data, before, about, begun)
        lora = (
            None
            if settled.lora is None
            else begun or cmjax.lora.new(pipe.unet, **settled.lora, seed=settled.recipe.seed)
        )
        _check_fit(settled, pipe, data)
        pipe = load(False)
        student = pipe if not _gets_told(settled, pipe) else cmjax.text_to_image.tell_guidance(pipe)
    about = {**settled.to_dict(), **about}
    agree(hosts, options, settled.recipe, about)
    console = console_of(hosts)
    try:
        batches = data.batches(pipe, settled.recipe, console, hosts)
    except ValueError as error:
        raise UsageError(f"--data: {error}") from error
    _check_texts(batches)
    begin(out, about, hosts)
    recipe = settled.recipe
    model = student.unet if lora is None else cmjax.lora.attach(pipe.unet, lora)
    what = f"{model!r}" if lora is None else f"{lora!r} beside {pipe.unet!r}"
    console.print(
        f"{data.count:,} pictures with captions, {what}, {recipe.steps:,} steps of {recipe.batch_size}",
        soft_wrap=True,
    )
    train_with_bar(
        console,
        hosts,
        model,
        settled.config,
        batches,
        recipe=recipe,
        teacher=(pipe.unet, pipe.config) if recipe.method.needs_teacher else None,
        out=out,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        on_checkpoint=_CheckpointWriter(options, settled, student, console),
    )
    if batches.skipped:
        console.print(f"{len(batches.skipped):,} pictures could not be read; others took their places")
    which = f"--model {model_name} --lora {out / 'model'}" if has_lora else f"--model {out / 'model'}"
    prompt = settled.prompts[0].replace('"', "'")
    console.print(f'draw with it: cmjax sample {which} --prompt "{prompt}"', soft_wrap=True)


class _CheckpointWriter:
    """At every checkpoint: what was trained as a file, a card, a grid of what it draws, curves."""

    def __init__(self, options: TrainOptions, settled: _Settled, pipe: Any, console: Console):
        self.options, self.settled, self.pipe, self.console = options, settled, pipe, console
        self.out = Path(options.out)
        made = settled.recipe.method.drawn_with(settled.config)
        row = Published(self.out.name, options.model or "", "", **(made or {}))
        self.row = None if made is None else row
        if made is None:
            self.state = own_path(pipe.config, 25)[1]
        else:
            self.state = row.state(settled.config)
        tokens = pipe.tokenize(settled.prompts * _PICTURES)
        told = {"guidance": _told(settled.recipe.method)} if pipe.unet.config.time_cond_proj_dim else {}
        self.cond = jax.jit(lambda pipe, tokens: pipe.encode(tokens, **told))(pipe, tokens)
        self.keys = cmjax.image_keys(0, np.arange(len(settled.prompts) * _PICTURES))

    def __call__(self, state: training.TrainState) -> None:
        network = jax.device_put(self.settled.recipe.method.student(state.ema), jax.local_devices()[0])
        guidance = _GUIDANCE if self.row is None else None
        pipe = self.pipe.replace(unet=network)
        drawn = cmjax.text_to_image.draw(pipe, self.state, self.keys, self.cond, guidance=guidance)
        picture, step = self.out / "samples" / f"{int(state.step):07d}.png", int(state.step)
        with bad_input("--out"):
            if self.settled.lora is None:
                cmjax.text_to_image.save(pipe.replace(config=self.settled.config), self.out / "model")
            else:
                self._write_lora(network, step)
            write_png(class_grid(to_uint8(np.asarray(drawn)), self.settled.prompts, under=True), picture)
            draw_curves(self.out)
        self.console.print(f"step {step:,}: {picture}")

    def _write_lora(self, network: Network, step: int) -> None:
        """Write the factors in half precision, and the card that says how to draw with them."""
        (self.out / "model").mkdir(exist_ok=True)
        learned = cmjax.lora.resolve(cmjax.lora.attached(network)[-1][0], self.pipe.unet)
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16) if leaf.ndim else leaf, learned)
        recipe = self.settled.recipe
        said = {
            "cmjax.base": str(self.options.model),
            "cmjax.method": recipe.to_dict()["method"],
            "cmjax.trained_steps": str(step),
            "cmjax.batch_size": str(recipe.batch_size),
            **({} if self.row is None else cmjax.lora.recommend(self.row)),
        }
        file = self.out / "model" / LORA_FILE
        cmjax.lora.write(half, file, style=self.options.lora_style, metadata=said)
        with atomic_file(self.out / "model" / "README.md") as draft:
            draft.write_text(self._card(learned, step), encoding="utf-8")

    def _card(self, lora: LoRA, step: int) -> str:
        """What the file is, how it came to be, and how to draw with it."""
        recipe, row = self.settled.recipe, self.row
        settings = "the model's own sampler, with guidance" if row is None else row.settings
        scale = _told(recipe.method)
        guided = "" if row is None else f", guidance of the teacher {scale:g}"
        if ends := getattr(recipe.method, "guidance_range", ()):
            guided = f", guidance of the teacher between {ends[0]:g} and {ends[1]:g}"
        return _CARD.format(
            base=self.options.model,
            name=self.out.name,
            rank=", ".join(map(str, lora.ranks)),
            modules=len(lora.factors),
            method=recipe.to_dict()["method"],
            steps=step,
            batch=recipe.batch_size,
            guided=guided,
            settings=settings,
            out=self.out / "model",
            prompt=self.settled.prompts[0].replace('"', "'"),
            sample=f"{step:07d}.png",
        )


_CARD = """\
---
library_name: cmjax
base_model: {base}
tags: [lora, text-to-image, jax]
---

# {name}

A LoRA of {base}: rank {rank}, {modules} layers of the network.

Draw with it: {settings}.

```sh
cmjax sample --model {base} --lora {out} --prompt "{prompt}"
```

It was trained by `cmjax train` with the method `{method}`, {steps:,} steps of {batch} pictures{guided}. `../run.json`
says all of it, and `../samples/{sample}` shows what it draws.
"""


# ---- what a run is ---------------------------------------------------------------------------------------------------


def _settled(
    options: TrainOptions,
    given: dict[str, Any],
    pipe: Any,
    data: TextData,
    before: Any,
    about: dict[str, Any],
    begun: LoRA | None,
) -> _Settled:
    """Settle recipe and LoRA as asked; or those of the run to go on with, if what is asked agrees with them."""
    name = options.recipe or _DEFAULT
    for table in ("network", "scheduler"):
        if table in given:
            raise ValueError(f"{name} must have no [{table}]: that of --model counts.")
    described = dict(given)
    table = described.pop(_LORA, None)
    recipe = recipe_as_asked(options, training.Recipe().changed(described, name))
    lora = None if table is None else _described(table, options, name)
    if before is None and table is None and (options.rank or options.lora):
        raise ValueError(f"{name} trains the whole network: give a recipe with [lora], such as {_DEFAULT}.")
    lora = lora if begun is None else _table(begun)
    prompts = _prompts(options, data)
    dtype = compute_dtype(options.dtype, before)
    if before is not None:
        was = training.Recipe().changed(before["recipe"], RUN)
        own = {key: getattr(was, key) for key in ("steps", "batch_size", "seed")}
        asked = was if options.recipe is None else dataclasses.replace(recipe, **own)
        asked = recipe_as_asked(options, asked)
        if options.recipe is None and begun is None:
            lora = before["lora"] if not options.rank else {**before["lora"], "rank": options.rank}
        for what, old, new in (
            ("recipe", was.to_dict(), asked.to_dict()),
            ("lora", before["lora"] or {}, lora or {}),
        ):
            if fault := _first_difference(old, new):
                raise ValueError(
                    f"--resume: the run to resume has {what} {fault}: give what the run began with, or another --out."
                )
        if before["model"] != about["model"]:
            raise ValueError("--resume: the run to resume began with another --model: give that one, or another --out.")
        if before["data"] != about["data"]:
            raise ValueError(
                "--resume: the run to resume has other pictures or captions, or the same in other files or sizes: give "
                "--data and --buckets as then, or another --out."
            )
        recipe, prompts = was, tuple(before["prompts"])
    kind = recipe.method.kind_of(pipe.config)
    if not issubclass(kind, VPConfig):
        raise ValueError(
            f"{name} is for models of noise levels, and text-to-image models have timesteps: take vp, tcd, lcd or scd."
        )
    if not isinstance(pipe.config, VPConfig):
        raise ValueError(
            f"--model: the recipe is for models of timesteps, but this one is a {type(pipe.config).__name__}."
        )
    return _Settled(recipe, lora, read_config(config_dict(pipe.config), as_=kind), dtype, prompts)


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """Where a run's numbers and those that are asked for differ first, in words; the method comes first."""
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            if fault := _first_difference(was, now, f"{prefix}{key} "):
                return fault
        elif was != now:
            return f"{prefix}{key} = {was}, not {now}"
    return None


def _described(table: Any, options: TrainOptions, source: str) -> dict[str, Any]:
    """The table [lora] of a recipe, and --rank."""
    if not isinstance(table, dict):
        raise ValueError(f"{source} [lora] must be a table of {', '.join(_ENTRIES)}, got {table!r:.60}.")
    if unknown := sorted(table.keys() - set(_ENTRIES)):
        raise ValueError(unknown_names(unknown, list(_ENTRIES), f"{source} [lora]"))
    found = {"rank": 64, "alpha": None, "targets": list(cmjax.lora.TARGETS), **table}
    return found if options.rank is None else {**found, "rank": options.rank}


def _of_one_form(lora: LoRA) -> LoRA:
    """A LoRA to start from, in float32: of products of one rank, which a resumed run can make room for."""
    forms = {type(one.form) for one in lora.factors.values()}
    gains = {float(one.gain) for one in lora.factors.values()}
    if forms != {Product} or len(lora.ranks) != 1 or len(gains) != 1 or any(map(_is_special, lora.factors.values())):
        raise ValueError("--lora: a LoRA to start from must be of products of two factors, of one rank and one alpha.")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), lora)


def _is_special(one: Any) -> bool:
    return one.magnitude is not None or one.form.mid is not None


def _table(lora: LoRA) -> dict[str, Any]:
    """The table [lora] that describes a LoRA."""
    (rank,), first = lora.ranks, next(iter(lora.factors.values()))
    return {"rank": rank, "alpha": float(first.alpha), "targets": sorted(lora.of("unet"))}


def _gets_told(settled: _Settled, pipe: Any) -> bool:
    """Whether the student's network has to be told the guidance scale, unlike the teacher's."""
    return getattr(settled.recipe.method, "tell_guidance", False) and pipe.unet.config.time_cond_proj_dim is None


def _check_fit(settled: _Settled, pipe: Any, data: TextData) -> None:
    """Refuse what could not be trained, before weights are read."""
    recipe = settled.recipe
    if recipe.batch_size > data.count:
        raise UsageError(
            f"--batch: a batch of {recipe.batch_size} needs more pictures than the {data.count} in the data."
        )
    with bad_input("--data"):
        data.sizes(pipe, recipe.batch_size)
    if recipe.method.needs_teacher:
        recipe.method.check_teacher(settled.config, pipe.config)
    if _gets_told(settled, pipe) and settled.lora is not None:
        raise ValueError(
            "tell_guidance needs a network that is told the guidance (time_cond_proj_dim), and a LoRA of another has "
            "no layer for it: leave out [lora], or tell_guidance."
        )
    if pipe.unet.config.time_cond_proj_dim is not None and recipe.method.needs_teacher:
        raise ValueError("--model: the network is told the guidance scale, and is distilled already: give its teacher.")


def _check_texts(batches: Any) -> None:
    """Refuse text encoders whose numbers are not finite, of captions or of no text, which guides a teacher."""
    with bad_input("--data"):
        _, told = batches.batch(0)
    for what, cond in (("no text", told.null_cond), ("captions", told.cond)):
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(cond)):
            raise UsageError(
                f"--model: its text encoders make of {what} numbers that are not finite: fetch its files again."
            )


def _prompts(options: TrainOptions, data: TextData) -> tuple[str, ...]:
    if options.prompts is None:
        texts = dict.fromkeys(of_one[0] for of_one in data.captions)
        return tuple(texts)[:_SHOWN]
    lines = Path(options.prompts).expanduser().read_text(encoding="utf-8").splitlines()
    if found := tuple(line.strip() for line in lines if line.strip()):
        return found
    raise ValueError(f"--prompts: {options.prompts} must hold one prompt a line, but it has none.")


def _told(method: training.Method) -> float:
    """The guidance scale that stands for a method's."""
    ends = getattr(method, "guidance_range", ())
    return sum(ends) / 2 if ends else getattr(method, "guidance_scale", 1.0)
