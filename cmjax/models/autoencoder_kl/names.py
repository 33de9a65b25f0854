"""What files of this family call things. The rule that gives all other weights their names is in `cmjax.io.weights`."""

from __future__ import annotations

__all__ = ["FOLDER", "STEM", "current"]

FOLDER = "vae"  # of a pipeline's folder
STEM = "diffusion_pytorch_model"  # of its weights' files

# The names that attention layers had before diffusers 0.15; most published autoencoders still carry them.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def current(name: str) -> str | None:
    """Map a tensor's name in a file, old or new, to its name today.

    Example:
      >>> current("encoder.mid_block.attentions.0.query.bias")
      'encoder.mid_block.attentions.0.to_q.bias'
    """
    words = name.split(".")
    if "attentions" in words and words[-2] in _OLD_ATTENTION:
        words[-2] = _OLD_ATTENTION[words[-2]]
    return ".".join(words)
