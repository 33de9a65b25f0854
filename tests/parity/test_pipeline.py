"""A folder that cmjax wrote, in the reference's own pipeline: the same noise and classes give the same images."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.live import Ledger
from shapes import shaped

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pipeline_consistency_models = pytest.importorskip("diffusers.pipelines.consistency_models.pipeline_consistency_models")
scheduling_consistency_models = pytest.importorskip("diffusers.schedulers.scheduling_consistency_models")

CONDITIONAL: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": [16],
    "layers_per_block": 1,
    "down_block_types": ["AttnDownBlock2D"],
    "mid_block_type": None,
    "up_block_types": ["AttnUpBlock2D"],
    "norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift",
    "num_class_embeds": 7,
}
UNCONDITIONAL = CONDITIONAL | {"num_class_embeds": None, "resnet_time_scale_shift": "default"}


def random_network(options: dict[str, Any]) -> Any:
    """Make a small UNet whose every weight is random: a fresh one's last convolution is zero."""
    from cmjax.models import UNet, UNetConfig, from_nnx

    abstract = from_nnx(shaped(lambda rngs: UNet(UNetConfig.from_dict(options), rngs=rngs)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(0.2 * rng.normal(size=p.shape), p.dtype), abstract)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as cmjax.save writes it: two tiny random ones, and the one inside the package."""
    path = tmp_path_factory.mktemp("model") / "saved"
    if request.param != "fashion-mnist-cm":
        options = {"conditional": CONDITIONAL, "unconditional": UNCONDITIONAL}[request.param]
        model, config = random_network(options), cmjax.cm.CMConfig()
    else:
        if request.param not in cmjax.io.embedded_models():
            pytest.skip(f"the package has no {request.param}")
        model, config = cmjax.load(request.param)
    cmjax.save((model, config), path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    """The folder as cmjax reads it back."""
    return cmjax.load(folder)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    """The folder as the reference reads it."""
    pipe = diffusers.ConsistencyModelPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@jax.jit
def noise(key: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `generate` draws of its key: the starting noise f[B, *S], and that of each step, f[n, B, *S]."""
    start, steps = jax.random.split(key)
    draw = functools.partial(jax.random.normal, shape=like.shape[1:])
    return draw(start), jax.vmap(draw)(jax.random.split(steps, len(like)))


generate = jax.jit(cmjax.generate, static_argnames="shape")

PATHS: list[dict[str, Any]] = [{"num_steps": 1}, {"timesteps": [22, 0]}, {"num_steps": 2}, {"num_steps": 12}]
CASES = [(name, path) for name in ("conditional", "unconditional") for path in PATHS]
CASES += [("fashion-mnist-cm", path) for path in PATHS[:3]]  # a larger network: seconds for each new length


@pytest.mark.parametrize(
    ("folder", "options"),
    [*CASES, pytest.param("fashion-mnist-cm", PATHS[3], marks=pytest.mark.slow)],
    indirect=["folder"],
    ids=str,
)
def test_the_same_noise_and_classes_give_the_same_images(
    loaded: tuple[Any, Any],
    pipeline: Any,
    options: dict[str, Any],
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within 1e-3 in [-1, 1]; what differs is the order in which the two networks add.

    The reference is handed the noise that `cmjax.generate` draws, and everything else is each one's own.
    """
    model, config = loaded
    N = config.num_train_timesteps
    if "timesteps" in options:
        options = {"timesteps": [round(22 / 39 * (N - 1)), 0]}
    state: Any = cmjax.cm.init(config, **options)

    net = pipeline.unet.config
    labels = None if net.num_class_embeds is None else list(range(net.num_class_embeds))[:6]
    shape = (6, net.sample_size, net.sample_size, net.in_channels)
    key = jax.random.key(11)
    x = generate(model, state, key, shape, None if labels is None else jnp.asarray(labels))

    start, steps = noise(key, jnp.zeros((state.num_steps, *shape)))
    draws = [torch.from_numpy(np.asarray(z).transpose(0, 3, 1, 2).copy()) for z in (start, *steps)]
    left = iter(draws)
    for module in (pipeline_consistency_models, scheduling_consistency_models):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(left))
    theirs = pipeline(
        batch_size=shape[0],
        class_labels=labels,
        output_type="np",
        **{"num_inference_steps" if key == "num_steps" else key: value for key, value in options.items()},
    ).images
    # All of it was used; but a path of one step ends without a draw in the reference.
    assert len(list(left)) == (state.num_steps == 1)
    assert theirs.shape == x.shape
    theirs = theirs * 2 - 1
    assert float(np.std(theirs)) > 0.05  # pictures, not a constant
    apart = float(np.max(np.abs(np.clip(x, -1, 1) - theirs)))
    ledger.counts["pipeline", "pictures"] += shape[0]
    ledger.note("pipeline", "of any value", apart)
    assert apart <= 1e-3
