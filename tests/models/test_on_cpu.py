"""Every formulation of a convolution is the convolution, and its gradient; each is chosen where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import _cpu, _random
from cmjax.models.layers import on_cpu
from cmjax.models.layers.attention import attend
from cmjax.models.layers.norm import group_norm
from cmjax.models.layers.on_cpu import convolve, convolve_doubled, upsample_nearest


def exact(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1))):
    """In float64, window by window."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *padding, (0, 0)))
    kernel = np.asarray(kernel, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    windows = windows[:, :: strides[0], :: strides[1]]
    return np.einsum("bhwcij,ijcd->bhwd", windows, kernel, optimize=True)


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


# Sizes that take each road (few pixels, many channels, neither), odd ones among them.
SIZES = {
    "direct": ((2, 9, 7, 5), (3, 3, 5, 6)),
    "one product": ((1, 3, 5, 130), (3, 3, 130, 140)),
    "minimal filtering": ((2, 8, 6, 128), (3, 3, 128, 130)),
    "minimal filtering, odd sizes": ((3, 7, 5, 128), (3, 3, 128, 128)),
    "one product, of pixels": ((2, 9, 7, 5), (1, 1, 5, 6)),
}


def padding_of(kernel):
    return ((kernel.shape[0] // 2,) * 2,) * 2


def formulation(x, kernel, **options):
    """Which one the machine is given, by what is in the program."""
    text = jax.jit(lambda x, k: convolve(x, k, (1, 1), padding_of(k))).lower(x, kernel).as_text(**options)
    products, convolutions = text.count("stablehlo.dot_general"), text.count("stablehlo.convolution")
    return {(0, 1): "direct", (1, 0): "one product", (16, 0): "minimal filtering"}[products, convolutions]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice is for CPUs")
@pytest.mark.parametrize("name", SIZES)
def test_each_size_takes_its_road(name):
    assert formulation(*arrays(*SIZES[name])) == name.split(",")[0]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", SIZES)
def test_on_accelerators_a_convolution_is_one_call(name, platform):
    x, kernel = arrays(*SIZES[name])
    kernel3 = jnp.ones((3, 3, *kernel.shape[2:]))
    call = jax.jit(lambda x, k: (convolve(x, k, (1, 1), padding_of(k)), convolve_doubled(x, kernel3)))
    text = call.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 2
    assert "stablehlo.dot_general" not in text


@pytest.mark.parametrize("name", SIZES)
def test_every_road_leads_to_the_convolution(name):
    x, kernel = arrays(*SIZES[name])
    ours = jax.jit(lambda x, k: convolve(x, k, (1, 1), padding_of(k)))(x, kernel)
    assert relative(ours, exact(x, kernel, padding=padding_of(kernel))) <= 2e-6


@pytest.mark.parametrize("strides", [(1, 1), pytest.param((2, 2), marks=pytest.mark.slow), (2, 1)])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (1, 0))])
@pytest.mark.parametrize("window", [(1, 1), pytest.param((2, 2), marks=pytest.mark.slow), (3, 3)])
def test_any_window_stride_and_padding_as_one_product(window, padding, strides, monkeypatch):
    monkeypatch.setattr(on_cpu, "_KERNEL_PER_PIXEL", 0)
    x, kernel = arrays((2, 6, 5, 3), (*window, 3, 4))
    assert relative(convolve(x, kernel, strides, padding), exact(x, kernel, strides, padding)) <= 2e-6


@pytest.mark.parametrize("shape", [(1, 6, 4, 128), (2, 1, 1, 128), (1, 3, 5, 128), (2, 5, 4, 6)])
def test_doubling_and_convolving_in_one(shape):
    x, kernel = arrays(shape, (3, 3, shape[-1], 130))
    assert relative(jax.jit(convolve_doubled)(x, kernel), exact(upsample_nearest(x), kernel)) <= 2e-6


def direct(x, kernel):
    """The textbook's convolution, as XLA has it."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding_of(kernel), dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


@pytest.mark.parametrize("constants", [{}, {"_KERNEL_PER_PIXEL": 0}, {"_CHANNELS": 1}], ids=["-", "product", "filter"])
@pytest.mark.parametrize(
    ("ours", "plain", "window"),
    [
        (lambda x, k: convolve(x, k, (1, 1), padding_of(k)), direct, 1),
        (lambda x, k: convolve(x, k, (1, 1), padding_of(k)), direct, 3),
        (convolve_doubled, lambda x, k: direct(upsample_nearest(x), k), 3),
    ],
    ids=["of a pixel", "3x3", "doubled"],
)
def test_derivatives_are_those_of_the_plain_convolution(ours, plain, window, constants, monkeypatch):
    for name, value in constants.items():
        monkeypatch.setattr(on_cpu, name, value)
    x, kernel, dx, dkernel = arrays(*[(2, 4, 3, 4), (window, window, 4, 5)] * 2)

    def derivatives(f):
        out, slope = jax.jvp(f, (x, kernel), (dx, dkernel))
        return out, slope, *jax.vjp(f, x, kernel)[1](jnp.sin(out))

    for mine, theirs in zip(jax.jit(lambda: derivatives(ours))(), derivatives(plain), strict=True):
        assert relative(mine, np.asarray(theirs)) <= 1e-5


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice is for CPUs")
@pytest.mark.parametrize("shape", [(2, 12, 10, 128), (1, 10, 9, 130)])
def test_large_pictures_are_filtered_in_strips(shape, monkeypatch):
    monkeypatch.setattr(on_cpu, "_STRIP", 5000)
    x, kernel = arrays(shape, (3, 3, shape[-1], 128))
    both = jax.jit(lambda x, k: (on_cpu._minimal_filtering(x, k), on_cpu._minimal_filtering_doubled(x, k)))
    assert both.lower(x, kernel).as_text().count("stablehlo.while") == 2
    plain, doubled = both(x, kernel)
    assert relative(plain, exact(x, kernel)) <= 2e-6
    assert relative(doubled, exact(upsample_nearest(x), kernel)) <= 2e-6


def test_narrow_doubling_computes_no_doubled_picture():
    x, kernel = arrays((2, 6, 4, 5), (3, 3, 5, 7))
    text = jax.jit(convolve_doubled).lower(x, kernel).as_text()
    assert "tensor<2x2x5x28xf32>" in text and "tensor<2x12x8x5xf32>" not in text


@pytest.mark.parametrize("on", [True, False])
def test_one_switch_turns_all_of_it_off(on, monkeypatch):
    monkeypatch.setattr(_cpu, "WORKAROUNDS", on)
    monkeypatch.setattr(on_cpu, "_WEIGHTS", 0)
    own = {name: formulation(*arrays(*shapes)) == "direct" for name, shapes in SIZES.items()}
    assert own == {name: not on or name == "direct" for name in SIZES}
    x, kernel, q = arrays((2, 6, 4, 5), (3, 3, 5, 7), (2, 3, 6, 4))
    doubled = jax.jit(lambda x, kernel: convolve_doubled(x, kernel)).lower(x, kernel).as_text()
    assert ("tensor<2x12x8x5xf32>" in doubled) != on
    assert ("stablehlo.while" in jax.jit(lambda q: attend(q, q, q)).lower(q[:, None]).as_text()) == on
    drawn = str(jax.make_jaxpr(lambda key: _random._normal(key, 7))(jax.random.key(0)))
    assert ("random_bits" in drawn) != on


def test_half_precision_takes_no_minimal_filtering():
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays(*SIZES["minimal filtering"]))
    assert formulation(x, kernel) == "direct"
    assert "tensor<2x16x12x128xbf16>" in jax.jit(convolve_doubled).lower(x, kernel).as_text()  # nor sums of kernels


def softmax_average(q, k, v):
    logits = np.einsum("bhqd,bhkd->bhqk", *(np.asarray(a, np.float64) for a in (q, k))) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), np.asarray(v, np.float64))


@pytest.mark.parametrize("most", [0, 1 << 22])
def test_attention_is_the_paper_s_formula_head_by_head_too(most, monkeypatch):
    monkeypatch.setattr(on_cpu, "_WEIGHTS", most)
    q, k, v = arrays(*[(2, 3, 10, 4)] * 3)
    call = jax.jit(lambda q, k, v: attend(q, k, v))  # its own: a jitted function is traced once
    assert relative(call(30 * q, k, v), softmax_average(30 * q, k, v)) <= 2e-6
    if jax.default_backend() == "cpu":
        assert ("stablehlo.while" in call.lower(q, k, v).as_text()) == (most == 0)


def test_attention_head_by_head_has_the_same_gradient(monkeypatch):
    def loss(q, k, v):
        return jnp.sin(attend(q, k, v)).sum()

    operands = arrays(*[(2, 3, 6, 4)] * 3)
    plain = jax.grad(loss, argnums=(0, 1, 2))(*operands)
    monkeypatch.setattr(on_cpu, "_WEIGHTS", 0)
    for ours, theirs in zip(jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*operands), plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("padding", [((2, 0), (0, 2)), ((0, 0), (1, 1)), ((1, 1), (1, 1)), ([1, 1], [1, 1])])
def test_padding_is_what_it_says_for_wide_kernels_too(padding):
    x, kernel = arrays((2, 6, 8, 128), (3, 3, 128, 128))
    assert relative(convolve(x, kernel, (1, 1), padding), exact(x, kernel, padding=padding)) <= 2e-6


def group_norm_by_hand(x, scale, bias, gain, shift, groups=3, eps=1e-5):
    """In the dtype of x, with NumPy's or JAX's own sums."""
    y = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    y = (y - y.mean((1, 3), keepdims=True)) / (y.var((1, 3), keepdims=True) + eps) ** 0.5
    return (y.reshape(x.shape) * scale + bias) * (1 + gain[:, None, None]) + shift[:, None, None]


@pytest.mark.parametrize("on", [True, False])
def test_a_group_norm_is_the_formula_and_its_derivatives_forward_and_backward(on, monkeypatch):
    monkeypatch.setattr(_cpu, "WORKAROUNDS", on)
    operands = arrays((2, 5, 3, 6), (6,), (6,), (2, 6), (2, 6))
    tangents = [jnp.cos(3 * a) for a in operands]

    def ours(x, *weights):
        return group_norm(x, 3, 1e-5, *weights)

    in_float64 = [np.asarray(a, np.float64) for a in operands]
    with jax.numpy_rank_promotion("raise"):
        assert relative(jax.jit(ours)(*operands), group_norm_by_hand(*in_float64)) <= 2e-6

    def derivatives(norm):
        loss = jax.grad(lambda *a: jnp.sin(norm(*a)).sum(), argnums=range(5))
        return jax.jit(lambda: (jax.jvp(norm, operands, tangents), loss(*operands)))()

    pairs = zip(*(jax.tree.leaves(derivatives(norm)) for norm in (ours, group_norm_by_hand)), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, atol=2e-5)
    by_numbers = ours(operands[0], 2.0, 1.0)
    np.testing.assert_allclose(by_numbers, ours(operands[0], jnp.full(6, 2.0), jnp.ones(6)), atol=2e-6)
    stacked = [jnp.stack([a, 2 * a]) for a in operands]
    np.testing.assert_allclose(jax.jit(jax.vmap(ours))(*stacked)[0], ours(*operands), atol=2e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA on CPUs")
def test_the_numbers_of_a_norm_are_not_computed_for_each_pixel():
    operands = arrays((2, 40, 30, 6), (6,), (6,), (2, 6), (2, 6))
    program = jax.jit(lambda x, *weights: jax.nn.silu(group_norm(x, 3, 1e-5, *weights)))
    text = program.lower(*operands).compile().as_text()
    loops = [loop for loop in text.split("\n\n") if "fused_computation" in loop and "exponential(" in loop]
    assert loops and not any("f32[2,3" in loop or "f32[2,6]{1,0} add(" in loop for loop in loops)


@pytest.mark.skipif(jax.device_count() < 4, reason="takes four devices")
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_sharded_batch_stays_where_it_is(kind, monkeypatch):
    monkeypatch.setattr(on_cpu, "_WEIGHTS", 0)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x, kernel, q = arrays((4, 12, 12, 128), (3, 3, 128, 128), (4, 2, 6, 8))
    calls = {
        "convolve": (lambda x, k: convolve(x, k, (1, 1), ((1, 1), (1, 1))), x, kernel),
        "doubled": (convolve_doubled, x, kernel),
        "repeated": (lambda x, _: upsample_nearest(x), x, kernel),
        "attend": (lambda q, _: attend(q, q, q), q, kernel),
    }
    for name, (call, data, weights) in calls.items():
        with jax.set_mesh(mesh):
            program = jax.jit(call).lower(jax.device_put(data, split), jax.device_put(weights, whole)).compile()
            out = program(jax.device_put(data, split), jax.device_put(weights, whole))
        assert not {"all-gather", "all-to-all", "all-reduce"} & set(program.as_text().replace("(", " ").split()), name
        assert out.sharding.is_equivalent_to(split, out.ndim), name
        np.testing.assert_allclose(out, call(data, weights), rtol=1e-4, atol=1e-4, err_msg=name)
