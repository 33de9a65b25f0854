"""The names of the samplers, for what chooses one by name before JAX is there."""

__all__ = ["ORDINARY", "SAMPLERS"]

ORDINARY = ("ddim", "euler", "euler_ancestral", "dpmpp", "heun")
"""Those that walk a diffusion model, in tens of steps."""

SAMPLERS = ("cm", "tcd", "lcm", "flow", "scm", *ORDINARY)
"""The modules of `samplers.ALL`, in its order."""
