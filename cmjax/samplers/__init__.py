"""The samplers, one file each. A new sampler is one more file like these, and one more name in `ALL`."""

from types import ModuleType

from cmjax.samplers import cm, ctm, ddim, dpmpp, euler, euler_ancestral, flow, heun, lcm, meanflow, scm, tcd
from cmjax.samplers.base import Prediction, SamplerConfig, SamplerState
from cmjax.samplers.stepping import step

__all__ = [
    "ALL",
    "CONFIGS",
    "Prediction",
    "SamplerConfig",
    "SamplerState",
    "cm",
    "ctm",
    "ddim",
    "dpmpp",
    "euler",
    "euler_ancestral",
    "flow",
    "heun",
    "lcm",
    "meanflow",
    "sampler_of",
    "scm",
    "step",
    "tcd",
]

ALL = (cm, tcd, lcm, flow, scm, ctm, meanflow, ddim, euler, euler_ancestral, dpmpp, heun)
CONFIGS: dict[type[SamplerConfig], ModuleType] = {  # a sampler whose files have several classes lists them in CONFIGS
    config: sampler for sampler in ALL for config in getattr(sampler, "CONFIGS", (sampler.Config,))
}


def sampler_of(config: SamplerConfig) -> ModuleType:
    """Find the sampler that a config belongs to, such as `tcd`."""
    return CONFIGS[type(config)]
