"""The training loop. A run killed at any moment can be resumed as if it had never stopped."""

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

from cmjax.io.memory import return_freed_memory
from cmjax.models.network import partition
from cmjax.training import checkpoints, hosts, log
from cmjax.training.data import Batch, batches
from cmjax.training.recipe import Recipe
from cmjax.training.step import TrainState, init, train_step

if TYPE_CHECKING:
    from cmjax.types import ModelFn

__all__ = ["Progress", "train"]

_DEFAULT = Recipe()


@dataclasses.dataclass(frozen=True)
class Progress:
    """A progress report of `train`.

    Attributes:
      step: steps done.
      steps: steps in all.
      loss: the mean loss since the last report.
      figures: further values of the method, such as the gap.
      images_per_second: the speed since the last report.
      learning_rate: at the last step; None for an optax transformation, which does not expose it.
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
    divide_weights: bool = False,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report_every: int = 50,
    checkpoint_every: int = 500,
    on_progress: Callable[[Progress], None] | None = None,
    on_checkpoint: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Train a few-step model, on all devices by sharding the batch.

    Several processes, on one machine or many, train together where `jax.distributed.initialize` was called before: each
    calls `train` with the same arguments, and `out` is a folder that all of them see. The first one writes and reports.

    Args:
      model: any callable pytree `model(x, t, cond)`, such as `models.from_nnx(UNet(...))`. Its float leaves are
        trained; of a `models.Network`, those that its wrapper says are parameters. All others stay as they are: the
        weights beside a LoRA (`lora.attach`), or what `models.train_only` leaves out. Of these there is one copy, the
        teacher's too if it has the same arrays; they have no optimizer state and are in no checkpoint.
      config: the sampler config that defines the model's noise levels; None for an autoencoder, which has none.
      images: u8[N, H, W, C]; or an iterable of batches (images, cond), u8[B, H, W, C] or f[B, *S] in [-1, 1]. A
        resumed run draws from the start of an iterable and drops the batches that it has seen; of one with a method
        `starting_at(step)` it asks for those that are left.
      labels: class labels of an array of images, i[N] or i[N, 1], or None.
      recipe: how to train.
      teacher: the (model, config) to distil, for methods that have one.
      divide_weights: whether to divide all large weights, averages and optimizer states among the devices, rather than
        have a copy on each: less memory, and more to send at each step. Results are the same but for rounding.
      out: a folder for `checkpoints/` and `log.jsonl`; None keeps nothing.
      resume: continue from the newest checkpoint in `out`. The result has the same bits as a run that never stopped, if
        the kind and number of devices, the versions, the images, report_every and checkpoint_every are the same.
      report_every: number of steps between reports.
      checkpoint_every: number of steps between checkpoints; a report precedes each.
      on_progress: called with each report.
      on_checkpoint: called with a copy of the state at each checkpoint, after it is written. A resumed run also calls
        it for the checkpoint that it continues from, since a kill may have come between the write and the call.

    Returns:
      The last state; its `ema` is the model to sample with (of a method that trains further networks beside it, what
      `recipe.method.student` finds there).

    Raises:
      ValueError: images are not u8[N, H, W, C] or fewer than a batch, labels do not fit, the config is not of the
        method's kind, a teacher is missing, superfluous or of other noise levels, the checkpoint is of another
        network, recipe, teacher or frozen part, or the processes do not agree.
      FileNotFoundError: resume is True and there is no checkpoint.
      FileExistsError: resume is False and `out` holds the checkpoints of a run.
      FloatingPointError: the loss or the weights are no longer finite; the last checkpoint is older.
      OSError: a file cannot be written; the last checkpoint stays intact.

    Example:
      >>> import cmjax
      >>> model = jax.tree_util.Partial(lambda w, x, t, cond: w * x, jnp.zeros(()))
      >>> recipe = Recipe(steps=3, batch_size=4)
      >>> state = train(model, cmjax.cm.CMConfig(), np.zeros((8, 2, 2, 1), np.uint8), recipe=recipe)
      >>> int(state.step)
      3
    """
    for name, every in (("report_every", report_every), ("checkpoint_every", checkpoint_every)):
        if every < 1:
            raise ValueError(f"{name} must be at least 1, got {every}.")
    _check_parties(recipe, config, teacher)
    folder = None if out is None else Path(out)
    if folder is not None:
        recipe.to_dict()  # refuses, before any work, what no checkpoint could hold
    _check_model(model, labels)
    trained, frozen = partition(model)
    state, told = init(trained, recipe), checkpoints.Beside()
    if folder is not None:
        told = checkpoints.beside(teacher, frozen)
    if resume:
        if folder is None:
            raise ValueError("resume needs `out`, the folder of the run to resume.")
        state, was = checkpoints.restore(folder / "checkpoints", state, recipe, config, told)
        _warn_of_changes(was)
    elif folder is not None and checkpoints.latest_step(folder / "checkpoints") is not None:
        raise FileExistsError(f"{folder} already holds a run; resume it, or choose another folder.")
    step = int(state.step)
    source = batches(images, labels, recipe, step)
    following = next(source) if step < recipe.steps else None  # complaints about data come before anything is written
    mesh = hosts.mesh_of(recipe.batch_size // recipe.accumulate, None if divide_weights else (model, teacher))
    hosts.agree("recipe and config", [recipe.words(), repr(config)])
    hosts.agree(
        "report_every, checkpoint_every and divide_weights", repr((report_every, checkpoint_every, divide_weights))
    )
    hosts.agree("step to begin with", step)
    hosts.agree("data", following)
    written = folder if hosts.is_first() else None
    if written is not None:
        written.mkdir(parents=True, exist_ok=True)
        log.cut(written / "log.jsonl", step)
    weights, teacher_config = (None, None) if teacher is None else teacher
    state, weights, frozen = hosts.place((state, weights, frozen), mesh, divide=divide_weights)
    key = hosts.place(jax.random.key(recipe.seed), mesh)

    def kept(state: TrainState) -> TrainState:  # of its own: the next step takes over the buffers of its state
        return hosts.gathered(jax.tree.map(jnp.copy, state).whole(recipe.method.begin(frozen)))

    if resume and on_checkpoint is not None:
        whole = kept(state)
        if hosts.is_first():
            on_checkpoint(whole)
    first, losses, last, since = step, [], step, time.perf_counter()
    while step < recipe.steps:
        batch = hosts.place_batch(following, mesh)
        state, loss = train_step(
            state, *batch, key, weights, frozen, recipe=recipe, config=config, teacher_config=teacher_config
        )
        if step == first:
            return_freed_memory()  # the compiler leaves gigabytes of it
        losses.append(loss)
        step += 1
        following = next(source) if step < recipe.steps else None
        is_kept = step % checkpoint_every == 0 or step == recipe.steps
        if is_kept or step % report_every == 0:
            mean = float(np.mean(jax.device_get(hosts.gathered(losses))))
            if not np.isfinite(mean):
                raise FloatingPointError(
                    f"by step {step} the loss is {mean}: lower the learning_rate, if the data is finite."
                )
            speed = (step - last) * recipe.batch_size / (time.perf_counter() - since)
            figures = recipe.method.figures(step - 1, recipe.steps)
            progress = Progress(step, recipe.steps, mean, figures, speed, recipe.learning_rate(step - 1))
            if written is not None:
                log.append(written / "log.jsonl", progress.entry())
            if on_progress is not None and hosts.is_first():
                on_progress(progress)
            losses, last, since = [], step, time.perf_counter()
        if is_kept:
            _refuse_divergence(state)
            if folder is not None:
                checkpoints.save(folder / "checkpoints", state, recipe, config, told)
            if on_checkpoint is not None:
                whole = kept(state)
                if hosts.is_first():
                    on_checkpoint(whole)
            since = time.perf_counter()
    return hosts.gathered(state.whole(recipe.method.begin(frozen)))


def _check_parties(recipe: Recipe, config: Any, teacher: Any) -> None:
    method = recipe.method
    kind = type(method).__name__
    if not isinstance(config, kinds := (method.config_type, *method.also_for)):
        wanted = "None" if kinds == (type(None),) else " or ".join(f"a {one.__name__}" for one in kinds)
        raise ValueError(f"config must be {wanted} for {kind}, got {type(config).__name__}.")
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
    weights = jax.tree.leaves(partition(model)[0])
    if not weights:
        raise ValueError("the model must have weights to train, float arrays, but it has none.")
    for leaf in weights:
        dtype = jnp.result_type(leaf)
        if jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"the model's weights must be float32, in which small steps add up, got {dtype}: "
                "leave the weights as they are and compute in that, UNet(config, dtype=...)."
            )
    network = getattr(model, "module", None)
    classes = getattr(getattr(network, "config", None), "num_class_embeds", None)
    if labels is not None and len(labels) and classes is not None and np.max(labels) >= classes:
        raise ValueError(f"labels must lie in 0 ... {classes - 1}, the model's classes, got {np.max(labels)}.")


def _warn_of_changes(was: Mapping[str, str]) -> None:
    """Warn if a run continues in another environment, in which it does not have the same bits."""
    changes = [
        f"{name} {was.get(name)} -> {now}" for name, now in checkpoints.environment().items() if was.get(name) != now
    ]
    if changes:
        warnings.warn(f"the run continues with {', '.join(changes)}: it will not have the same bits.", stacklevel=3)


def _refuse_divergence(state: TrainState) -> None:
    """Raise before weights that are not numbers replace a checkpoint of ones that are."""
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(partition((state.model, state.averages))[0])):
        raise FloatingPointError(f"by step {int(state.step)} the weights are not finite: lower the learning_rate.")
