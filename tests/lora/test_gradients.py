"""A layer that adds factors to its kernel has the derivatives of the sum, and makes no gradient of a whole kernel."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import text_model

import cmjax
from cmjax._numerics import f32
from cmjax.models import trigflow_of_vp
from cmjax.models.layers.on_cpu import convolve
from cmjax.models.lora import Factors, Product
from cmjax.models.lora.adapted import _layer_of


def convolved(x: Any, kernel: Any) -> Any:
    return convolve(x, kernel, (1, 1), ((1, 1), (1, 1)))


SHAPES = {
    "linear": (jnp.matmul, (2, 64, 16), (16, 12), None),
    "conv": (convolved, (2, 8, 8, 16), (3, 3, 16, 12), None),
    "mid": (convolved, (2, 8, 8, 16), (3, 3, 16, 12), (3, 3, 4, 4)),
}


def arguments(kind: str) -> tuple[Any, Any]:
    """The layer as a formula, and what it is called with: two changes."""
    apply, of_x, of_kernel, of_mid = SHAPES[kind]
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)  # noqa: E731
    changes = []
    for scale in (0.7, -0.4):
        down = draw(*(of_kernel[:-1] if of_mid is None else of_kernel[-2:-1]), 4)
        form = Product(down, draw(4, of_kernel[-1]), None if of_mid is None else draw(*of_mid))
        changes.append((Factors(form, jnp.float32(3.0)), jnp.float32(scale)))

    def formula(x: Any, kernel: Any, changes: Any) -> Any:
        return apply(x, f32(kernel) + sum(scale * factors.delta(kernel) for factors, scale in changes))

    return formula, (draw(*of_x), draw(*of_kernel), changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_derivatives_both_ways(kind: str) -> None:
    formula, given = arguments(kind)
    layer = _layer_of(SHAPES[kind][0])
    ways = jax.tree.map(jnp.cos, given)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(np.abs(b).max()))  # noqa: E731
    for a, b in zip(jax.jvp(layer, given, ways), jax.jvp(formula, given, ways), strict=True):
        close(a, b)
    grads = [jax.grad(lambda *v, f=f: jnp.sum(jnp.sin(f(*v))), (0, 1, 2))(*given) for f in (layer, formula)]
    jax.tree.map(close, *grads)


def test_no_gradient_of_a_whole_kernel() -> None:
    """Of factors and pictures: twice the work forward, but for what has the factors' width."""
    formula, _ = arguments("linear")
    x, kernel, one = jnp.ones((1, 4096, 64)), jnp.ones((64, 64)), jnp.float32(1.0)
    changes = [(Factors(Product(jnp.ones((64, 1)), jnp.ones((1, 64))), one), one)]
    flops = []
    for function in (formula, _layer_of(jnp.matmul)):
        gradient = jax.jit(jax.grad(lambda x, c, f=function: jnp.sum(f(x, kernel, c) ** 2), (0, 1)))
        flops.append(gradient.lower(x, changes).compile().cost_analysis()["flops"])
    assert flops[1] < 0.8 * flops[0]


def test_no_gradient_of_a_whole_kernel_through_a_derivative() -> None:
    """A loss may hold the derivative by x, as `losses.continuous_consistency` does: the gradient is as cheap."""
    formula, (x, kernel, changes) = arguments("linear")
    layer = _layer_of(jnp.matmul)

    def loss(function: Any, x: Any, kernel: Any, changes: Any) -> Any:
        y, slope = jax.jvp(lambda x: function(x, kernel, changes), (x,), (jnp.cos(x),))
        return jnp.sum(jnp.sin(y) * jax.lax.stop_gradient(slope))

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-5 * float(np.abs(b).max()))  # noqa: E731
    gradients = [jax.jit(jax.grad(functools.partial(loss, function), 2)) for function in (layer, formula)]
    jax.tree.map(close, *(gradient(x, kernel, changes) for gradient in gradients))

    one = jnp.float32(1.0)
    small = [(Factors(Product(jnp.ones((64, 1)), jnp.ones((1, 64))), one), one)]
    lowered = [gradient.lower(jnp.ones((1, 4096, 64)), jnp.ones((64, 64)), small) for gradient in gradients]
    flops = [program.compile().cost_analysis()["flops"] for program in lowered]
    assert flops[0] < 0.8 * flops[1]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, (1.0, 0.5)], ids=("one", "one an image"))
def test_a_network_of_texts_has_a_derivative_by_noise_and_time(scale: Any) -> None:
    pipe = text_model()
    lora = jax.tree.map(lambda leaf: leaf + 0.05 if leaf.ndim else leaf, cmjax.lora.new(pipe.unet, 2))
    cond = pipe.encode(pipe.tokenize(["red", "fox"]))
    net = trigflow_of_vp(cmjax.lora.attach(pipe.unet, lora, jnp.asarray(scale)), pipe.config)
    x, dx = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 4))
    t, dt, h = jnp.array([0.4, 1.3]), jnp.array([0.3, 0.2]), 2e-4
    slope = jax.jit(lambda net: jax.jvp(lambda x, t: net(x, t, cond), (x, t), (dx, dt))[1])(net)
    near = jax.jit(lambda net, h: net(x + h * dx, t + h * dt, cond))
    wanted = (near(net, h) - near(net, -h)) / (2 * h)
    np.testing.assert_allclose(slope, wanted, atol=0.01 * float(np.abs(slope).max()))
