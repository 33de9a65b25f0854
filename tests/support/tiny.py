"""Tiny checkpoints with random weights, made without compiling anything: for tests of files and of the command."""

import jax
import numpy as np
import unets

import cmjax
from cmjax.io import Checkpoint


def checkpoint(*, channels=1, classes=3, seed=0, config=None, **changes):
    unet_config = unets.config(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
        num_class_embeds=classes,
        **changes,
    )
    rng = np.random.default_rng(seed)
    numbers = lambda leaf: jax.numpy.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    return Checkpoint(jax.tree.map(numbers, unets.without_numbers(unet_config)), config or cmjax.cm.CMConfig())
