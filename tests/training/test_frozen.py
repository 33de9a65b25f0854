"""A part of a model is trained, the rest is frozen: factors of a LoRA, some layers, one of several networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from flax import nnx

import cmjax
from cmjax import training
from cmjax.guidance import WithNull
from cmjax.models import combine, from_nnx, lora, partition, train_only
from cmjax.models.layers import Conv, Linear
from cmjax.models.lora import Factors, Product
from cmjax.training.hosts import mesh_of, place

CONFIG = cmjax.tcd.TCDConfig(prediction_type="v_prediction")
METHOD = training.TrajectoryDistillation(guidance_scale=2.0, dropout=True)
RECIPE = training.Recipe(method=METHOD, steps=6, batch_size=4, optimizer=training.Optimizer(warmup_steps=0))
RNG = np.random.default_rng(0)
BATCHES = [
    (
        RNG.normal(size=(4, 4, 4, 2)).astype(np.float32),
        WithNull(RNG.normal(size=(4, 3)).astype(np.float32), np.zeros((4, 3), np.float32)),
    )
    for _ in range(6)
]


class Net(nnx.Module):
    """A convolution and a layer that reads the condition; a key drops half of what it reads."""

    def __init__(self, rngs):
        self.first = Conv(2, 8, 3, padding=1, rngs=rngs)
        self.told = Linear(3, 8, rngs=rngs)
        self.last = Conv(8, 2, 3, padding=1, rngs=rngs)

    def __call__(self, x, t, cond=None, key=None):
        told = self.told(cond)
        if key is not None:
            told = told * jax.random.bernoulli(key, 0.5, told.shape) * 2.0
        return self.last(jnp.tanh(self.first(x) + told[:, None, None]))


def base():
    return from_nnx(Net(nnx.Rngs(0)))


def factors(seed=1, rank=2):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        name: Factors(Product(draw(*shape[:-1], rank), draw(rank, shape[-1])), jnp.float32(1.0))
        for name, shape in lora.kernels(base()).items()
    }


def with_lora(network):
    return lora.attach(network, factors(), jnp.float32(1.0))


def run(model, teacher, **options):
    options = {"recipe": RECIPE, **options}
    return training.train(model, CONFIG, BATCHES, teacher=(teacher, CONFIG), **options)


def pointers(network, names):
    """Where the arrays of some leaves lie, on each device."""
    shards = [shard for name in names for shard in network.leaves()[name].addressable_shards]
    return [shard.data.unsafe_buffer_pointer() for shard in shards]


@pytest.mark.slow
def test_the_base_is_there_once_and_the_factors_alone_move():
    teacher = base()
    student, kept = with_lora(teacher), []
    names = [*teacher.leaves()]
    state = run(student, teacher, checkpoint_every=3, on_checkpoint=kept.append)
    for model in (state.ema, state.target, kept[0].ema):
        assert pointers(model, names) == pointers(state.model, names)
    one, other = place((partition(student)[1], teacher), mesh_of(4))
    assert all(one.leaves()[name] is other.leaves()[name] for name in names)  # on its way to the devices
    before = student.leaves()
    for name, leaf in state.model.leaves().items():
        is_factor = name.split(".")[-1] in ("down", "up")
        assert is_factor == (not np.array_equal(leaf, before[name])), name
    numbers = sum(leaf.size for leaf in jax.tree.leaves(partition(student)[0]))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * numbers
    assert state.model(*(jnp.ones((1, 4, 4, 2)), jnp.int32(5), jnp.ones((1, 3)))).shape == (1, 4, 4, 2)


def test_a_step_of_factors_is_the_full_step_projected_on_them():
    """dL/d down = g dW upᵀ and dL/d up = g downᵀ dW, with the gradient dW of a kernel that holds the change."""
    network, (x0, cond) = base(), BATCHES[0]
    attached, gain = with_lora(network), 0.5
    kernels = {name: network.leaves()[f"{name}.kernel"] + one.delta(jnp.zeros(())) for name, one in factors().items()}
    merged = network.replace({f"{name}.kernel": kernel for name, kernel in kernels.items()})

    @jax.jit
    def grads(model):
        trained, rest = partition(model)

        def loss(trained):
            model = combine(trained, rest)
            learner = training.Learner(model, model, CONFIG, (network, CONFIG))
            return METHOD.loss(learner, x0, cond, jax.random.key(3), jnp.int32(0), 6).mean()

        return jax.grad(loss)(trained)

    full, part = grads(merged).leaves(), grads(attached).leaves()
    for name, one in factors().items():
        d_kernel = np.asarray(full[f"{name}.kernel"], np.float64)
        down, up = (np.asarray(leaf, np.float64) for leaf in (one.form.down, one.form.up))
        begins = f"{name}.changes.0.form."
        np.testing.assert_allclose(part[begins + "down"], gain * d_kernel @ up.T, rtol=2e-3, atol=2e-5)
        flat = down.reshape(-1, down.shape[-1]).T @ d_kernel.reshape(-1, d_kernel.shape[-1])
        np.testing.assert_allclose(part[begins + "up"], gain * flat, rtol=2e-3, atol=2e-5)
    assert all(leaf is None for name, leaf in part.items() if not name.endswith(("down", "up")))


def test_a_stopped_run_of_factors_resumes_to_the_same_bits(tmp_path):
    whole = run(with_lora(base()), base(), out=tmp_path / "whole")

    def stop(state):
        if int(state.step) == 3:
            raise KeyboardInterrupt

    given = {"out": tmp_path / "half", "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        run(with_lora(base()), base(), **given, on_checkpoint=stop)
    held = {file.name: file.stat().st_size for file in (tmp_path / "half").rglob("*") if file.is_file()}
    assert held
    other = base().replace({"last.bias": jnp.ones(2)})
    with pytest.raises(ValueError, match="of a model whose frozen part has other weights: give that model"):
        run(with_lora(other), base(), **given, resume=True)
    resumed = run(with_lora(base()), base(), **given, resume=True)
    assert toy.bits(resumed) == toy.bits(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{"name": "adafactor"}, {"name": "lion", "mu_dtype": "bfloat16"}, {"name": "adamw", "mu_dtype": "bfloat16"}],
)
def test_small_optimizers_resume_to_the_same_bits_and_learn(given, tmp_path):
    optimizer = training.Optimizer(**given, warmup_steps=0)
    options = {"recipe": dataclasses.replace(RECIPE, optimizer=optimizer), "checkpoint_every": 3}
    whole = run(with_lora(base()), base(), **options)

    def stop(state):
        if int(state.step) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(with_lora(base()), base(), **options, out=tmp_path, on_checkpoint=stop)
    assert toy.bits(run(with_lora(base()), base(), **options, out=tmp_path, resume=True)) == toy.bits(whole)
    before = with_lora(base()).leaves()
    for name, leaf in whole.model.leaves().items():
        assert name.endswith(("down", "up")) == (not np.array_equal(leaf, before[name])), name


def test_checkpoints_hold_what_is_trained_alone():
    from cmjax.training.checkpoints import _named

    trained, frozen = partition(with_lora(base()))
    names = _named(training.init(trained, RECIPE))
    assert {name.rpartition(".")[2] for name in names if name.startswith(".model")} == {"down", "up"}
    assert len(jax.tree.leaves(frozen)) == len(base().leaves()) + 2 * len(factors())  # and alpha and scale of each


def test_a_checkpoint_of_before_may_hold_copies_of_what_is_frozen(tmp_path):
    from cmjax.training import checkpoints

    model = with_lora(base())
    trained, frozen = partition(model)
    state, told = training.init(trained, RECIPE), checkpoints.beside((base(), CONFIG), frozen)
    checkpoints.save(tmp_path, training.init(model, RECIPE), RECIPE, CONFIG, told._replace(frozen=None))
    read, _ = checkpoints.restore(tmp_path, state, RECIPE, CONFIG, told._replace(frozen=None))
    assert toy.bits(read) == toy.bits(state)


def test_some_layers_are_trained_by_name():
    network = base()
    only = train_only(network, "told", "*.bias")
    chosen = {name for name, one in zip(only.leaves(), only.is_trained, strict=True) if one}
    assert chosen == {"told.kernel", "told.bias", "first.bias", "last.bias"}
    assert all(a is b for a, b in zip(jax.tree.leaves(only), jax.tree.leaves(network), strict=True))
    assert not any(train_only(network).is_trained) and train_only(only, "first")._spec != only._spec
    assert sum(train_only(only, "first").is_trained) == 1  # what was frozen stays so
    with pytest.raises(ValueError, match=r"names must be of leaves that can be trained, .* got 'tolt' \(nearest: told"):
        train_only(network, "tolt")
    state = run(only, network, recipe=dataclasses.replace(RECIPE, steps=2))
    moved = {n for n, leaf in state.model.leaves().items() if not np.array_equal(leaf, network.leaves()[n])}
    assert moved == chosen


def test_a_text_encoder_is_trained_and_the_network_it_speaks_to_is_frozen():
    words = cmjax.models.from_function(lambda w, tokens, t, cond: w[tokens], params=jnp.ones((5, 3)))

    class Reading(cmjax._struct.Struct):
        words: cmjax.models.Network
        network: cmjax.models.Network

        def __call__(self, x, t, cond):
            return self.network(x, t, self.words(cond, t))

    model = Reading(words, train_only(base()))
    data = [(x, np.arange(4)) for x, _ in BATCHES]
    recipe = dataclasses.replace(RECIPE, method=training.NoisePrediction())
    state = training.train(model, CONFIG, data, recipe=recipe)
    assert toy.bits(state.model.network) == toy.bits(base())
    assert not np.array_equal(*(jax.tree.leaves(one.words)[0] for one in (model, state.model)))


def test_a_loop_of_ones_own_needs_six_lines():
    teacher = base()
    trained, frozen = partition(with_lora(teacher))
    g = lambda model: cmjax.tcd.trajectory_fn(model, CONFIG)  # noqa: E731
    optimizer = optax.adam(1e-3)
    moments = optimizer.init(trained)

    @jax.jit
    def step(trained, moments, frozen, teacher, x0, cond, key):
        guided = cmjax.guidance.classifier_free(teacher, 2.0, cond.null_cond)

        def loss(trained):
            student = g(combine(trained, frozen))
            return cmjax.losses.trajectory_distillation(student, student, g(guided), x0, key, cond=cond.cond).mean()

        value, grads = jax.value_and_grad(loss)(trained)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(trained, updates), moments, value

    for k, (x0, cond) in enumerate(BATCHES[:2]):
        trained, moments, value = step(trained, moments, frozen, teacher, x0, cond, jax.random.key(k))
    network = combine(trained, frozen)
    assert np.isfinite(value) and pointers(network, ["last.kernel"]) == pointers(teacher, ["last.kernel"])
