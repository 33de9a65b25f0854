"""The trainer, for those who want one: a compiled step, an average of the weights, checkpoints and resume.

The losses stand alone in anyone's loop; this is ours. It trains a sigma-space consistency model from scratch by easy
consistency tuning: denoising first, then pairs of noise levels whose gap halves from stage to stage. (Chosen over the
discrete recipe because the first stage needs no target, a quarter less work an image, and every later stage starts from
targets that already mean something.)

How far to go: a pair of levels r < t keeps, of detail of standard deviation s, the share
ρ = (s² + r t) / √((s² + t²) (s² + r²)), the correlation of its two samples, and the way from noise to picture keeps the
product of them all. For s = 0.2 that is 0.44 at a last gap of 1/2, 0.47 at 1/4, 0.82 at 1/8, 0.92 at 1/16 and 0.96 at
1/32 (the sharpness of `fashion-mnist-cm` was 0.56, 0.65, 0.89 and 0.94 of real at the first four). So wide gaps are a
way to narrow ones, and blurred.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cmjax import curricula, losses
from cmjax._mesh import batch_mesh
from cmjax._struct import Struct
from cmjax._typed import mistyped
from cmjax.io.atomic import atomic_file
from cmjax.parameterization import consistency_fn

if TYPE_CHECKING:
    from cmjax.samplers.cm import CMConfig
    from cmjax.types import Array, Key, ModelFn

__all__ = ["Progress", "Recipe", "TrainState", "init", "load_checkpoint", "save_checkpoint", "train", "train_step"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Say how to train: all but the data, the network and the noise levels.

    Attributes:
      stage_steps: steps at each gap: the initial one, then half of it, a quarter, ...
      initial_gap: 1 starts with denoising; less is for a model that has learned to denoise.
      batch_size: images a step.
      learning_rate, final_learning_rate, warmup_steps: Adam's rate rises over the warm-up, stays for the first stage,
        and falls geometrically to the final one over the others.
      clip_norm: the largest global norm of a gradient.
      ema_decay: of the averaged weights, which are the ones that sample; it warms up (`curricula.ema_decay`).
      proposal_mean, proposal_std: ln σ ~ N(mean, std²).
      huber_c: the pseudo-Huber length; None for 0.00054 √d.
      dropout: whether the network gets a dropout key (student and target the same one).
      seed: of everything that is random: data order, noise, dropout.
    """

    stage_steps: tuple[int, ...] = (4000, 1000, 500, 2500, 4000)
    initial_gap: float = 1.0
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 200
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    proposal_mean: float = -0.4
    proposal_std: float = 2.0
    huber_c: float | None = None
    dropout: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stage_steps, list):  # JSON knows lists only, and those have no hash
            object.__setattr__(self, "stage_steps", tuple(self.stage_steps))
        if fault := mistyped(self):
            raise ValueError(fault)
        if not self.stage_steps or min(self.stage_steps) < 1:
            raise ValueError(f"stage_steps must be one or more positive step counts, got {self.stage_steps}.")
        if not 0.0 < self.initial_gap <= 1.0:
            raise ValueError(f"initial_gap must lie in (0, 1], got {self.initial_gap}. (1 is denoising.)")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        for name in ("learning_rate", "final_learning_rate", "clip_norm", "proposal_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.huber_c is not None and not self.huber_c > 0:
            raise ValueError(f"huber_c must be positive, or null for 0.00054 √d, got {self.huber_c}.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {self.warmup_steps}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32), got {self.seed}.")

    @property
    def steps(self) -> int:
        """All steps of the run."""
        return sum(self.stage_steps)

    def gap(self, step: int | Array) -> Array:
        """The gap at a step, f32[]; see `curricula.gap`."""
        return curricula.gap(step, self.stage_steps, initial=self.initial_gap)


class TrainState(Struct):
    """All that changes while training: `step` i32[], the model, the average of its weights, the optimizer's state."""

    step: Array
    model: Any  # a ModelFn; optax knows it as a tree of parameters
    ema: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Progress:
    """What `train` reports now and then: the step done, of how many, mean loss since the last report, gap, speed."""

    step: int
    steps: int
    loss: float
    gap: float
    images_per_second: float


def learning_rate(recipe: Recipe) -> optax.Schedule:
    """Warm up, hold for the first stage, then fall geometrically over the others."""
    held, falling = recipe.stage_steps[0], max(recipe.steps - recipe.stage_steps[0], 1)
    first, final = recipe.learning_rate, recipe.final_learning_rate
    fall = optax.exponential_decay(first, falling, final / first, end_value=final)
    warm = optax.linear_schedule(0.0, first, max(recipe.warmup_steps, 1))
    return optax.join_schedules([warm, fall], [max(held, recipe.warmup_steps)])


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Adam on gradients of bounded norm."""
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), optax.adam(learning_rate(recipe), b2=0.99))


def init(model: Any, recipe: Recipe) -> TrainState:
    """Start training: `model` is any callable pytree whose leaves are its parameters."""
    ours, ema = (jax.tree.map(jnp.copy, model) for _ in range(2))  # own buffers: a step reuses those of its state
    return TrainState(jnp.zeros((), jnp.int32), ours, ema, optimizer(recipe).init(model))


@partial(jax.jit, static_argnames=("recipe", "config"), donate_argnums=0)
def train_step(state: TrainState, images: Array, labels: Array | None, key: Key, *, recipe: Recipe, config: CMConfig):
    """Take one step: images u8[B, H, W, C], labels i32[B] or None -> (state, loss f32[]).

    The state's buffers are given to the new one (donated): the old state cannot be read any more.
    """
    x0 = images.astype(jnp.float32) / 127.5 - 1.0
    key = jax.random.fold_in(key, state.step)

    def loss_fn(model: ModelFn) -> Array:
        f = consistency_fn(model, config)
        return losses.easy_consistency_tuning(
            f,
            f,
            x0,
            key,
            gap=recipe.gap(state.step),
            cond=labels,
            dropout=recipe.dropout,
            sigma_min=config.sigma_min,
            sigma_max=config.sigma_max,
            proposal=losses.lognormal(recipe.proposal_mean, recipe.proposal_std),
            weighting=losses.edm(config.sigma_data, power=0.5),
            metric=partial(losses.pseudo_huber, c=recipe.huber_c),
        ).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.model)
    updates, opt_state = optimizer(recipe).update(grads, state.opt_state, state.model)
    model = optax.apply_updates(state.model, updates)
    decay = curricula.ema_decay(state.step, final=recipe.ema_decay)
    ema = optax.incremental_update(model, state.ema, 1.0 - decay)
    return TrainState(state.step + 1, model, ema, opt_state), loss


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> np.ndarray:
    """Name the examples of a step, i64[batch_size]: each epoch in its own order, a function of (seed, step) alone."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: _order(seed, int(epoch), size) for epoch in np.unique(positions // size)}
    return np.array([orders[p // size][p % size] for p in positions])


@lru_cache(maxsize=2)  # a batch may reach over the end of an epoch
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def train(
    model: ModelFn,
    config: CMConfig,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    recipe: Recipe = Recipe(),
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report_every: int = 50,
    checkpoint_every: int = 500,
    on_progress: Callable[[Progress], None] | None = None,
    on_checkpoint: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Train a consistency model, on all local devices by sharding the batch.

    Args:
      model: any callable pytree `model(x, t, cond)` whose leaves are its parameters, such as
        `models.from_nnx(UNet(...))`.
      config: the noise levels it is for.
      images: u8[N, H, W, C].
      labels: i[N] class labels, or None.
      recipe: how to train.
      out: a folder for `checkpoint.safetensors` and `log.jsonl`; None keeps nothing.
      resume: go on from the checkpoint in `out`, to the same bits as a run never stopped.
      report_every: steps between reports.
      checkpoint_every: steps between checkpoints.
      on_progress: called with each report.
      on_checkpoint: called with a copy of the state at each checkpoint, after it is written.

    Returns:
      The last state; its `ema` is the model to sample with.

    Raises:
      ValueError: for images that are not u8[N, H, W, C], fewer images than a batch, labels that do not fit, or a
        checkpoint of another network or recipe.
      FileNotFoundError: when resuming with no checkpoint there.
      FloatingPointError: the weights are not finite any more; the last checkpoint is from before that.

    References:
      Geng et al. 2024.
    """
    _check_data(images, labels, recipe)
    for name, every in (("report_every", report_every), ("checkpoint_every", checkpoint_every)):
        if every < 1:
            raise ValueError(f"{name} must be at least 1, got {every}.")
    folder = None if out is None else Path(out)
    state = init(model, recipe)
    if resume:
        if folder is None:
            raise ValueError("resume needs `out`, the folder of the run to resume.")
        state = load_checkpoint(folder / "checkpoint.safetensors", state, recipe)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _cut_log(folder / "log.jsonl", int(state.step))

    mesh = batch_mesh(recipe.batch_size)
    state = jax.device_put(state, NamedSharding(mesh, P()))
    key = jax.random.key(recipe.seed)
    step, last, total, since = int(state.step), int(state.step), [], time.perf_counter()
    while step < recipe.steps:
        chosen = batch_indices(recipe.seed, step, len(images), recipe.batch_size)
        cond = None if labels is None else labels[chosen].astype(np.int32)
        batch = jax.device_put((images[chosen], cond), NamedSharding(mesh, P("batch")))
        state, loss = train_step(state, *batch, key, recipe=recipe, config=config)
        total.append(loss)
        step += 1
        if step % report_every == 0 or step == recipe.steps:
            mean = float(np.mean(jax.device_get(total)))
            speed = (step - last) * recipe.batch_size / (time.perf_counter() - since)
            progress = Progress(step, recipe.steps, mean, float(recipe.gap(step - 1)), speed)
            if folder is not None:
                with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                    log.write(json.dumps(dataclasses.asdict(progress)) + "\n")
            if on_progress is not None:
                on_progress(progress)
            last, total, since = step, [], time.perf_counter()
        if step % checkpoint_every == 0 or step == recipe.steps:
            _refuse_divergence(state)
            if folder is not None:
                save_checkpoint(folder / "checkpoint.safetensors", state, recipe)
            if on_checkpoint is not None:  # it may keep what it gets, and the next step takes over the state's buffers
                on_checkpoint(jax.tree.map(jnp.copy, state))
    return state


def _check_data(images: np.ndarray, labels: np.ndarray | None, recipe: Recipe) -> None:
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images must be u8[N, H, W, C], got {images.dtype}{list(images.shape)}.")
    if len(images) < recipe.batch_size:
        raise ValueError(f"batch_size is {recipe.batch_size} but there are {len(images)} images: use a smaller batch.")
    if labels is None:
        return
    if labels.shape != (len(images),):
        raise ValueError(f"labels must be one for each of the {len(images)} images, got shape {labels.shape}.")
    if labels.dtype.kind not in "ui" or labels.min() < 0:
        raise ValueError(f"labels must be integers from 0, got {labels.dtype} from {labels.min()}.")


def _refuse_divergence(state: TrainState) -> None:
    """Raise before weights that are not numbers replace a checkpoint of ones that are."""
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((state.model, state.ema))):
        raise FloatingPointError(f"by step {int(state.step)} the weights are not finite: lower the learning_rate.")


def _cut_log(path: Path, step: int) -> None:
    """Forget what a run that is being resumed logged after its checkpoint, and what a kill left half-written."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if 0 <= _logged_step(line) <= step]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _logged_step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -1


def save_checkpoint(path: str | os.PathLike[str], state: TrainState, recipe: Recipe) -> None:
    """Write a state, and the recipe it followed, to one safetensors file: a kill leaves the old one or the new."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    arrays = {jax.tree_util.keystr(name): np.asarray(leaf, order="C") for name, leaf in leaves}
    with atomic_file(Path(path)) as temporary:
        temporary.write_bytes(save(arrays, {"recipe": json.dumps(dataclasses.asdict(recipe))}))


def load_checkpoint(path: str | os.PathLike[str], like: TrainState, recipe: Recipe) -> TrainState:
    """Read a state that `save_checkpoint` wrote, into the structure of `like`.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged, or of another network, optimizer or recipe.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint to resume from at {path}.")
    try:
        opened = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole checkpoint ({error}).") from error
    with opened as file:
        followed = Recipe(**json.loads((file.metadata() or {}).get("recipe", "{}")))
        for name, value in dataclasses.asdict(followed).items():
            if getattr(recipe, name) != value:
                raise ValueError(f"{path} followed a recipe with {name} = {value}, not {getattr(recipe, name)}.")
        names = set(file.keys())
        wanted, treedef = jax.tree_util.tree_flatten_with_path(like)
        leaves = []
        for name, leaf in ((jax.tree_util.keystr(name), leaf) for name, leaf in wanted):
            if name not in names or tuple(file.get_slice(name).get_shape()) != jnp.shape(leaf):
                raise ValueError(f"{path} is of another network or optimizer: {name} is missing or has another shape.")
            leaves.append(jnp.asarray(file.get_tensor(name)))
    return jax.tree.unflatten(treedef, leaves)
