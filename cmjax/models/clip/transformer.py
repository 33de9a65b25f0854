"""The transformer that CLIP's encoders of texts and of pictures share."""

from __future__ import annotations

from typing import ClassVar

from flax import nnx

from cmjax.models.clip.config import TextConfig, VisionConfig
from cmjax.models.layers import Division, Dtype, LayerNorm, Linear, activation, attend, whole
from cmjax.types import Array

__all__ = ["Encoder"]

Config = TextConfig | VisionConfig


class _Attention(nnx.Module):
    """Attention of each token to all, or to itself and those before it."""

    division: ClassVar[Division] = Division(lambda self: self.heads, ("q_proj", "k_proj", "v_proj"), ("out_proj",))

    def __init__(self, config: Config, dtype: Dtype, rngs: nnx.Rngs, *, causal: bool):
        width = config.hidden_size
        self.heads, self.causal = config.num_attention_heads, causal
        self.q_proj = Linear(width, width, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(width, width, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(width, width, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        q, k, v = (
            project(x).reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return whole(self.out_proj(attend(q, k, v, causal=self.causal).swapaxes(1, 2).reshape(x.shape)))


class _FeedForward(nnx.Module):
    division: ClassVar[Division] = Division(lambda self: self.fc2.in_features, ("fc1",), ("fc2",))

    def __init__(self, config: Config, dtype: Dtype, rngs: nnx.Rngs):
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.act = activation(config.hidden_act)

    def __call__(self, x: Array) -> Array:
        return whole(self.fc2(self.act(self.fc1(x))))


class _Layer(nnx.Module):
    def __init__(self, config: Config, dtype: Dtype, rngs: nnx.Rngs, *, causal: bool):
        self.layer_norm1 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = _Attention(config, dtype, rngs, causal=causal)
        self.layer_norm2 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _FeedForward(config, dtype, rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """The layers, one after the other.

    Args:
      config: of an encoder.
      dtype: of matrix products.
      rngs: keys of the initial weights.
      causal: whether tokens attend to no later ones.
    """

    def __init__(self, config: Config, dtype: Dtype, rngs: nnx.Rngs, *, causal: bool):
        self.layers = nnx.List([_Layer(config, dtype, rngs, causal=causal) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Give the states between layers, f[B, N, D] each: x first, then what each layer returns."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)
