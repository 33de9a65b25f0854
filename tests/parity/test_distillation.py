"""What the published distillation scripts are made of, against the installed reference."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import replay

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_teachers_step_is_that_of_the_reference(kind: str) -> None:
    """The one DDIM step, down to the grid's last, where the scripts end at timestep 0."""
    reference = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind,
        clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing",
    )  # fmt: skip
    reference.set_timesteps(50)
    x, out = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32)
    teacher = cmjax.tcd.trajectory_fn(lambda x, t, cond: jnp.asarray(out), cmjax.tcd.TCDConfig(prediction_type=kind))
    for t in (999, 519, 39, 19):
        expected = reference.step(torch.from_numpy(out), t, torch.from_numpy(x)).prev_sample.numpy()
        assert replay.distance(teacher(jnp.asarray(x), t, max(t - 20, 0)), expected, floor=1.0) < 5e-6


def test_the_boundary_scalings_are_those_of_the_reference() -> None:
    config = cmjax.lcm.LCMConfig(timestep_scaling=0.05)
    f = cmjax.lcm.consistency_fn(lambda x, t, cond: x, config)
    reference = diffusers.LCMScheduler(timestep_scaling=0.05)
    reference.set_timesteps(4)
    for t in (0, 19, 259, 999):
        c_skip, c_out = reference.get_scalings_for_boundary_condition_discrete(t)
        np.testing.assert_allclose([f.c_skip[t], f.c_out[t]], [c_skip, c_out], rtol=1e-6)


def test_the_guidance_embedding_is_that_of_the_reference() -> None:
    """Its pipeline writes this sinusoid out again; the pipeline itself needs more than diffusers to be imported."""
    w = np.array([0.0, 2.0, 7.5, 14.0], np.float32)
    sinusoid = diffusers.models.embeddings.get_timestep_embedding
    for dim in (256, 7):
        expected = sinusoid(1000 * torch.from_numpy(w), dim, flip_sin_to_cos=False, downscale_freq_shift=1).numpy()
        np.testing.assert_allclose(cmjax.models.guidance_embedding(jnp.asarray(w), dim), expected, atol=4e-3)
