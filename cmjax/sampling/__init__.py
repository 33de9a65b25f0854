"""Walking a path: what changes it beforehand, in `paths`, and the loop over its steps, in `loop`."""

from cmjax.sampling.loop import (
    Trajectory,
    add_noise,
    generate,
    model_input,
    pad,
    prior,
    sample,
    skip,
    step,
    trajectory,
)

__all__ = ["Trajectory", "add_noise", "generate", "model_input", "pad", "prior", "sample", "skip", "step", "trajectory"]
