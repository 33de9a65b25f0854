"""One training step: the gradient of a method's loss, the optimizer and the averages, on one state."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cmjax._numerics import f32
from cmjax._struct import Struct
from cmjax.models.network import combine, partition
from cmjax.models.remat import remat
from cmjax.training.methods import Learner

if TYPE_CHECKING:
    from cmjax.training.recipe import Recipe
    from cmjax.types import Array, Cond, Key

__all__ = ["TrainState", "average", "init", "train_step"]


class TrainState(Struct):
    """Everything that changes during training.

    Attributes:
      step: i32[], steps done.
      model: the model, a ModelFn; or what is trained of it, with None in the place of what is frozen.
      target: the average that computes the targets, or None if the model itself does.
      averages: one average of the weights for each of the recipe's `ema_decays` and `ema_stds`.
      opt_state: the optimizer's state.
    """

    step: Array
    model: Any
    target: Any
    averages: tuple[Any, ...]
    opt_state: Any

    @property
    def ema(self) -> Any:
        """The average to sample with: the first one."""
        return self.averages[0]

    def whole(self, frozen: Any) -> TrainState:
        """The state with whole models in the place of what is trained of them; they share what is frozen."""
        averages = tuple(combine(one, frozen) for one in self.averages)
        target = None if self.target is None else combine(self.target, frozen)
        return self.replace(model=combine(self.model, frozen), target=target, averages=averages)


def init(model: Any, recipe: Recipe) -> TrainState:
    """Start training.

    `model` is any callable pytree. Its float leaves are its parameters; of a `models.Network`, those that its wrapper
    says are. All others stay as they are, in each of the state's copies. Where that is much, such as the weights
    beside the factors of a LoRA, give what is trained alone, and the rest to `train_step`:

        trained, frozen = models.partition(network)
        state = init(trained, recipe)
        state, loss = train_step(state, x0, cond, key, teacher, frozen, recipe=recipe, config=config)
        network = models.combine(state.ema, frozen)
    """
    model = recipe.method.begin(model)

    def own(tree: Any = model) -> Any:  # its own buffers: a step reuses those of its state
        return jax.tree.map(jnp.copy, tree)

    step = jnp.zeros((), jnp.int32)
    target = None if recipe.method.target_decay(step, recipe.steps) is None else own()
    averages = tuple(own() for _ in recipe.decays(step))
    return TrainState(step, own(), target, averages, own(recipe.transformation().init(partition(model)[0])))


@partial(jax.jit, static_argnames=("recipe", "config", "teacher_config"), donate_argnums=0)
def train_step(
    state: TrainState,
    images: Array,
    cond: Cond,
    key: Key,
    teacher: Any = None,
    frozen: Any = None,
    *,
    recipe: Recipe,
    config: Any,
    teacher_config: Any = None,
) -> tuple[TrainState, Array]:
    """Take one step: images u8[B, H, W, C] (or f[B, *S] in [-1, 1]), cond a pytree f[B, ...] -> (state, loss f32[]).

    `key` is the run's key, the same at every step; `teacher` is the teacher's model and `teacher_config` its config.
    `frozen` is the part of the model that the state lacks (`init`); it has no gradient and no place in the optimizer,
    and it may share its arrays with the teacher. The state's buffers are donated to the new state: the old state cannot
    be read afterwards.
    """
    key = jax.random.fold_in(key, state.step)

    trained, rest = partition(state.model)
    beside = rest if frozen is None else recipe.method.begin(frozen)

    def objective(trained: Any, images: Array, cond: Cond, key: Key) -> Array:
        model = combine(trained, beside)
        student = remat(model) if recipe.remat else model
        flip_key, loss_key = jax.random.split(key)
        x0 = images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else f32(images)
        x0 = _flipped(x0, flip_key) if recipe.flip else x0
        target = model if state.target is None else combine(partition(state.target)[0], beside)
        learner = Learner(student, target, config, None if teacher is None else (teacher, teacher_config))
        return recipe.method.loss(learner, x0, cond, loss_key, state.step, recipe.steps).mean()

    loss, grads = _accumulated(jax.value_and_grad(objective), trained, (images, cond), key, recipe.accumulate)
    update = optax.with_extra_args_support(recipe.transformation()).update
    updates, opt_state = update(grads, state.opt_state, trained, value=loss)
    trained = optax.apply_updates(trained, updates)

    model, decays = combine(trained, rest), recipe.decays(state.step)
    averages = tuple(average(own, model, decay) for own, decay in zip(state.averages, decays, strict=True))
    decay = recipe.method.target_decay(state.step, recipe.steps)
    target = None if decay is None else average(state.target, model, decay)
    return TrainState(state.step + 1, model, target, averages, opt_state), loss


def average(target: Any, source: Any, decay: float | Array) -> Any:
    """Move an average of weights towards the weights: target <- decay · target + (1 - decay) · source.

    Args:
      target: the average, a pytree as `source` is. An nnx module is updated in place, as its optimizer does it.
      source: the model in training. What is not trained, as `models.partition` says, is copied from it; in an nnx
        module every `nnx.Param` is averaged, and nothing else changes.
      decay: in [0, 1], f[]; may be traced.

    Returns:
      The new average: a new pytree, or the nnx module itself.

    Example:
      >>> average({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 2.0])}, 0.75)
      {'w': Array([1.5, 2. ], dtype=float32)}
    """
    if isinstance(target, nnx.Module):
        own, new = nnx.state(target, nnx.Param), nnx.state(source, nnx.Param)
        nnx.update(target, optax.incremental_update(new, own, 1.0 - decay))
        return target
    trained, rest = partition(source)
    return combine(optax.incremental_update(trained, partition(target)[0], 1.0 - decay), rest)


def _flipped(x0: Array, key: Key) -> Array:
    """Mirror each image left to right, or not: f32[B, H, W, C]."""
    mirrored = jax.random.bernoulli(key, 0.5, (x0.shape[0], 1, 1, 1))
    return jnp.where(mirrored, x0[:, :, ::-1], x0)


def _accumulated(value_and_grad: Any, model: Any, batch: Any, key: Key, parts: int) -> tuple[Array, Any]:
    """Compute the mean value and gradient over `parts` equal parts of a batch, one after the other."""
    if parts == 1:
        return value_and_grad(model, *batch, key)

    def one(sums: Any, part: Any) -> tuple[Any, None]:
        batch, key = part
        return jax.tree.map(jnp.add, sums, value_and_grad(model, *batch, key)), None

    # Image i goes to part i mod n: so each part lies evenly on the devices that share the batch.
    split = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), model))
    sums, _ = jax.lax.scan(one, zeros, (split, jax.random.split(key, parts)))
    return jax.tree.map(lambda leaf: leaf / parts, sums)
