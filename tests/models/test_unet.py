import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import unets
from flax import nnx
from shapes import shaped

import cmjax
from cmjax.models import UNet, from_nnx


@pytest.fixture(scope="module")
def network():
    return unets.network(dropout=0.2)


def run(*arguments):
    """What the network returns, on the host: NumPy compares it without compiling a program for every operation."""
    return jax.device_get(unets.run(*arguments))


def test_output_has_the_shape_and_dtype_of_x(network):
    x, t, cond = unets.inputs()
    out = run(network, x, t, cond)
    assert out.shape == (3, 8, 8, 3) and out.dtype == jnp.float32
    assert np.isfinite(out).all()


def test_a_new_network_returns_zero():
    x, t, cond = unets.inputs(batch=1)
    assert not run(from_nnx(UNet(unets.config(**unets.SMALLEST), rngs=nnx.Rngs(0))), x, t, cond).any()


def test_one_time_and_one_label_serve_the_whole_batch(network):
    x, _, _ = unets.inputs()
    one = run(network, x, jnp.float32(3), jnp.int32(2))
    np.testing.assert_array_equal(one, run(network, x, jnp.full(3, 3.0), jnp.full(3, 2)))


def test_time_and_label_matter(network):
    x, t, cond = unets.inputs()
    out = run(network, x, t, cond)
    assert np.abs(out - run(network, x, t + 1, cond)).max() > 1e-3
    assert np.abs(out - run(network, x, t, (cond + 1) % 5)).max() > 1e-3


def test_a_mixture_of_classes_goes_from_one_class_to_another(network):
    x, t, cond = unets.inputs()
    one_hot = jax.nn.one_hot(cond, 5)
    np.testing.assert_allclose(run(network, x, t, one_hot), run(network, x, t, cond), atol=1e-5, rtol=1e-5)
    half = run(network, x, t, jnp.broadcast_to(jnp.array([0.5, 0.5, 0.0, 0.0, 0.0]), (3, 5)))
    ends = [run(network, x, t, jnp.full(3, label)) for label in (0, 1)]
    assert all(np.abs(half - end).max() > 1e-3 for end in ends)


def test_images_do_not_see_each_other(network):
    x, t, cond = unets.inputs()
    out = run(network, x, t, cond)
    changed = run(network, x.at[1].multiply(-2.0), t.at[1].add(9.0), cond.at[1].set(4))
    np.testing.assert_array_equal(out[[0, 2]], changed[[0, 2]])


def test_dropout_acts_exactly_with_a_key(network):
    x, t, cond = unets.inputs()
    key = jax.random.key(7)
    plain, dropped = run(network, x, t, cond), run(network, x, t, cond, key)
    assert np.abs(plain - dropped).max() > 1e-3
    np.testing.assert_array_equal(dropped, run(network, x, t, cond, key))
    assert np.abs(dropped - run(network, x, t, cond, jax.random.key(8))).max() > 1e-3


@pytest.mark.slow
def test_the_gradient_reaches_every_parameter(network):
    x, t, cond = unets.inputs()
    grads = jax.jit(jax.grad(lambda n: jnp.square(n(x, t, cond, key=jax.random.key(0))).mean()))(network)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_bfloat16_computes_close_to_float32_and_tells_nearby_times_apart(network):
    x, t, cond = unets.inputs()
    half = unets.network(jnp.bfloat16, dropout=0.2)
    out, exact = run(half, x.astype(jnp.bfloat16), t, cond), run(network, x, t, cond)
    assert out.dtype == jnp.bfloat16
    assert 0 < np.abs(out.astype(np.float32) - exact).max() < 0.05 * np.abs(exact).max()
    # 1000 and 1001 are one number in bfloat16; the time embedding is float32.
    early = run(half, x.astype(jnp.bfloat16), jnp.full(3, 1000.0), cond)
    late = run(half, x.astype(jnp.bfloat16), jnp.full(3, 1001.0), cond)
    assert (early != late).mean() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((1, 8, 8, 3))}, r"x must have shape \(batch, height, width, 2\), got \(1, 8, 8, 3\)"),
        ({"x": jnp.ones((8, 8, 2))}, r"x must have shape \(batch, height, width, 2\), got \(8, 8, 2\)"),
        ({"x": jnp.ones((1, 8, 7, 2))}, "multiples of 2 .* got 8 x 7"),
        ({"x": jnp.ones((1, 8, 8, 2), jnp.int32)}, "x must hold floating-point numbers, got int32"),
        ({"t": jnp.ones(2)}, r"t must have shape \(\) or \(1,\) .*, got \(2,\)"),
        ({"cond": None}, "cond is missing: the network is conditional"),
        ({"cond": jnp.zeros(2, jnp.int32)}, r"cond must have shape \(1,\) or \(\) for a batch of 1, got \(2,\)"),
        ({"cond": jnp.zeros(1)}, "cond must hold integer class labels, got float32"),
        ({"cond": jnp.ones((1, 5))}, "mixtures of classes must have rows that are not negative and sum to 1"),
        ({"cond": jnp.ones((1, 4)) / 4}, r"mixtures of classes must have shape \(1, 5\), got \(1, 4\)"),
        ({"cond": jnp.array([5])}, r"class labels must lie in 0 ... 4 \(num_class_embeds = 5\), got 5"),
        ({"cond": jnp.array([-1])}, "class labels must lie in 0 ... 4 .*, got -1"),
    ],
)
def test_bad_input_is_refused(network, change, message):
    call = {"x": jnp.ones((1, 8, 8, 2)), "t": jnp.float32(0), "cond": jnp.array([0])} | change
    with pytest.raises(ValueError, match=message):
        network(call["x"], call["t"], call["cond"])


def test_a_traced_label_out_of_range_gives_nan_for_its_image_only(network):
    x, t, _ = unets.inputs()
    out = run(network, x, t, jnp.array([0, 5, -1]))
    assert np.isfinite(out[0]).all() and np.isnan(out[1]).all() and np.isnan(out[2]).all()


def test_labels_for_an_unconditional_network_are_refused():
    x, t, cond = unets.inputs(batch=1)
    with pytest.raises(ValueError, match="cond must be None: the network is unconditional"):
        unets.network(num_class_embeds=None)(x, t, cond)


def test_a_learned_time_table_knows_its_rows_only():
    network = unets.network(**unets.SMALLEST, time_embedding_type="learned", num_train_timesteps=20)
    x, _, cond = unets.inputs()
    out = run(network, x, jnp.array([0.0, 19.0, 20.0]), cond)
    assert np.isfinite(out[:2]).all() and np.isnan(out[2]).all()


def test_no_gradient_reaches_fourier_frequencies():
    network = unets.network(**unets.SMALLEST, time_embedding_type="fourier")
    x, t, cond = unets.inputs(batch=1)
    grads = jax.jit(jax.grad(lambda n: jnp.square(n(x, jnp.abs(t), cond)).mean()))(network)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads)}
    assert not named[".time_proj.weight"].any()
    assert named[".time_embedding.linear_1.kernel"].any()


@pytest.mark.slow
def test_a_training_step_in_nnx():
    """The training program of the design, on a module and its target."""
    config = cmjax.cm.CMConfig()
    unet_config = unets.config(**unets.SMALLEST, out_channels=2, dropout=0.1, num_class_embeds=None)
    model, target = UNet(unet_config, rngs=nnx.Rngs(0)), UNet(unet_config, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    x0, _, _ = unets.inputs()

    @nnx.jit
    def train_step(model, target, optimizer, key, decay):
        def loss_fn(model):
            f, f_target = cmjax.consistency_fn(model, config), cmjax.consistency_fn(target, config)
            noisy = x0 + 2.0 * jax.random.normal(key, x0.shape)
            goal = jax.lax.stop_gradient(f_target(noisy, jnp.float32(1.9), key=key))
            return jnp.square(f(noisy, jnp.float32(2.0), key=key) - goal + x0).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        averaged = optax.incremental_update(nnx.state(model, nnx.Param), nnx.state(target, nnx.Param), 1 - decay)
        nnx.update(target, averaged)
        return loss

    before = target.conv_out.bias[...]
    losses = [float(train_step(model, target, optimizer, jax.random.key(1), 0.9)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert jnp.abs(target.conv_out.bias[...] - before).max() > 0


def test_weights_are_float32_whatever_jax_is_told(network):
    with jax.enable_x64(True):
        new = from_nnx(shaped(lambda rngs: UNet(network.config, rngs=rngs)))
        assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}
