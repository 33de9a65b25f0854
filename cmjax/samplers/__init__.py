"""The samplers, one file each. A new one is one more file like these, and one more name in `ALL`."""

from cmjax.samplers import cm, lcm, tcd
from cmjax.samplers.base import Prediction, SamplerConfig, SamplerState, step

__all__ = ["ALL", "Prediction", "SamplerConfig", "SamplerState", "cm", "lcm", "step", "tcd"]

ALL = (cm, tcd, lcm)
