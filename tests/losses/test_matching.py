"""Distribution matching: the gradient replayed, what it teaches, what gets none; and the method of two networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import replay

import cmjax
from cmjax import losses, training
from cmjax.models import from_function

VP = cmjax.lcm.LCMConfig(prediction_type="v_prediction")
TABLE = replay.alphas_cumprod()
X = np.random.default_rng(0).normal(size=(9, 3, 2)).astype(np.float32)
KEY = jax.random.key(2)


def network(w, x, t, cond=None, key=None):
    return jnp.sin(w * x + 0.002 * t.astype(jnp.float32)[:, None, None] + (0.0 if cond is None else cond))


REAL, FAKE, STUDENT = (from_function(network, params=jnp.float32(w)) for w in (0.4, 0.7, 0.9))


def of(model):
    return cmjax.tcd.trajectory_fn(model, VP)


def test_the_gradient_is_the_formula_in_float64():
    grad = jax.jit(jax.grad(lambda x: losses.distribution_matching(x, of(REAL), of(FAKE), KEY).sum()))(X)
    t_key, z_key = jax.random.split(KEY)
    t = np.asarray(jax.random.randint(t_key, (9,), 20, 980))
    z = np.float64(jax.random.normal(z_key, X.shape))
    for b in range(9):
        alpha, sigma = np.sqrt(TABLE[t[b]]), np.sqrt(1 - TABLE[t[b]])
        x_t = alpha * X[b] + sigma * z[b]
        real, fake = (alpha * x_t - sigma * np.sin(w * x_t + 0.002 * t[b]) for w in (0.4, 0.7))
        push = (fake - real) / np.abs(X[b] - real).mean()
        np.testing.assert_allclose(grad[b], push / X[b].size, rtol=2e-3, atol=1e-5)


def test_samples_move_to_where_the_data_is():
    """Gaussians of two means: the exact models push samples from one to the other, and nowhere once they are there."""
    alpha, sigma = (np.sqrt(np.asarray(v, np.float32)) for v in (TABLE, 1 - TABLE))

    def gaussian(mean, std=0.5):
        def x0(x, t, cond=None):
            a, s = (jnp.asarray(rate)[t][:, None, None] for rate in (alpha, sigma))
            return mean + a * std**2 * (x - a * mean) / (a**2 * std**2 + s**2)

        return cmjax.tcd.trajectory_fn(x0, cmjax.tcd.TCDConfig(prediction_type="sample"))

    push = jax.grad(lambda x, fake: losses.distribution_matching(x, gaussian(1.0), gaussian(fake), KEY).sum())
    assert (push(X, 0.0) < 0).all() and (push(X, 2.0) > 0).all()  # the gradient is gone down
    np.testing.assert_allclose(push(X, 1.0), 0.0, atol=1e-6)


def test_neither_model_gets_a_gradient():
    loss = lambda models: losses.distribution_matching(jnp.asarray(X), *map(of, models), KEY).sum()  # noqa: E731
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.grad(loss)((REAL, FAKE))))


def test_the_method_trains_a_student_and_the_model_of_its_samples():
    """Each gets the gradient of its own loss alone."""
    method = training.DistributionMatching()

    def total(pair):
        learner = training.Learner(pair, pair, VP, (REAL, VP))
        return method.loss(learner, X, None, KEY, jnp.int32(0), 9).sum()

    pair = method.begin(STUDENT).replace(score=FAKE)
    grads = jax.jit(jax.grad(total))(pair)
    t_key, z_key, match_key, score_key, _ = jax.random.split(KEY, 5)
    path = jnp.array([999, 749, 499, 249])
    t = path[jax.random.randint(t_key, (9,), 0, 4)]
    z = jax.random.normal(z_key, X.shape)
    alpha, sigma = (rate[:, None, None] for rate in of(FAKE).rates(t))
    x_t = jnp.where((t == 999)[:, None, None], z, alpha * X + sigma * z)

    def drawn(student):
        return cmjax.lcm.consistency_fn(student, VP)(x_t, t)

    matched = lambda student: losses.distribution_matching(drawn(student), of(REAL), of(FAKE), match_key).sum()  # noqa: E731
    told = lambda score: losses.noise_prediction(of(score), drawn(STUDENT), score_key).sum()  # noqa: E731
    for ours, loss, model in ((grads.student, matched, STUDENT), (grads.score, told, FAKE)):
        np.testing.assert_allclose(
            *(jax.tree.leaves(one)[0] for one in (ours, jax.jit(jax.grad(loss))(model))), rtol=1e-4
        )
    np.testing.assert_array_equal(pair(x_t, t), STUDENT(x_t, t))


def test_a_run_with_factors_alone_shares_the_base_four_times():
    both = from_function(
        lambda p, x, t, cond: network(p["w"], x, t) + p["b"], params={"w": jnp.ones(()), "b": jnp.ones(2)}
    )
    student = cmjax.models.train_only(both, "b")
    optimizer = training.Optimizer(warmup_steps=0)
    recipe = training.Recipe(method=training.DistributionMatching(), steps=4, batch_size=9, optimizer=optimizer)
    state = training.train(student, VP, [(X, None)] * 4, recipe=recipe, teacher=(both, VP))
    pair = state.model
    assert recipe.method.student(pair) is pair.student
    assert (pair.student.leaves()["w"] == 1).all() and (pair.score.leaves()["w"] == 1).all()
    moved = [np.asarray(one.leaves()["b"]) for one in (pair.student, pair.score)]
    assert all((one != 1).all() for one in moved) and not np.array_equal(*moved)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"ends must be two shares of the timesteps in \[0, 1\], the lower one first"):
        losses.distribution_matching(X, of(REAL), of(FAKE), KEY, ends=(0.9, 0.1))
    with pytest.raises(ValueError, match="timesteps must be timesteps, the highest first, got"):
        training.DistributionMatching(timesteps=(249, 499))
    with pytest.raises(ValueError, match="timesteps must lie below 1000, the timesteps that there are, got 1500"):
        training.DistributionMatching(timesteps=(1500, 9)).check_teacher(VP, VP)
