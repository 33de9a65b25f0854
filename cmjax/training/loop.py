"""The loop: batches in, steps, reports and checkpoints out; a run killed at any moment goes on as if it never was."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cmjax._mesh import batch_mesh
from cmjax.training import checkpoints, log
from cmjax.training.data import Batch, batches
from cmjax.training.recipe import Recipe
from cmjax.training.step import TrainState, init, train_step

if TYPE_CHECKING:
    from cmjax.types import ModelFn

__all__ = ["Progress", "train"]

_DEFAULT = Recipe()


@dataclasses.dataclass(frozen=True)
class Progress:
    """What `train` reports now and then.

    Attributes:
      step, steps: steps done, of how many.
      loss: its mean since the last report.
      figures: what the method has to say beside it, such as the gap.
      images_per_second: over the same steps.
      learning_rate: of the last of them; None for an optax transformation, which does not say.
    """

    step: int
    steps: int
    loss: float
    figures: Mapping[str, float]
    images_per_second: float
    learning_rate: float | None = None

    def entry(self) -> dict[str, float]:
        """The line of the log."""
        return {
            "step": self.step,
            "loss": self.loss,
            **self.figures,
            **({} if self.learning_rate is None else {"learning_rate": self.learning_rate}),
            "images_per_second": round(self.images_per_second, 2),
        }


def train(
    model: ModelFn,
    config: Any,
    images: np.ndarray | Iterable[Batch],
    labels: np.ndarray | None = None,
    *,
    recipe: Recipe = _DEFAULT,
    teacher: Any = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report_every: int = 50,
    checkpoint_every: int = 500,
    on_progress: Callable[[Progress], None] | None = None,
    on_checkpoint: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Train a few-step model, on all local devices by sharding the batch.

    Args:
      model: any callable pytree `model(x, t, cond)` whose leaves are its parameters, such as
        `models.from_nnx(UNet(...))`.
      config: what its noise levels mean, a sampler's config.
      images: u8[N, H, W, C]; or an iterable of batches (images, cond), u8[B, H, W, C] or f[B, *S] in [-1, 1]. A run
        that is resumed draws from the start of an iterable and drops what it has seen.
      labels: i[N] class labels of an array of images, or None.
      recipe: how to train.
      teacher: the (model, config) that is distilled, for the methods that have one.
      out: a folder for `checkpoints/` and `log.jsonl`; None keeps nothing.
      resume: go on from the newest checkpoint in `out`, to the same bits as a run never stopped: on the same kind and
        number of devices, with the same versions and images, and with report_every and checkpoint_every as they were.
      report_every: steps between reports.
      checkpoint_every: steps between checkpoints; each is preceded by a report.
      on_progress: called with each report.
      on_checkpoint: called with a copy of the state at each checkpoint, after it is written; and with that of the
        checkpoint that a run goes on from, as a kill may have come between the two.

    Returns:
      The last state; its `ema` is the model to sample with.

    Raises:
      ValueError: for images that are not u8[N, H, W, C], fewer images than a batch, labels that do not fit, a config
        of another kind than the method's, a teacher too many, too few or of other noise levels, or a checkpoint of
        another network, recipe or teacher; or in one of several processes.
      FileNotFoundError: when resuming with no checkpoint there.
      FileExistsError: when not resuming, and `out` holds the checkpoints of a run.
      FloatingPointError: the loss or the weights are not finite any more; the last checkpoint is from before that.
      OSError: a file cannot be written; the last checkpoint is whole.

    Example:
      >>> import cmjax
      >>> model = jax.tree_util.Partial(lambda w, x, t, cond: w * x, jnp.zeros(()))
      >>> recipe = Recipe(steps=3, batch_size=4)
      >>> state = train(model, cmjax.cm.CMConfig(), np.zeros((8, 2, 2, 1), np.uint8), recipe=recipe)
      >>> int(state.step)
      3
    """
    if jax.process_count() > 1:
        raise ValueError(
            "train runs in one process, on all of its devices: for several, put a loss (cmjax.losses) in a loop of "
            "your own, whose batches lie on the devices of all."
        )
    for name, every in (("report_every", report_every), ("checkpoint_every", checkpoint_every)):
        if every < 1:
            raise ValueError(f"{name} must be at least 1, got {every}.")
    _check_parties(recipe, config, teacher)
    folder = None if out is None else Path(out)
    if folder is not None:
        recipe.to_dict()  # refuses, before any work, what no checkpoint could hold
    _check_model(model, labels)
    state, taught = init(model, recipe), None if folder is None else checkpoints.taught_by(teacher)
    if resume:
        if folder is None:
            raise ValueError("resume needs `out`, the folder of the run to resume.")
        state, was = checkpoints.restore(folder / "checkpoints", state, recipe, config, taught)
        _warn_of_changes(was)
    elif folder is not None and checkpoints.latest_step(folder / "checkpoints") is not None:
        raise FileExistsError(f"{folder} already holds a run; resume it, or choose another folder.")
    step = int(state.step)
    source = batches(images, labels, recipe, step)
    following = next(source) if step < recipe.steps else None  # complaints about data come before anything is written
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        log.cut(folder / "log.jsonl", step)

    mesh = batch_mesh(recipe.batch_size // recipe.accumulate)
    weights, teacher_config = (None, None) if teacher is None else teacher
    state, weights = jax.device_put((state, weights), NamedSharding(mesh, P()))
    key = jax.random.key(recipe.seed)
    if resume and on_checkpoint is not None:
        on_checkpoint(jax.tree.map(jnp.copy, state))
    losses, last, since = [], step, time.perf_counter()
    while step < recipe.steps:
        batch = jax.device_put(following, NamedSharding(mesh, P("batch")))
        state, loss = train_step(
            state, *batch, key, weights, recipe=recipe, config=config, teacher_config=teacher_config
        )
        losses.append(loss)
        step += 1
        following = next(source) if step < recipe.steps else None
        is_kept = step % checkpoint_every == 0 or step == recipe.steps
        if is_kept or step % report_every == 0:
            mean = float(np.mean(jax.device_get(losses)))
            if not np.isfinite(mean):
                raise FloatingPointError(
                    f"by step {step} the loss is {mean}: lower the learning_rate, if the data is finite."
                )
            speed = (step - last) * recipe.batch_size / (time.perf_counter() - since)
            figures = recipe.method.figures(step - 1, recipe.steps)
            progress = Progress(step, recipe.steps, mean, figures, speed, recipe.learning_rate(step - 1))
            if folder is not None:
                log.append(folder / "log.jsonl", progress.entry())
            if on_progress is not None:
                on_progress(progress)
            losses, last, since = [], step, time.perf_counter()
        if is_kept:
            _refuse_divergence(state)
            if folder is not None:
                checkpoints.save(folder / "checkpoints", state, recipe, config, taught)
            if on_checkpoint is not None:  # it may keep what it gets, and the next step takes over the state's buffers
                on_checkpoint(jax.tree.map(jnp.copy, state))
            since = time.perf_counter()
    return state


def _check_parties(recipe: Recipe, config: Any, teacher: Any) -> None:
    method = recipe.method
    kind = type(method).__name__
    if not isinstance(config, method.config_type):
        raise ValueError(f"config must be a {method.config_type.__name__} for {kind}, got {type(config).__name__}.")
    if method.needs_teacher and teacher is None:
        raise ValueError(f"{kind} distils a teacher: give teacher=(model, config).")
    if teacher is not None and not method.needs_teacher:
        raise ValueError(f"{kind} has no teacher: leave it out.")
    if teacher is not None:
        if not isinstance(teacher, tuple) or len(teacher) != 2:
            raise ValueError(f"teacher must be a pair (model, config), got a {type(teacher).__name__}.")
        method.check_teacher(config, teacher[1])


def _check_model(model: Any, labels: np.ndarray | None) -> None:
    """Refuse weights too coarse to learn in, and labels that the network has no class for: on a device both pass."""
    for leaf in jax.tree.leaves(model):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"the model's weights must be float32, in which small steps add up, got {dtype}: "
                "leave the weights as they are and compute in that, UNet(config, dtype=...)."
            )
    network = getattr(model, "module", None)
    classes = getattr(getattr(network, "config", None), "num_class_embeds", None)
    if labels is not None and len(labels) and classes is not None and np.max(labels) >= classes:
        raise ValueError(f"labels must lie in 0 ... {classes - 1}, the model's classes, got {np.max(labels)}.")


def _warn_of_changes(was: Mapping[str, str]) -> None:
    """Say where a run goes on in another environment than it was in: then not to the same bits."""
    changes = [
        f"{name} {was.get(name)} -> {now}" for name, now in checkpoints.environment().items() if was.get(name) != now
    ]
    if changes:
        warnings.warn(f"the run goes on with {', '.join(changes)}: not to the same bits.", stacklevel=3)


def _refuse_divergence(state: TrainState) -> None:
    """Raise before weights that are not numbers replace a checkpoint of ones that are."""
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((state.model, state.averages))):
        raise FloatingPointError(f"by step {int(state.step)} the weights are not finite: lower the learning_rate.")
