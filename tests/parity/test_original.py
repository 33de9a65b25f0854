"""The original repository's network, written in torch from its description, against what its files are read as."""

import itertools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.cli import main
from cmjax.io import load_original, read_pt

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


class Residual(nn.Module):
    """Norm, SiLU, resampling of both branches, convolution; the embedding; norm, SiLU, convolution; the sum."""

    def __init__(self, c_in, c_out, width, *, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, c_out * (1 + scale_shift)))
        last = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, c_out), nn.SiLU(), nn.Dropout(0.0), last)
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, emb):
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.resample == "up":
            x, h = (F.interpolate(v, scale_factor=2, mode="nearest") for v in (x, h))
        elif self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        h, told = conv(h), self.emb_layers(emb)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class SelfAttention(nn.Module):
    """Rows of qkv: all queries, all keys, all values; in each, the first head's channels first."""

    def __init__(self, channels, head_dim):
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x, emb):
        b, c, height, width = x.shape
        told = self.qkv(self.norm(x)).reshape(b, 3, c // self.head_dim, self.head_dim, height * width)
        q, k, v = told.unbind(1)
        weights = torch.softmax(q.transpose(-1, -2) @ k / math.sqrt(self.head_dim), dim=-1)
        return x + self.proj_out((v @ weights.transpose(-1, -2)).reshape(x.shape))


class Part(nn.ModuleList):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb)
        return x


class Plain(nn.Conv2d):
    def forward(self, x, emb):
        return super().forward(x)


class Original(nn.Module):
    def __init__(self, *, channels, layers, attends, head_dim, scale_shift, classes=None, depth=3):
        super().__init__()
        self.waves = channels[0]
        width = 4 * channels[0]
        self.time_embed = nn.Sequential(nn.Linear(channels[0], width), nn.SiLU(), nn.Linear(width, width))
        self.label_emb = nn.Embedding(classes, width) if classes else None

        def residual(c_in, c_out, resample=None):
            return Residual(c_in, c_out, width, scale_shift=scale_shift, resample=resample)

        def block(c_in, c_out, level):
            return [residual(c_in, c_out), *([SelfAttention(c_out, head_dim)] if level in attends else [])]

        last = len(channels) - 1
        parts, c, skips = [[Plain(depth, channels[0], 3, padding=1)]], channels[0], [channels[0]]
        for level, c_out in enumerate(channels):
            for _ in range(layers):
                parts.append(block(c, c_out, level))
                skips.append(c := c_out)
            if level < last:
                parts.append([residual(c, c, "down")])
                skips.append(c)
        self.input_blocks = nn.ModuleList(map(Part, parts))
        self.middle_block = Part([residual(c, c), SelfAttention(c, head_dim), residual(c, c)])
        parts = []
        for level, c_out in reversed([*enumerate(channels)]):
            for j in range(layers + 1):
                parts.append(block(c + skips.pop(), c := c_out, level))
                if j == layers and level:
                    parts[-1].append(residual(c, c, "up"))
        self.output_blocks = nn.ModuleList(map(Part, parts))
        self.out = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, depth, 3, padding=1))

    def forward(self, x, t, labels=None):
        half = self.waves // 2
        phases = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([phases.cos(), phases.sin()], dim=1))
        emb = emb if labels is None else emb + self.label_emb(labels)
        kept = []
        for part in self.input_blocks:
            kept.append(x := part(x, emb))
        x = self.middle_block(x, emb)
        for part in self.output_blocks:
            x = part(torch.cat([x, kept.pop()], dim=1), emb)
        return self.out(x)


NETWORKS = {
    "as of ImageNet": {"channels": (32, 64), "layers": 2, "attends": {1}, "scale_shift": True, "classes": 7},
    "as of LSUN": {"channels": (32, 32, 64), "layers": 1, "attends": {1, 2}, "scale_shift": False},
    "attention in the middle only": {"channels": (32, 64), "layers": 1, "attends": set(), "scale_shift": True},
    "one level": {"channels": (64,), "layers": 1, "attends": {0}, "scale_shift": False, "depth": 1},
}


def original(name, seed=0):
    """A network with every weight random, biases and norms included."""
    torch.manual_seed(seed)
    network = Original(head_dim=16, **NETWORKS[name]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def inputs(name, depth=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 8, depth)).astype(np.float32)
    return x, np.array([1095.5, -700.25], np.float32), np.array([6, 1]) if NETWORKS[name].get("classes") else None


@jax.jit
def run(network, x, t, cond):
    return network(x, t, cond)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_converted_network_computes_the_same(name, tmp_path):
    theirs = original(name)
    torch.save(theirs.state_dict(), tmp_path / "m.pt")
    ours, config = load_original(tmp_path / "m.pt", head_dim=16)
    assert config == cmjax.cm.CMConfig()
    x, t, cond = inputs(name, NETWORKS[name].get("depth", 3))
    with torch.no_grad():
        labels = None if cond is None else torch.from_numpy(cond)
        pictures, times = torch.from_numpy(x.transpose(0, 3, 1, 2)).double(), torch.from_numpy(t).double()
        wanted = theirs.double()(pictures, times, labels).numpy()  # what both float32 networks approximate
    wanted = wanted.transpose(0, 2, 3, 1)
    got = run(ours, jnp.asarray(x), jnp.asarray(t), None if cond is None else jnp.asarray(cond))
    assert np.abs(np.asarray(got) - wanted).max() / np.abs(wanted).max() <= 2e-5


def test_diffusers_computes_the_same_from_the_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    name = "as of ImageNet"
    theirs = original(name)
    torch.save(theirs.state_dict(), tmp_path / "m.pt")
    assert main(["convert", str(tmp_path / "m.pt"), str(tmp_path / "out"), "--head-dim", "16"]) == 0
    network = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet").eval()
    x, t, cond = (torch.from_numpy(v) for v in inputs(name))
    x = x.permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted, got = theirs(x, t, cond), network(x, t, class_labels=cond).sample
    assert (got - wanted).abs().max() / wanted.abs().max() <= 2e-5


# ---- the reader against torch itself ---------------------------------------------------------------------------------


def equal(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert str(ours[name].dtype) == str(value.dtype).removeprefix("torch.")
        assert ours[name].shape == tuple(value.shape)
        np.testing.assert_array_equal(ours[name].astype(np.float64), value.detach().double().numpy())


FORMS = [*itertools.product((2, 3, 4, 5), (True, False))]


@pytest.mark.parametrize(("protocol", "zipped"), FORMS)
def test_files_of_torch_save(protocol, zipped, tmp_path):
    torch.manual_seed(0)
    whole = torch.randn(6, 8)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    tensors = {
        "whole": whole,
        "transposed": whole.T,
        "part": whole[1:5:2, ::3],
        "one": whole[3, 4],
        "expanded": torch.ones(1).expand(4),
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "frozen": nn.Parameter(torch.randn(2), requires_grad=False),
        "empty": torch.zeros(0, 3),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        tensors[dtype] = torch.arange(-3, 4).to(getattr(torch, dtype))
    path = tmp_path / "m.pt"
    for state in (tensors, module.state_dict(), dict(module.named_parameters())):
        for top in (state, {"model": state, "epoch": 3}):
            torch.save(top, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            equal(read_pt(path), state)


@pytest.mark.parametrize(("protocol", "zipped"), [(2, True), (2, False), (4, True)])
def test_ten_thousand_parameters_are_within_the_bounds(protocol, zipped, tmp_path):
    state = {f"blocks.{i}.weight": nn.Parameter(torch.zeros(1, 1, 1, 1)) for i in range(10_000)}
    torch.save(state, tmp_path / "m.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert len(read_pt(tmp_path / "m.pt")) == 10_000


def test_files_of_torch_that_hold_other_things(tmp_path):
    path = tmp_path / "m.pt"
    for value, message in (
        (nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear"),
        ({"w": torch.randn(2, 2).to_sparse()}, "asks for torch._utils._rebuild_sparse_tensor"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "asks for torch.ComplexFloatStorage"),
        ({"w": np.zeros(2)}, "asks for numpy"),
        ({"w": torch.zeros(2), "n": 1}, "tensors, 'n'"),
    ):
        torch.save(value, path)
        with pytest.raises(ValueError, match=message):
            read_pt(path)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ValueError, match="Is it a TorchScript program"):
        read_pt(path)
