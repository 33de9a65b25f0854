"""Find the LoRA that makes one model of another, as nearly as its rank allows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from cmjax._numerics import whole
from cmjax.lora.parts import Model, networks
from cmjax.models import Network
from cmjax.models.lora import Factors, LoRA, Product, attached, kernels, pixel_layers

__all__ = ["extract"]


def extract(base: Network | Model, tuned: Network | Model, rank: int) -> LoRA:
    """Find the best LoRA of a rank between two models: the largest singular vectors of each kernel's difference.

    Biases and norms are not part of a LoRA: what differs there is lost.

    Args:
      base: a text-to-image model, or one of its networks.
      tuned: a model of the same shapes.
      rank: of each kernel's factors, at most; less where a kernel has fewer channels.

    Returns:
      The LoRA, resolved, of all kernels that differ.

    Raises:
      ValueError: the models have other shapes, one has LoRAs beside its weights or weights that are not finite, rank is
        not positive, or nothing differs.
      TypeError: one is no model, or has no weights (`abstract`), or rank is no whole number.

    Example:
      >>> import cmjax
      >>> unet = cmjax.text_to_image.load("emoji").unet
      >>> kernel = unet.leaves()["conv_in.kernel"]
      >>> lora = extract(unet, unet.replace({"conv_in.kernel": 1.01 * kernel}), rank=4)
      >>> lora.ranks
      (4,)

    References:
      Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """
    rank = whole("rank", rank, least=1)
    ours, theirs = networks(base), networks(tuned)
    shapes = [{part: kernels(network) for part, network in one.items()} for one in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError("base and tuned must be models of the same shapes, but their kernels differ.")
    for network in (*ours.values(), *theirs.values()):
        network.refuse_abstract()
        if attached(network):
            raise ValueError(
                "base and tuned must be models without LoRAs beside their weights: cmjax.lora.attached gives "
                "those, and cmjax.lora.detach takes them off."
            )
    factors = {}
    for part, network in ours.items():
        of_pixels = pixel_layers(network)
        old, new = network.leaves(), theirs[part].leaves()
        for name in shapes[0][part]:
            before, after = old[f"{name}.kernel"], new[f"{name}.kernel"]
            if before is after:
                continue
            if (change := np.asarray(after, np.float64) - np.asarray(before, np.float64)).any():
                if not np.isfinite(change).all():
                    raise ValueError(f"base and tuned must have finite weights, but those of {part}.{name} are not.")
                product = _product(change, rank)
                alpha = jnp.asarray(product.rank, jnp.float32)
                factors[f"{part}.{name}"] = Factors(product, alpha, of_pixels=name in of_pixels)
    if not factors:
        raise ValueError("base and tuned must differ, but all their kernels are the same.")
    return LoRA(factors)


def _product(change: np.ndarray, rank: int) -> Product:
    """Split the difference of two kernels; the singular values go to both factors alike."""
    matrix = change.reshape(-1, change.shape[-1])
    if len(matrix) < matrix.shape[1]:
        up, values, down = _singular(matrix.T, rank)
    else:
        down, values, up = _singular(matrix, rank)
    down, up = down * np.sqrt(values), up * np.sqrt(values)
    return Product(jnp.asarray(down.reshape(*change.shape[:-1], -1), jnp.float32), jnp.asarray(up.T, jnp.float32))


def _singular(tall: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest singular values of a tall matrix, and their vectors in columns, by its smaller Gram matrix."""
    import scipy.linalg  # only here, since it takes a while to import

    width = tall.shape[1]
    squares, right = scipy.linalg.eigh(tall.T @ tall, subset_by_index=[max(width - rank, 0), width - 1])
    values, right = np.sqrt(np.maximum(squares[::-1], 0.0)), right[:, ::-1]
    is_there = values > values[0] * 1e-7
    values, right = values[is_there], right[:, is_there]
    return tall @ right / values, values, right
