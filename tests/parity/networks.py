"""Networks of the reference and ours with the same weights."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from shapes import shaped

from cmjax.io.weights import file_tensors, load_weights

torch = pytest.importorskip("torch")


def shaken(network: Any, seed: int) -> Any:
    """Give every weight of a reference network some noise, biases and norms included."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def ours(network: Any, config: Any, theirs: Any) -> Any:
    """Load the reference's weights, and check that they come back under the same names."""
    state = {name: value.numpy() for name, value in theirs.state_dict().items() if not name.endswith("position_ids")}
    module = load_weights(shaped(lambda rngs: network(config, rngs=rngs)), state)
    back = file_tensors(module)
    assert set(back) == set(state)
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name])
    return module


def close(a: jax.Array, b: Any, bound: float = 2e-5) -> None:
    """Hold ours to the reference's, relative to its largest value."""
    b = b.detach().numpy()
    assert a.shape == b.shape
    assert np.abs(np.asarray(a) - b).max() <= bound * np.abs(b).max()


def nchw(x: np.ndarray) -> Any:
    """Pictures as the reference has them."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
