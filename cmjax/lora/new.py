"""Make a LoRA to train."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from cmjax._numerics import whole
from cmjax.lora.parts import Model, networks
from cmjax.models import Network
from cmjax.models.lora import Factors, LoRA, Product, kernels, pixel_layers

__all__ = ["TARGETS", "new"]

# The layers that published LoRAs of few-step models change: attention, projections, convolutions, times.
TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


def new(
    target: Network | Model,
    rank: int = 64,
    *,
    alpha: float | None = None,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
) -> LoRA:
    """Make a LoRA that changes nothing yet: first factors are random, and second ones are 0.

    `attach` gives it to a model, of which `training.train` then trains its factors alone. `attached` and `resolve`
    take it off again, and `write` writes it.

    Args:
      target: a text-to-image model, or one of its networks.
      rank: of each product of factors.
      alpha: the change counts alpha / rank times; None for rank, so that it counts once.
      targets: the ends of the names of the layers to change, such as `attn2.to_k`, in whole words; by default those of
        the published LoRAs of TCD and LCM. Those of text encoders are `q_proj`, `k_proj`, `v_proj`, `out_proj`, `fc1`
        and `fc2`.
      seed: of the random factors.

    Returns:
      The LoRA, resolved. First factors are drawn from N(0, 1 / n), of n numbers that go in.

    Raises:
      ValueError: rank is below 1 or above a layer's width, alpha is not a positive number, or no layer has such a name.
      TypeError: target is no model, or rank is no whole number.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> lora = new(pipe, rank=8)
      >>> lora.ranks, cmjax.lora.attach(pipe, lora).unet
      ((8,), Network(UNetCondition, 396,800 parameters))

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, section 4.1.
    """
    rank = whole("rank", rank, least=1)
    alpha = float(rank) if alpha is None else float(alpha)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a positive number, got {alpha}.")
    if isinstance(targets, str):
        raise TypeError(f"targets must be a list of names, got the text {targets!r}.")
    rng, factors, unused = np.random.default_rng(seed), {}, set(targets)
    for part, network in networks(target).items():
        of_pixels = pixel_layers(network)
        for name, shape in sorted(kernels(network).items()):
            meant = {one for one in targets if f".{name}".endswith(f".{one}")}
            if not meant:
                continue
            unused -= meant
            fan_in = math.prod(shape[:-1])
            width = min(fan_in, shape[-1])
            if rank > width:
                raise ValueError(
                    f"rank must be at most {width}, the width of {part}.{name} {shape}, got {rank}; give a lower rank."
                )
            down = rng.standard_normal((*shape[:-1], rank), np.float32) / np.float32(math.sqrt(fan_in))
            product = Product(jnp.asarray(down), jnp.zeros((rank, shape[-1]), jnp.float32))
            factors[f"{part}.{name}"] = Factors(product, jnp.float32(alpha), of_pixels=name in of_pixels)
    if not factors or (unused and tuple(targets) != TARGETS):
        said = ", ".join(sorted(unused)) or "none"
        raise ValueError(f"targets must end the names of layers with kernels; the model has none that end in {said}.")
    return LoRA(dict(sorted(factors.items())))
