"""Attention in chunks and by kernels: the values of the square of logits, which no program holds."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cmjax.models.layers import attend, long_attention
from cmjax.models.layers.long_attention import attend_long, in_chunks, square

SHAPES = [jax.ShapeDtypeStruct((1, 8, 4096, 40), jnp.bfloat16)] * 3


@pytest.fixture
def short(monkeypatch):
    """Chunks of few queries, so that few queries have several."""
    monkeypatch.setattr(long_attention, "_FEWEST", 4)
    monkeypatch.setattr(long_attention, "_ON_CPU", 1)
    yield
    jax.clear_caches()


def draw(num=10, keys=7, width=6, dtype=jnp.float32, batch=2):
    rng = np.random.default_rng(0)
    shapes = [(batch, 3, num, width)] + [(batch, 3, keys, width)] * 2
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@pytest.mark.parametrize(("keys", "causal"), [(7, False), (10, True)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_chunks_are_the_square(short, dtype, keys, causal):
    q, k, v = draw(keys=keys, dtype=dtype)
    expected = square(q, k, v, causal=causal)
    chunks = functools.partial(in_chunks, most=1)
    for way in (chunks, jax.jit(chunks, static_argnames="causal")):
        out = way(q, k, v, causal=causal)
        assert out.dtype == dtype and out.shape == q.shape
        np.testing.assert_allclose(out.astype(np.float32), expected.astype(np.float32), atol=2e-6)
    np.testing.assert_allclose(attend_long(q, k, v, causal).astype(np.float32), expected.astype(np.float32), atol=2e-6)
    if causal:
        np.testing.assert_array_equal(attend(q, k, v, causal=True), expected)
        changed = attend(q, k.at[:, :, 5:].add(1), v.at[:, :, 5:].add(1), causal=True)
        np.testing.assert_array_equal(changed[:, :, :5], expected[:, :, :5])


def test_derivatives_of_both_modes_and_maps_are_those_of_the_square(short):
    qkv, tangents = draw(), jax.tree.map(jnp.cos, draw())

    def derivatives(function):
        def loss(q, k, v):
            return jnp.sin(3 * function(q, k, v)).sum()

        hessian_product = jax.jvp(jax.grad(loss, (0, 1, 2)), qkv, tangents)
        mapped = jax.vmap(function, in_axes=(1, None, 3), out_axes=2)
        q, k, v = qkv
        twice = mapped(jnp.stack([q, 2 * q], 1), k, jnp.stack([v, v + 1], 3))
        return jax.jvp(function, qkv, tangents), hessian_product, twice

    ours, exact = (jax.jit(functools.partial(derivatives, function))() for function in (attend_long, square))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, exact)


def test_a_batch_on_several_devices_stays_there(short):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    qkv = draw(batch=8)
    spread = jax.device_put(qkv, NamedSharding(mesh, P("batch")))
    expected = square(*qkv)
    by_hand = jax.shard_map(attend_long, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    for way in (jax.jit(attend_long), jax.jit(by_hand)):
        out = way(*spread)
        np.testing.assert_allclose(out, expected, atol=2e-6)
        assert out.sharding.spec[0] == "batch"
        assert "all-gather" not in way.lower(*spread).compile().as_text()


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_for_tpu_has_the_values_of_the_square(causal):
    from jax.experimental.pallas import tpu

    q, k, v = draw(num=256, keys=256, width=40, batch=1)
    with tpu.force_tpu_interpret_mode():
        out = jax.jit(functools.partial(long_attention._flash, causal=causal))(q, k, v)
    np.testing.assert_allclose(out, square(q, k, v, causal=causal), atol=2e-6)


# ---- programs for machines that are not here -------------------------------------------------------------------------


def lowered(function, shapes, *platforms):
    text = jax.export.export(jax.jit(function), platforms=platforms)(*shapes).mlir_module()
    assert not re.search(r"4096x4096x(f32|bf16)", text), "the square of logits"
    return text.count("tpu_custom_call")


def gradient(*qkv):
    return jax.value_and_grad(lambda *qkv: jnp.square(attend(*qkv)).astype(jnp.float32).sum(), (0, 1, 2))(*qkv)


def test_no_program_holds_the_square_and_the_tpu_has_its_kernel():
    platforms = ("cpu", "cuda", "tpu")
    assert lowered(attend, SHAPES, *platforms) == 1
    assert lowered(functools.partial(attend, causal=True), SHAPES, *platforms) == 1
    assert lowered(gradient, SHAPES, *platforms) == 1
    assert lowered(jax.vmap(attend), [jax.ShapeDtypeStruct((3, *s.shape), s.dtype) for s in SHAPES], *platforms) == 1
    assert lowered(attend, SHAPES, "cpu", "cuda") == 0


def test_where_the_kernel_does_not_fit_there_are_chunks():
    (batch,) = jax.export.symbolic_shape("b")
    odd = [jax.ShapeDtypeStruct((1, 8, 4100, 40), jnp.float32)] * 3
    assert lowered(attend, odd, "tpu") == 0
    assert lowered(attend, [jax.ShapeDtypeStruct((batch, *s.shape[1:]), s.dtype) for s in SHAPES], "tpu") == 0
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, P("batch"))
    shapes = [jax.ShapeDtypeStruct((8, *s.shape[1:]), s.dtype, sharding=spread) for s in SHAPES]
    assert lowered(attend, shapes, "tpu") == 0  # XLA would have to divide the kernel
    for check, kernels in ((True, 0), (False, 1)):
        alone = jax.shard_map(attend, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"), check_vma=check)
        assert lowered(alone, shapes, "tpu") == kernels


def test_what_fits_is_attended_to_as_ever():
    """Sizes of today's models: one product for all heads, or one for each on a CPU, bit for bit."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 2, 1600, 8)), jnp.float32) for _ in range(3))
    one = jax.jit(lambda q, k, v: jax.lax.map(lambda head: square(*head), (q[0], k[0], v[0])))
    np.testing.assert_array_equal(jax.jit(attend)(q, k, v)[0], one(q, k, v))
