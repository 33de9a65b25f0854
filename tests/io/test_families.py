"""A new family is one row: files are written and read by it, wherever a pipeline puts them."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cmjax
from cmjax.io import folder, hub, read_safetensors, write_safetensors
from cmjax.models import from_nnx
from cmjax.models.families import FAMILIES, Family, family_of, read_network_config
from cmjax.models.layers import Conv


@dataclasses.dataclass(frozen=True)
class Config:
    channels: int = 3

    @classmethod
    def from_dict(cls, content):
        return cls(content["channels"])

    def to_dict(self):
        return {"_class_name": "OneConvolution", "channels": self.channels}


class OneConvolution(nnx.Module):
    def __init__(self, config, *, rngs, dtype=jnp.float32):
        self.config = config
        self.conv = Conv(config.channels, config.channels, dtype=dtype, rngs=rngs)

    def __call__(self, x, t, cond=None):
        return self.conv(x)


def current(name):
    return None if name == "position_ids" else name.replace("convolution.", "conv.")


@pytest.fixture
def family():
    row = Family("OneConvolution", Config, OneConvolution, folder="net", stem="weights", current=current)
    FAMILIES.append(row)
    yield row
    FAMILIES.remove(row)


def test_a_row_of_the_table_is_all_that_files_need(family, tmp_path):
    model = from_nnx(OneConvolution(Config(4), rngs=nnx.Rngs(0)))
    assert family_of(model.config) is family_of(model.module) is family
    cmjax.save((model, cmjax.cm.CMConfig()), tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["net"] == ["diffusers", "OneConvolution"]
    written = tmp_path / "m" / "net" / "weights.safetensors"
    tensors = read_safetensors(written)
    assert tensors["conv.weight"].shape == (4, 4, 3, 3)
    old = {"convolution.weight": tensors["conv.weight"], "convolution.bias": tensors["conv.bias"]}
    write_safetensors({**old, "position_ids": np.arange(3)}, written)

    def same(other):
        return all(np.array_equal(a, b) for a, b in zip(model.leaves().values(), other.leaves().values(), strict=True))

    assert same(cmjax.load(tmp_path / "m").model) and same(cmjax.load(written).model)
    (tmp_path / "m" / "net").rename(tmp_path / "m" / "prior")
    (tmp_path / "m" / "model_index.json").write_text(json.dumps({**index, "prior": index.pop("net")}))
    for other in (cmjax.load(tmp_path / "m").model, cmjax.io.load_unet(tmp_path / "m" / "prior")):
        assert same(other) and other.config == Config(4)
    assert {"net/*.json", "net/weights.fp16.safetensors"} <= set(hub.patterns("fp16"))
    odd = folder.named_parts(tmp_path / "m")
    assert odd["prior"] is family and "prior/weights-*.safetensors" in hub.patterns(None, odd)


def test_a_class_of_no_family_is_named_beside_those_that_are_read(family):
    assert read_network_config({"_class_name": "OneConvolution", "channels": 2}) == Config(2)
    with pytest.raises(ValueError, match="is for Transformer; cmjax reads UNet2DModel, OneConvolution"):
        read_network_config({"_class_name": "Transformer"})
    with pytest.raises(ValueError, match="must hold a JSON object, but it holds a list"):
        read_network_config([])
    with pytest.raises(TypeError, match=r"must be a cmjax\.models\.UNet or .* or from_nnx of one, got int"):
        family_of(3)
