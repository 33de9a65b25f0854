"""A folder that cmjax wrote, in the reference's own pipeline: the same noise and classes give the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import injected
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.live import Ledger

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TINY: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift",
    "num_class_embeds": 7,
}


def random_network() -> Any:
    """Make a small UNet whose every weight is random: a fresh one's last convolution may be zero."""
    from flax import nnx

    from cmjax.models import UNet, UNetConfig, from_nnx

    network = from_nnx(UNet(UNetConfig.from_dict(TINY), rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(network)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, leaves)


@pytest.fixture(params=["random", "fashion-mnist-cm"], scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as cmjax.save writes it: a tiny random one, and the one inside the package."""
    path = tmp_path_factory.mktemp("model") / "saved"
    if request.param == "random":
        model, config = random_network(), cmjax.cm.CMConfig()
    else:
        if request.param not in cmjax.io.embedded_models():
            pytest.skip(f"the package has no {request.param}")
        model, config = cmjax.load(request.param)
    cmjax.save((model, config), path)
    return path


@jax.jit
def forward(model: Any, x_in: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
    """Call the network: compiled once for every model."""
    return model(x_in, t, labels)


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


@pytest.mark.parametrize("options", [{"num_steps": 1}, {"timesteps": [22, 0]}, {"num_steps": 2}], ids=str)
def test_the_same_noise_and_classes_give_the_same_images(
    loaded: tuple[Any, Any], pipeline: Any, options: dict[str, Any], ledger: Ledger
) -> None:
    """Within 1e-3 in [-1, 1]; what differs is the order in which the two networks add."""
    model, config = loaded
    N = config.num_train_timesteps
    if "timesteps" in options:
        options = {"timesteps": [round(22 / 39 * (N - 1)), 0]}
    state: Any = cmjax.cm.init(config, **options)

    net = pipeline.unet.config
    labels = list(range(net.num_class_embeds))[:6]
    shape = (len(labels), net.in_channels, net.sample_size, net.sample_size)

    # What the reference's generator draws: the starting noise, then the noise of every step.
    generator = torch.Generator().manual_seed(11)
    draws = [
        np.transpose(torch.randn(shape, generator=generator).numpy(), (0, 2, 3, 1)) for _ in range(state.num_steps + 1)
    ]
    x = draws[0] * np.float32(state.init_noise_sigma)
    for z in draws[1:]:
        x_in, t = cmjax.model_input(state, jnp.asarray(x))
        m = forward(model, x_in, t, jnp.asarray(labels))
        state, taken = injected.step(state, np.asarray(m), x, z)
        x = taken.x

    theirs = pipeline(
        batch_size=len(labels),
        class_labels=labels,
        generator=torch.Generator().manual_seed(11),
        output_type="np",
        **{"num_inference_steps" if key == "num_steps" else key: value for key, value in options.items()},
    ).images
    assert theirs.shape == x.shape
    theirs = theirs * 2 - 1
    assert float(np.std(theirs)) > 0.05  # pictures, not a constant
    apart = float(np.max(np.abs(np.clip(x, -1, 1) - theirs)))
    ledger.counts["pipeline", "pictures"] += len(labels)
    ledger.note("pipeline", "of any value", apart)
    assert apart <= 1e-3
