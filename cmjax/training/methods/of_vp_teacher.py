"""The base of methods that distil a variance-preserving diffusion model."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from cmjax.samplers._vp import VPConfig, as_config
from cmjax.training.methods.base import Method

__all__ = ["RATES", "OfVPTeacher"]

RATES = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""The keys that noise levels follow from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfVPTeacher(Method):
    """A method whose teacher's rates noise the data: what the student makes of a timestep has to be the same."""

    needs_teacher: ClassVar[bool] = True
    teacher_type: ClassVar[type] = VPConfig
    shared: ClassVar[tuple[str, ...]] = RATES

    def check_teacher(self, config: Any, teacher_config: Any) -> None:
        """As every method; a teacher that an ordinary sampler walks is read as the student's kind."""
        is_vp = isinstance(teacher_config, VPConfig)
        super().check_teacher(config, as_config(teacher_config, self.config_type) if is_vp else teacher_config)
