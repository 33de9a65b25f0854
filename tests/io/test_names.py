"""The networks of published files, at their full size: every tensor's name and shape, without weights."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from cmjax.io.assembly import assemble
from cmjax.models.families import FAMILIES

FILES = sorted((Path(__file__).parents[1] / "golden" / "names").glob("*.json"))
PARAMETERS = {"autoencoder_kl": (83_653_863, 248), "autoencoder_tiny": (2_445_063, 134)}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def read(file):
    """The config, and tensors that take no memory."""
    content = json.loads(file.read_text())
    config = json.loads(content["config"])
    family = next(family for family in FAMILIES if family.class_name == config["_class_name"])
    shapes = {name: tuple(map(int, shape.split("x"))) for name, shape in content["tensors"].items()}
    return family.config.from_dict(config), {name: nothing(shape) for name, shape in shapes.items()}


def nothing(shape):
    return np.broadcast_to(np.float32(0), shape)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_network_has_the_tensors_of_its_published_files(file):
    config, tensors = read(file)
    network = assemble(config, tensors, abstract=True)  # raises for a tensor too many, too few, or of another shape
    leaves = jax.tree.leaves(network)
    size = sum(math.prod(leaf.shape) for leaf in leaves)
    assert len(leaves) == len(tensors) and size == sum(value.size for value in tensors.values())
    if file.stem in PARAMETERS:
        assert (size, len(tensors)) == PARAMETERS[file.stem]


@pytest.mark.parametrize("as_convolutions", [False, True])
def test_an_autoencoder_reads_the_names_of_2022(as_convolutions):
    config, tensors = read(next(file for file in FILES if file.stem == "autoencoder_kl"))
    old = {}
    for name, value in tensors.items():
        for now, then in OLD_ATTENTION.items():
            if f".attentions.0.{now}." in name:
                name = name.replace(f".{now}.", f".{then}.")
                if as_convolutions and value.ndim == 2:
                    value = nothing((*value.shape, 1, 1))
        old[name] = value
    assert len(old.keys() - tensors.keys()) == 16
    assert len(jax.tree.leaves(assemble(config, old, abstract=True))) == len(tensors)
