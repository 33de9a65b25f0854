"""Distribution matching distillation of variance-preserving diffusion models: a student and a model of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from cmjax import losses
from cmjax._bounds import Rule, positive
from cmjax._numerics import expand_like, f32
from cmjax._struct import Struct
from cmjax.samplers import lcm, tcd
from cmjax.samplers.lcm import LCMConfig
from cmjax.training.methods.base import Learner
from cmjax.training.methods.guidance import guided, told
from cmjax.training.methods.of_vp_teacher import OfVPTeacher

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["DistributionMatching", "WithScore"]

_PATH = Rule(
    "be timesteps, the highest first",
    lambda path: bool(path) and all(a > b for a, b in zip(path, (*path[1:], -1), strict=True)),
)


class WithScore(Struct):
    """A student with the diffusion model of its samples; called, it is the student.

    Attributes:
      student: the model that draws.
      score: the model of what it draws.
    """

    student: Any
    score: Any

    def __call__(self, *inputs: Any, **options: Any) -> Array:
        """Compute the student's output."""
        return self.student(*inputs, **options)


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(OfVPTeacher):
    """A few-step student whose samples the teacher finds as likely as their own model does. Yin et al. 2024.

    Student and model of its samples begin alike, as the teacher or with one LoRA each, and both learn at every step
    (the second paper has five steps of the latter to one of the former). The regression and adversarial terms of the
    papers are left out. The samples are drawn from noised data, and at the first timestep from noise.

    Attributes:
      timesteps: at which the student is drawn from, the highest first; `lcm` walks them later.
      guidance_scale: of the teacher; 1 leaves it as it is.
      dropout: whether the student gets a dropout key.
    """

    config_type: ClassVar[type] = LCMConfig
    sample_steps: ClassVar[int] = 4

    timesteps: Annotated[tuple[int, ...], _PATH] = (999, 749, 499, 249)
    guidance_scale: Annotated[float, positive()] = 1.0
    dropout: bool = False

    def check_teacher(self, config: Any, teacher_config: Any) -> None:
        """As every method; and the timesteps must be in the table."""
        super().check_teacher(config, teacher_config)
        if self.timesteps[0] >= config.num_train_timesteps:
            raise ValueError(
                f"timesteps must lie below {config.num_train_timesteps}, the timesteps that there are, got "
                f"{self.timesteps[0]}."
            )

    def begin(self, model: Any) -> WithScore:
        """The model twice."""
        return WithScore(model, model)

    def student(self, model: Any) -> Any:
        """The student of the two."""
        return model.student

    def drawn_with(self, config: Any) -> Mapping[str, Any]:
        """By `lcm`, at the timesteps."""
        return {"sampler": "lcm", "steps": len(self.timesteps), "timesteps": self.timesteps}

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.distribution_matching` of the student, and `losses.noise_prediction` of the model of its samples."""
        t_key, z_key, match_key, score_key, dropout_key = jax.random.split(key, 5)
        pair: Any = learner.model
        text = told(cond)
        teacher, text_of_teacher = guided(learner.teacher, cond, self.guidance_scale)
        score = tcd.trajectory_fn(pair.score, learner.config)
        path = jnp.asarray(self.timesteps, jnp.int32)
        t = path[jax.random.randint(t_key, x0.shape[:1], 0, len(self.timesteps))]
        z = jax.random.normal(z_key, x0.shape, jnp.float32)
        alpha, sigma = (expand_like(jax.lax.stop_gradient(rate), x0) for rate in score.rates(t))
        x_t = jnp.where(expand_like(t == path[0], x0), z, alpha * f32(x0) + sigma * z)
        options = {"key": dropout_key} if self.dropout else {}
        x = lcm.consistency_fn(pair.student, learner.config)(x_t, t, text, **options)
        real = tcd.trajectory_fn(*teacher)
        matched = losses.distribution_matching(x, _Told(real, text_of_teacher), _Told(score, text), match_key)
        return matched + losses.noise_prediction(score, jax.lax.stop_gradient(x), score_key, cond=text)


class _Told(Struct):
    """A diffusion model that is told the same whatever it is told, since labels have another form for a guided one."""

    function: Any
    cond: Any

    @property
    def num_train_timesteps(self) -> int:
        return self.function.num_train_timesteps

    def rates(self, t: Any) -> tuple[Array, Array]:
        return self.function.rates(t)

    def predict(self, x: Array, t: Array, cond: Cond = None) -> Any:
        return self.function.predict(x, t, self.cond)
