"""One network over several devices: the numbers of one device, and no more traffic than the rule needs."""

import contextlib
import dataclasses
import functools

import collectives
import full_size_texts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import cmjax
from cmjax import _cpu, text_to_image
from cmjax.models import combine, lora, partition, remat, tensor_sharding
from cmjax.models.lora import Factors, Hadamard, Kronecker, Product

NAME = "four-heads"  # Stable Diffusion XL in small: heads that four devices divide at each level
TINY = full_size_texts.MODELS["tiny-xl"]
BLOCKS, RESNETS, RESIZES = 2 + 1 + 1, 2 + 2 + 4, 2  # of it


@pytest.fixture(autouse=True)
def _models(monkeypatch):
    unet = dataclasses.replace(TINY.unet, attention_head_dim=(4, 4))
    monkeypatch.setitem(full_size_texts.MODELS, NAME, TINY._replace(unet=unet))


@functools.cache
def abstract(name=NAME):
    return full_size_texts.abstract(name).unet


def mesh_of(batch, model):
    devices = jax.devices()[: batch * model]
    return jax.make_mesh((batch, model), ("batch", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def specs(model, mesh):
    return {name: where.spec for name, where in tensor_sharding(model, mesh).leaves().items()}


def told(batch=2):
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
    return draw(np.empty((batch, 8, 8, 4))), jnp.float32(300.0), jax.tree.map(draw, full_size_texts.given(NAME, batch))


def with_lora(network, *, seed=2):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(0.1 * rng.standard_normal(shape), jnp.float32)  # noqa: E731
    factors = {
        name: Factors(Product(draw(*shape[:-1], 2), draw(2, shape[-1])), jnp.float32(2.0))
        for name, shape in lora.kernels(network).items()
        if "time" not in name
    }
    return lora.attach(network, factors, jnp.asarray([0.5, 1.5], jnp.float32))


def near(one, other, rtol=3e-6):
    """By the norm of all numbers together; and each array to 5e-5, since small ones are differences of large sums.

    In float64, the numbers of one device differ from the exact ones by as much: 5e-7 in all, 7e-6 in one array.
    """
    pairs = list(zip(*map(jax.tree.leaves, (one, other)), strict=True))
    norm = lambda values: np.sqrt(sum(np.square(np.asarray(v, np.float64)).sum() for v in values))  # noqa: E731
    assert norm(np.subtract(a, b) for a, b in pairs) <= rtol * norm(b for _, b in pairs)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-5 * np.abs(b).max())


# ---- where weights go ------------------------------------------------------------------------------------------------


def test_first_layers_divide_by_what_comes_out_and_last_ones_by_what_goes_in():
    found = specs(abstract(), mesh_of(1, 4))
    block, resnet = "mid_block.attentions.0.transformer_blocks.0", "mid_block.resnets.0"
    columns = {f"{block}.attn{i}.to_{x}.kernel": P(None, "model") for i in (1, 2) for x in "qkv"}
    columns |= {f"{resnet}.conv1.kernel": P(None, None, None, "model"), f"{resnet}.norm2.scale": P("model")}
    columns |= {f"{resnet}.conv1.bias": P("model"), "down_blocks.0.downsamplers.0.conv.kernel": P(*[None] * 3, "model")}
    rows = {f"{block}.attn1.to_out.0.kernel": P("model", None), f"{block}.ff.net.2.kernel": P("model", None)}
    rows |= {f"{resnet}.conv2.kernel": P(None, None, "model", None)}
    plain = ("attn1.to_out.0.bias", "ff.net.2.bias", "ff.net.0.proj.kernel", "norm1.scale")
    whole = {f"{block}.{name}" for name in plain} | {f"{resnet}.{name}" for name in ("conv2.bias", "norm1.scale")}
    assert {name: found[name] for name in columns | rows} == columns | rows
    assert all(not any(found[name]) for name in whole | {"conv_in.kernel", "time_embedding.linear_1.kernel"})


def test_heads_that_the_devices_do_not_divide_stay_whole():
    network = abstract("tiny-xl")  # two heads
    on_two, on_four = specs(network, mesh_of(4, 2)), specs(network, mesh_of(1, 4))
    attention = [name for name in on_two if ".attn" in name]
    assert any(any(on_two[name]) for name in attention)
    assert not any(any(on_four[name]) for name in attention)
    assert any(on_four["mid_block.attentions.0.transformer_blocks.0.ff.net.2.kernel"])


def test_factors_go_as_the_kernel_beside_them():
    network = abstract()
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    block, resnet = "mid_block.attentions.0.transformer_blocks.0", "mid_block.resnets.0"
    product = lambda a, b: Product(spec(a, 2), spec(2, b))  # noqa: E731
    factors = {
        f"{block}.attn1.to_q": Factors(product(16, 16), spec(), spec(16)),
        f"{block}.attn1.to_out.0": Factors(product(16, 16), spec(), spec(16, 1)),
        f"{block}.attn1.to_k": Factors(Hadamard(product(16, 16), product(16, 16)), spec()),
        f"{block}.attn1.to_v": Factors(Kronecker(spec(4, 4), product(4, 4)), spec()),
        f"{resnet}.conv2": Factors(Product(spec(3, 3, 16, 2), spec(2, 16)), spec()),
    }
    found = specs(lora.attach(network, factors, spec(2)), mesh_of(1, 4))
    to = lambda layer, leaf: found[f"{layer}.changes.0.{leaf}"]  # noqa: E731
    q, k, v, out = (f"{block}.attn1.to_{x}" for x in ("q", "k", "v", "out.0"))
    assert [to(q, "form.up"), to(q, "magnitude"), to(k, "form.one.up")] == [
        P(None, "model"),
        P("model"),
        P(None, "model"),
    ]
    assert [to(out, "form.down"), to(out, "magnitude")] == [P("model", None)] * 2
    assert to(f"{resnet}.conv2", "form.down") == P(None, None, "model", None)
    whole = [to(q, "form.down"), to(q, "alpha"), to(q, "scale"), to(out, "form.up"), to(v, "form.outer")]
    assert not any(map(any, [*whole, to(v, "form.inner.up")]))


def test_what_it_cannot_divide_is_refused():
    network = abstract()
    with pytest.raises(ValueError, match=r"axis must be one of the mesh's, 'batch', 'model', got 'heads'"):
        tensor_sharding(network, mesh_of(1, 4), axis="heads")
    explicit = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    with pytest.raises(ValueError, match=r"mesh must have axes of type Auto.*axis_types=\(AxisType.Auto,\) \* 1"):
        tensor_sharding(network, explicit)
    with pytest.raises(ValueError, match=r"needs a network with layers that it divides"):
        tensor_sharding({"w": np.ones(3)}, mesh_of(1, 4))


# ---- what comes of it ------------------------------------------------------------------------------------------------


def call(network, x, t, cond):
    return network(x, t, cond)


def value(trained, rest, *inputs):
    return jnp.square(combine(trained, rest)(*inputs)).mean()


@functools.cache
def plain(adapted):
    network = full_size_texts.random(NAME).unet
    network = with_lora(network) if adapted else network
    inputs = told()
    return network, jax.jit(call)(network, *inputs), jax.jit(jax.grad(value))(*partition(network), *inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "adapted", "is_told"),
    [((1, 4), False, True), ((1, 4), True, True), ((2, 2), True, True), ((1, 4), False, False)],
    ids=["model", "model, lora", "both, lora", "no mesh"],
)
def test_output_and_gradient_are_those_of_one_device(shape, adapted, is_told):
    mesh = mesh_of(*shape)
    network, expected, slope = plain(adapted)
    network = jax.device_put(network, tensor_sharding(network, mesh))
    x, t, cond = told()
    if shape[0] == 2:
        x, cond = jax.device_put((x, cond), NamedSharding(mesh, P("batch")))
    with jax.set_mesh(mesh) if is_told else contextlib.nullcontext():
        near(jax.jit(call)(network, x, t, cond), expected)
        near(jax.jit(jax.grad(value))(*partition(network), x, t, cond), slope)


@pytest.mark.slow
def test_sums_meet_once_and_nothing_else_is_sent(monkeypatch):
    monkeypatch.setattr(_cpu, "WORKAROUNDS", False)  # the program as accelerators have it
    mesh = mesh_of(1, 4)
    network = abstract()
    placed = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    network = jax.tree.map(placed, network, tensor_sharding(network, mesh))
    inputs = jax.tree.map(lambda leaf: placed(leaf, NamedSharding(mesh, P())), told())
    with jax.set_mesh(mesh):
        text = jax.jit(call).lower(network, *inputs).compile().as_text()
    found = collectives.totals(collectives.collectives(text, 4))
    assert {kind: one["count"] for kind, one in found.items()} == {
        "all-reduce": 3 * BLOCKS + RESNETS, "all-gather": RESIZES,
    }  # fmt: skip


@pytest.mark.slow
def test_a_whole_picture_is_that_of_one_device():
    pipe = full_size_texts.random(NAME)
    mesh = mesh_of(1, 4)
    state = cmjax.tcd.init(pipe.config, num_steps=2, eta=0.3)
    _, _, cond = told()
    draw = functools.partial(text_to_image.draw, state=state, key=jax.random.key(0), cond=cond, size=(64, 64))
    expected = draw(pipe)
    with jax.set_mesh(mesh):
        near(draw(jax.device_put(pipe, tensor_sharding(pipe, mesh))), expected)


@pytest.mark.slow
def test_one_picture_of_an_odd_size_under_vmap_and_recomputed():
    network = full_size_texts.random(NAME).unet
    mesh = mesh_of(1, 4)
    _, _, cond = told(1)
    x = jnp.asarray(np.random.default_rng(3).standard_normal((1, 10, 6, 4)), jnp.float32)

    def both(network, x, t, cond):
        slope = jax.grad(lambda x: jnp.square(network(x, t[0], cond)).mean())(x)
        return jax.vmap(lambda t: network(x, t, cond))(t), slope

    t = jnp.asarray([10.0, 900.0])
    expected = jax.jit(both)(network, x, t, cond)
    with jax.set_mesh(mesh):
        near(jax.jit(both)(remat(jax.device_put(network, tensor_sharding(network, mesh))), x, t, cond), expected)
