"""The samplers, one file each. A new sampler is one more file like these, and one more name in `ALL`."""

from types import ModuleType

from cmjax.samplers import cm, lcm, tcd
from cmjax.samplers.base import Prediction, SamplerConfig, SamplerState, step

__all__ = ["ALL", "Prediction", "SamplerConfig", "SamplerState", "cm", "lcm", "sampler_of", "step", "tcd"]

ALL = (cm, tcd, lcm)


def sampler_of(config: SamplerConfig) -> ModuleType:
    """Find the sampler that a config belongs to: `cm`, `tcd` or `lcm`."""
    return next(sampler for sampler in ALL if type(config) is sampler.Config)
