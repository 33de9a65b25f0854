"""The published networks at their full size: what cmjax reads from a published folder computes what diffusers computes.

The weights are random, every one of them, so nothing is downloaded. Three kinds of figures, all relative:

- cmjax to diffusers in float32: the largest difference over the largest value;
- both to diffusers in float64, which tells whose rounding that is;
- each in bfloat16 to itself in float32: root mean square of the difference over that of the values.

`CMJAX_RECORD=1 pytest tests/parity/test_published.py --slow` writes them to `results/published.json`, beside this file.
"""

import json
import os
import runpy
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_size import NETWORKS
from parity.test_unet import NAMED, SMALL

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TITLES = {"ImageNet-64": NETWORKS["imagenet64"], "LSUN-256": NETWORKS["lsun256"]}
FULL = {title: (network.config.to_dict(), network.parameters) for title, network in TITLES.items()}
TINY = {
    "conditional": SMALL | NAMED["published"] | {"block_out_channels": (32, 64), "attention_head_dim": 16},
    "unconditional": SMALL | {"block_out_channels": (32, 64), "attention_head_dim": 16},
}


@pytest.fixture(scope="module")
def figures(pytestconfig):
    """What the tests of this file measure, by network; written down at the end where that is asked for."""
    measured = {}
    yield measured
    if os.environ.get("CMJAX_RECORD") == "1":
        machine = runpy.run_path(str(pytestconfig.rootpath / "benchmarks" / "common.py"))["machine"]()
        machine.pop("load_average_at_start")
        path = Path(__file__).parent / "results" / "published.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": machine, "networks": measured}, indent=2) + "\n")


def reference(options):
    """A reference network with every weight random, and small enough that sixty layers keep their numbers near 1."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**{k: v for k, v in options.items() if not k.startswith("_")}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def write_folder(network, folder):
    """Write the folder that diffusers' pipeline would: unet/ and scheduler/."""
    network.save_pretrained(folder / "unet")
    diffusers.CMStochasticIterativeScheduler().save_pretrained(folder / "scheduler")


def inputs(network, batch):
    """Pictures of noise, the time that stands for sigma = 80, and classes where the network takes them."""
    rng = np.random.default_rng(0)
    size = network.config.sample_size or 32
    x = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
    classes = network.config.num_class_embeds
    labels = None if classes is None else rng.integers(classes, size=batch)
    return x, np.full(batch, 250 * np.log(80), np.float32), labels


def run_reference(network, x, t, labels):
    """Call the reference with pictures in its own dtype, times in float32: f64[B, H, W, C]."""
    pictures = torch.from_numpy(x.transpose(0, 3, 1, 2)).to(network.dtype)
    labels = None if labels is None else torch.from_numpy(labels)
    with torch.inference_mode():
        out = network(pictures, torch.from_numpy(t), class_labels=labels).sample
    return out.double().numpy().transpose(0, 2, 3, 1)


@jax.jit
def forward(model, x, t, labels):
    return model(x, t, labels)


def run(folder, dtype, x, t, labels):
    """Load the folder and call the network, with pictures in the dtype it computes in: f64[B, H, W, C]."""
    model, config = cmjax.load(folder, dtype=dtype)
    assert config == cmjax.cm.CMConfig()
    labels = None if labels is None else jnp.asarray(labels)
    return np.asarray(forward(model, jnp.asarray(x, dtype), jnp.asarray(t), labels), np.float64)


def largest(ours, theirs):
    """The largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def rms(half, full):
    """The root mean square of the difference over that of the values."""
    return float(np.sqrt(np.square(half - full).mean() / np.square(full).mean()))


def compare(network, folder, batch):
    """Measure every figure of one network; it is in float64 afterwards, as there is no room for two of that size."""
    write_folder(network, folder)
    call = inputs(network, batch)
    ours, theirs = run(folder, jnp.float32, *call), run_reference(network, *call)
    halved = diffusers.UNet2DModel.from_pretrained(folder / "unet", torch_dtype=torch.bfloat16).eval()
    our_half, their_half = run(folder, jnp.bfloat16, *call), run_reference(halved, *call)
    exact = run_reference(network.double(), *call)
    assert 0.1 < exact.std() < 10  # pictures, not a constant
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(cmjax.load(folder).model)),
        "float32, cmjax to diffusers": largest(ours, theirs),
        "float32 to float64, cmjax": largest(ours, exact),
        "float32 to float64, diffusers": largest(theirs, exact),
        "bfloat16 to float32, cmjax": rms(our_half, ours),
        "bfloat16 to float32, diffusers": rms(their_half, theirs),
    }


def judge(figures):
    """Hold the figures of one network to their bounds."""
    assert figures["float32, cmjax to diffusers"] <= 2e-5
    assert figures["float32 to float64, cmjax"] <= 2 * figures["float32 to float64, diffusers"]
    assert figures["bfloat16 to float32, cmjax"] <= figures["bfloat16 to float32, diffusers"]


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_network(name, tmp_path, figures):
    figures[f"tiny, {name}"] = compare(reference(TINY[name]), tmp_path, batch=8)
    judge(figures[f"tiny, {name}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_network_at_full_size(name, tmp_path, figures):
    options, parameters = FULL[name]
    network = reference(options)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    try:
        figures[name] = compare(network, tmp_path, batch=1)
    finally:
        shutil.rmtree(tmp_path)  # gigabytes, which pytest would keep
    assert figures[name]["parameters"] == parameters
    judge(figures[name])
