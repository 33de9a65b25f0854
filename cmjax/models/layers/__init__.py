"""Layers that networks of every family are made of: they take numbers, not a family's config."""

from cmjax.models.layers.activation import activation
from cmjax.models.layers.attention import Attention, PixelAttention, attend
from cmjax.models.layers.convolution import Conv, Downsample2D, Upsample2D
from cmjax.models.layers.division import Division, whole
from cmjax.models.layers.dropout import dropout, dropout_keys
from cmjax.models.layers.embeddings import (
    ClassEmbedding,
    FourierProjection,
    TimestepEmbedding,
    guidance_embedding,
    positional,
)
from cmjax.models.layers.initial import fan_in_uniform
from cmjax.models.layers.layout import Layout, Stored
from cmjax.models.layers.linear import Dtype, Linear, PixelLinear, apply_in_parts
from cmjax.models.layers.norm import AdaGroupNorm, GroupNorm, LayerNorm
from cmjax.models.layers.remat import Block, again
from cmjax.models.layers.resample import avg_pool, fir_double, fir_halve, resize_nearest, upsample_nearest
from cmjax.models.layers.resnet import ResnetBlock
from cmjax.models.layers.transformer import FeedForward, Transformer2D, TransformerBlock

__all__ = [
    "AdaGroupNorm",
    "Attention",
    "Block",
    "ClassEmbedding",
    "Conv",
    "Division",
    "Downsample2D",
    "Dtype",
    "FeedForward",
    "FourierProjection",
    "GroupNorm",
    "LayerNorm",
    "Layout",
    "Linear",
    "PixelAttention",
    "PixelLinear",
    "ResnetBlock",
    "Stored",
    "TimestepEmbedding",
    "Transformer2D",
    "TransformerBlock",
    "Upsample2D",
    "activation",
    "again",
    "apply_in_parts",
    "attend",
    "avg_pool",
    "dropout",
    "dropout_keys",
    "fan_in_uniform",
    "fir_double",
    "fir_halve",
    "guidance_embedding",
    "positional",
    "resize_nearest",
    "upsample_nearest",
    "whole",
]
