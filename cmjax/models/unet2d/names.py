"""What files of this family call things. The rule that gives all other weights their names is in `cmjax.io.weights`."""

from __future__ import annotations

__all__ = ["FOLDER", "STEM", "current"]

FOLDER = "unet"  # of a pipeline's folder
STEM = "diffusion_pytorch_model"  # of its weights' files

# The names that attention layers had before diffusers 0.15; many published files still carry them.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def current(name: str) -> str | None:
    """Map a tensor's name in a file, old or new, to its name today; to None for a tensor that is not a weight.

    Example:
      >>> current("mid_block.attentions.0.query.bias")
      'mid_block.attentions.0.to_q.bias'
    """
    if name == "time_proj.W":  # the frequencies, which the first files have under two names
        return "time_proj.weight"
    words = name.split(".")
    if len(words) >= 3 and words[-3].isdigit() and words[-2] in _OLD_ATTENTION and "attentions" in words:
        words[-2] = _OLD_ATTENTION[words[-2]]
    return ".".join(words)
