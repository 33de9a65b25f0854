import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import unets
from flax import nnx

import cmjax
from cmjax.models import UNet, from_function, from_linen, from_nnx


class Linen(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, x, t, cond=None):
        x = nn.Dense(self.width)(x) * t
        return nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x)


class Nnx(nnx.Module):
    def __init__(self, width=3, *, rngs):
        self.linear = nnx.Linear(3, width, rngs=rngs)

    def __call__(self, x, t, cond=None, *, key=None):
        y = self.linear(x) * t
        return y if key is None else y * jax.random.bernoulli(key, 0.5, y.shape)


def function(params, x, t, cond, *, key=None):
    y = (x @ params["w"] + params["b"]) * t
    return y if key is None else y * jax.random.bernoulli(key, 0.5, y.shape)


X, T = jnp.arange(12.0).reshape(4, 3), jnp.float32(2.0)


def make(kind, seed=0):
    if kind == "linen":
        return from_linen(Linen(), Linen().init(jax.random.key(seed), X, T))
    if kind == "nnx":
        return from_nnx(Nnx(rngs=nnx.Rngs(seed)))
    return from_function(function, {"w": jnp.full((3, 3), seed + 1.0), "b": jnp.ones(3)})


KINDS = ("linen", "nnx", "function")
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_the_leaves_are_the_parameters(kind):
    network = make(kind)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(network)) == [(3,), (3, 3)]
    assert "12 parameters" in repr(network) and "\n" not in repr(network)


@kinds
def test_it_computes_what_the_wrapped_thing_computes(kind):
    network = make(kind)
    weight, bias = sorted(jax.tree.leaves(network), key=lambda leaf: -leaf.ndim)
    np.testing.assert_allclose(jax.jit(lambda n: n(X, T, None))(network), (X @ weight + bias) * 2, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(network)(X, T), (X @ weight + bias) * 2, rtol=1e-6)


@kinds
def test_other_weights_do_not_retrace(kind):
    traces = []

    @jax.jit
    def call(network, x):
        traces.append(1)
        return network(x, T, None)

    first, second = call(make(kind, 0), X), call(make(kind, 1), X)
    assert jnp.abs(first - second).max() > 0.1
    assert len(traces) == 1


@kinds
def test_the_key_passes_through(kind):
    network = make(kind)
    dropped = network(X, T, None, key=jax.random.key(0))
    assert (dropped == 0).any() and not (network(X, T, None)[1:] == 0).any()


@kinds
def test_it_trains_with_grad_and_optax(kind):
    network, adam = make(kind), optax.adam(0.1)
    opt_state = adam.init(network)
    loss = jax.jit(jax.value_and_grad(lambda n: jnp.square(n(X, T, None) - X).mean()))
    before, grads = loss(network)
    for _ in range(20):
        updates, opt_state = adam.update(loss(network)[1], opt_state)
        network = optax.apply_updates(network, updates)
    assert type(grads) is type(network) and loss(network)[0] < 0.5 * before


@kinds
def test_it_maps_and_vmaps(kind):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), make(kind, 0), make(kind, 1))
    out = jax.vmap(lambda n: n(X, T, None))(stacked)
    np.testing.assert_allclose(out[1], make(kind, 1)(X, T, None), rtol=1e-6)


@kinds
def test_it_samples(kind):
    state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2)
    images = jax.jit(cmjax.generate, static_argnames="shape")(make(kind), state, jax.random.key(0), shape=(4, 3))
    assert images.shape == (4, 3) and jnp.isfinite(images).all()


def test_other_definitions_are_other_trees():
    trees = [jax.tree.structure(make(kind)) for kind in KINDS]
    assert len(set(trees)) == 3
    assert jax.tree.structure(from_nnx(Nnx(4, rngs=nnx.Rngs(0)))) != jax.tree.structure(make("nnx"))
    assert jax.tree.structure(make("nnx", 3)) == jax.tree.structure(make("nnx"))


def test_the_module_comes_back():
    unet = UNet(unets.config(), rngs=nnx.Rngs(0))
    network = from_nnx(unet)
    assert network.module.config == network.config == unet.config
    assert make("function").config is None
    assert network.module.conv_in.kernel[...] is unet.conv_in.kernel[...]
    assert make("linen").module == Linen()
    assert make("function").module is function


def test_leaves_have_names_and_are_replaced_by_them():
    network = unets.network()
    leaves = network.leaves()
    bias = leaves["down_blocks.0.resnets.0.conv1.bias"]
    other = network.replace({"down_blocks.0.resnets.0.conv1.bias": 1 + bias})
    changed = [name for name, leaf in other.leaves().items() if leaf is not leaves[name]]
    assert changed == ["down_blocks.0.resnets.0.conv1.bias"]
    assert jax.tree.structure(other) == jax.tree.structure(network)
    np.testing.assert_array_equal(other.module.down_blocks[0].resnets[0].conv1.bias[...], 1 + bias)
    with pytest.raises(ValueError, match=r"as Network.leaves\(\) names them, got 'conv1'"):
        network.replace({"conv1": bias})
    with pytest.raises(ValueError, match=r"leaf conv_in.bias must have shape \(8,\), got \(3,\)"):
        network.replace({"conv_in.bias": jnp.ones(3)})


def test_parameters_have_names():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(unets.network())]
    assert ".down_blocks.1.attentions.0.to_out.0.kernel" in paths
    assert len(set(paths)) == len(paths)


def test_a_function_without_parameters():
    network = from_function(lambda x, t, cond: x * t)
    assert jax.tree.leaves(network) == []
    np.testing.assert_array_equal(jax.jit(lambda n: n(X, T))(network), 2 * X)


def test_flattening_costs_little():
    """Passing a network through `jit` costs at most three times what passing the bare arrays costs."""
    network = unets.network()
    leaves = tuple(jax.tree.leaves(network))

    def best(tree, repeat=200):
        import timeit

        return min(timeit.repeat(lambda: jax.tree.flatten(tree), number=10, repeat=repeat))

    assert best(network) < 3 * best(leaves)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda: from_linen(Linen(), [jnp.ones(3)]), "variables must be the mapping .*, got list"),
        (lambda: from_function(3), "fn must be a function of .*, got int"),  # type: ignore[arg-type]
        (lambda: from_function(Unhashable()), "Unhashable must be hashable to cross jit"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(wrap, message):
    with pytest.raises(TypeError, match=message):
        wrap()


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x, t, cond):
        return x
