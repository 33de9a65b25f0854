"""Gradients that compute blocks again: the same numbers, and less memory."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import unets
from shapes import shaped

import cmjax
from cmjax import training
from cmjax.models import Network, combine, from_nnx, lora, partition, remat
from cmjax.models.lora import Factors, Product
from cmjax.models.text_cond import TextCond
from cmjax.models.unet2d_condition import UNetCondition, UNetConditionConfig

SMALL = {
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
}
X = jnp.asarray(np.random.default_rng(2).normal(size=(2, 16, 16, 4)), jnp.float32)
COND = TextCond(jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 6)), jnp.float32))


def of_texts(depth=2):
    """A network with a LoRA beside its weights, no zeros among either."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(0.2 * rng.normal(size=shape), jnp.float32)  # noqa: E731
    abstract = from_nnx(
        shaped(lambda rngs: UNetCondition(UNetConditionConfig(**SMALL, transformer_layers_per_block=depth), rngs=rngs))
    )
    network = jax.tree.map(lambda p: draw(*p.shape), abstract)
    factors = {
        name: Factors(Product(draw(*shape[:-1], 2), draw(2, shape[-1])), jnp.float32(2.0))
        for name, shape in lora.kernels(network).items()
        if "time" not in name
    }
    return lora.attach(network, factors, jnp.float32(1.0))


def value(trained, rest, *inputs, **options):
    return jnp.square(combine(trained, rest)(*inputs, **options)).mean()


def kept(model, *inputs, **options):
    """Bytes of what a gradient keeps between its two passes, the model and the inputs left out."""
    trained, rest = partition(model)

    def forward(trained, rest, inputs):
        return jax.tree.leaves(jax.vjp(lambda trained: value(trained, rest, *inputs, **options), trained)[1])

    jaxpr = jax.make_jaxpr(forward)(trained, rest, inputs).jaxpr
    here = {id(var) for var in (*jaxpr.invars, *jaxpr.constvars)}
    found = {id(var): var.aval for var in jaxpr.outvars if id(var) not in here and var.aval.ndim}
    return sum(aval.size * aval.dtype.itemsize for aval in found.values())


def test_a_gradient_keeps_less():
    network, inputs = of_texts(), (X, jnp.float32(500.0), COND)
    assert kept(remat(network), *inputs) < 0.15 * kept(network, *inputs)


@pytest.mark.slow
def test_a_network_of_texts_with_a_lora_has_the_same_gradients():
    network, inputs = of_texts(), (X, jnp.float32(500.0), COND)
    trained, rest = partition(network)
    again, same = partition(remat(network))
    assert all(one is other for one, other in zip(jax.tree.leaves(rest), jax.tree.leaves(same), strict=True))
    slopes = jax.jit(jax.value_and_grad(value))
    plain, recomputed = slopes(trained, rest, *inputs), slopes(again, same, *inputs)
    for one, other in zip(*map(jax.tree.leaves, (plain, recomputed)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_compiled_gradient_needs_less_memory():
    network, inputs = of_texts(depth=8), (X, jnp.float32(500.0), COND)
    # XLA's default scheduler for CPUs looks for work to do at once, not for memory to save.
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

    def memory(network):
        lowered = jax.jit(jax.grad(value)).lower(*partition(network), *inputs)
        return lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes

    assert memory(remat(network)) < 0.8 * memory(network)


@pytest.mark.slow
def test_dropout_forward_derivatives_and_vmap_are_the_same():
    network = unets.network(**unets.SMALLEST | {"down_block_types": ("AttnDownBlock2D",)}, dropout=0.5)
    x, t, cond = unets.inputs()
    key = jax.random.key(0)
    assert kept(remat(network), x, t, cond, key=key) < 0.3 * kept(network, x, t, cond, key=key)

    @jax.jit
    def found(network):
        run = partial(value, *partition(network))
        slope = jax.grad(lambda x: run(x, t, cond, key=key))(x)
        forward = jax.jvp(lambda x, t: network(x, t, cond, key=key), (x, t), (x, jnp.ones_like(t)))
        mixed = jax.grad(lambda x: jax.jvp(lambda t: network(x, t, cond), (t,), (jnp.ones_like(t),))[1].sum())(x)
        each = jax.vmap(jax.grad(lambda x, t, cond: run(x[None], t, cond[None])))(x, t, cond)
        return slope, forward, mixed, each

    for one, other in zip(*map(jax.tree.leaves, (found(network), found(remat(network)))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max())


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match=r"remat needs a network with blocks .* wrap the blocks of your own module"):
        remat(toy.model())
    assert isinstance(remat({"net": unets.without_numbers(unets.config()), "other": 1})["net"], Network)


@pytest.mark.slow
def test_a_run_that_computes_again_learns_the_same():
    network = unets.network(**unets.SMALLEST, num_class_embeds=None, in_channels=3, add_attention=False)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    recipe = training.Recipe(steps=2, batch_size=4, optimizer=training.Optimizer(warmup_steps=0))
    one, other = (
        training.train(network, cmjax.cm.CMConfig(), images, recipe=dataclasses.replace(recipe, remat=again))
        for again in (False, True)
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(*map(jax.tree.leaves, (one.model, other.model)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
