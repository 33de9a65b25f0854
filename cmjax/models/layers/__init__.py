"""Layers that networks of every family are made of: they take numbers, not a family's config."""

from cmjax.models.layers.activation import activation
from cmjax.models.layers.attention import attend
from cmjax.models.layers.convolution import Downsample2D, Upsample2D, avg_pool, conv, doubled_conv, upsample_nearest
from cmjax.models.layers.dropout import dropout, dropout_keys
from cmjax.models.layers.embeddings import (
    ClassEmbedding,
    FourierProjection,
    TimestepEmbedding,
    guidance_embedding,
    positional,
)
from cmjax.models.layers.fir import fir_double, fir_halve
from cmjax.models.layers.initial import fan_in_uniform
from cmjax.models.layers.linear import Dtype, linear
from cmjax.models.layers.norm import GroupNorm

__all__ = [
    "ClassEmbedding",
    "Downsample2D",
    "Dtype",
    "FourierProjection",
    "GroupNorm",
    "TimestepEmbedding",
    "Upsample2D",
    "activation",
    "attend",
    "avg_pool",
    "conv",
    "doubled_conv",
    "dropout",
    "dropout_keys",
    "fan_in_uniform",
    "fir_double",
    "fir_halve",
    "guidance_embedding",
    "linear",
    "positional",
    "upsample_nearest",
]
