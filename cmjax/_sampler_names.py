"""The names of the samplers, for what chooses one by name before JAX is there."""

__all__ = ["ORDINARY", "SAMPLERS", "TWO_TIMES"]

ORDINARY = ("ddim", "euler", "euler_ancestral", "dpmpp", "heun")
"""Those that walk a diffusion model, in tens of steps."""

TWO_TIMES = ("ctm", "meanflow")
"""Those of networks that are told where a step lands, too."""

SAMPLERS = ("cm", "tcd", "lcm", "flow", "scm", *TWO_TIMES, *ORDINARY)
"""The modules of `samplers.ALL`, in its order."""
