"""Damaged and hostile files of LoRAs, and LoRAs that do not fit: one clear error each, and nothing is executed."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lora_files
import ml_dtypes
import numpy as np
import pytest
import torchfiles
from texts import text_model

import cmjax
from cmjax.io.safetensors_files import read_safetensors, write_safetensors
from cmjax.models.lora import Factors, LoRA, Product

FEW, ALL = 300, 10_000
LONGEST_MESSAGE = 20_000
Tensors = dict[str, np.ndarray]


@functools.cache
def made() -> dict[str, Tensors]:
    """The numbers of a file of each form."""
    forms = ("lora", "locon_mid", "loha", "lokr", "lokr_low", "lokr_tucker", "dora_out", "dora_in")
    files = {form: lora_files.make(text_model(), "kohya", form, alphas="some", one_in=7).tensors for form in forms}
    return files | {"peft": lora_files.make(text_model(), "peft", alphas="some", one_in=7).tensors}


# ---- ways to damage --------------------------------------------------------------------------------------------------


def one_of(rng: np.random.Generator, values: Any) -> Any:
    values = list(values)
    return values[rng.integers(len(values))]


def flipped(rng: np.random.Generator, data: bytearray, most: int = 30) -> bytearray:
    for _ in range(rng.integers(1, most)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return data


def bytes_flipped(rng: np.random.Generator, path: Path, tensors: Tensors) -> None:
    write_safetensors(tensors, path)
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.7:  # most of a file is numbers, and most damage there is no damage to the form
        data[:start] = flipped(rng, data[:start], 4)
    path.write_bytes(flipped(rng, data))


def cut(rng: np.random.Generator, path: Path, tensors: Tensors) -> None:
    write_safetensors(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: rng.integers(len(data))] + rng.bytes(rng.integers(0, 9)))


def header(rng: np.random.Generator, path: Path, tensors: Tensors) -> None:
    """Another header before the numbers."""
    write_safetensors(tensors, path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    for _ in range(rng.integers(1, 4)):
        name = one_of(rng, [name for name in entries if name != "__metadata__"])
        entry = dict(entries[name])
        key = one_of(rng, ["dtype", "shape", "data_offsets", "name"])
        if key == "name":
            del entries[name]
            name = one_of(rng, ["", "a" * 5000, "alpha", "x.alpha", "\x00.alpha", "\n", "lora_unet_x.lora_down.weight"])
        elif key == "dtype":
            entry[key] = one_of(rng, ["F64", "I64", "BOOL", "F8_E4M3", "C64", "x", 3, None, "I8"])
        elif key == "shape":
            entry[key] = one_of(rng, [[], [0], [1 << 40, 1 << 40], [-1], ["a"], [0, 1 << 62], [1.5], [1] * 99, None])
        else:
            entry[key] = one_of(rng, [[0, 0], [0, 1 << 60], [-8, 8], [8, 0], [0], None, [4, 8, 12], [0, 1e300]])
        entries[name] = entry
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def numbers(rng: np.random.Generator, value: np.ndarray) -> np.ndarray:
    """Another tensor: its shape, its dtype, or what it holds."""
    shape = value.shape
    match rng.integers(9):
        case 0:
            return value.reshape(-1)
        case 1:
            return value[None]
        case 2:
            return value.T
        case 3:
            return np.zeros(tuple(one_of(rng, (0, 1, 2, 3, n)) for n in shape), np.float32)
        case 4:
            bad = np.full(shape, one_of(rng, [np.nan, np.inf, 1e300, -1e-300, 0.0]), np.float64)
            with np.errstate(over="ignore"):
                return bad if rng.random() < 0.5 else bad.astype(np.float16)
        case 5:
            return np.zeros(shape, one_of(rng, [np.int64, np.bool_, np.uint8, np.float16, ml_dtypes.bfloat16]))
        case 6:
            return np.zeros((*shape, *(1,) * rng.integers(1, 5)), np.float32)
        case 7:
            return np.concatenate([value, value]) if value.ndim else np.zeros(3, np.float32)
        case _:
            return np.zeros((), np.float32)


KINDS = (
    *("transformer.single_transformer_blocks.0.attn.to_k", "lora_unet_double_blocks_0_img_attn_proj"),
    *("lora_transformer_transformer_blocks_0_attn_to_k", "transformer.transformer_blocks.0.attn.to_q"),
    *("controlnet_cond_embedding.conv_in", "lora_controlnet_down_blocks_0", "model.diffusion_model.input_blocks.0.0"),
    *("lora_te3_encoder_block_0", "lora_prior_unet_down", "base_model.model.", "unet", "", ".", "text_encoder_9.a"),
)
WORDS = (
    *("lora_down.weight", "lora_up.weight", "lora_A.weight", "lora_B.weight", "lora_mid.weight", "alpha", "dora_scale"),
    *("hada_w1_a", "hada_t1", "lokr_w1", "lokr_w2_b", "lokr_t2", "diff", "weight", "bias", "oft_blocks", "lora_A.bias"),
    *("lora_magnitude_vector", "processor.to_q_lora.down.weight", "w_norm", "lora_down"),
)


def tensors_changed(rng: np.random.Generator, path: Path, tensors: Tensors) -> None:
    tensors = dict(tensors)
    for _ in range(rng.integers(1, 5)):
        name = one_of(rng, tensors)
        module = name.split(".")[0]
        match rng.integers(7):
            case 0:
                del tensors[name]
            case 1:
                tensors[f"{one_of(rng, KINDS)}.{one_of(rng, WORDS)}"] = tensors[name]
            case 2:
                tensors[f"{module}.{one_of(rng, WORDS)}"] = one_of(rng, tensors.values())
            case 3:
                tensors[name] = one_of(rng, tensors.values())
            case _:
                tensors[name] = numbers(rng, tensors[name])
        tensors = tensors or {"a": np.zeros(2, np.float32)}
    if path.suffix == ".pt":
        tensors = {k: v for k, v in tensors.items() if str(v.dtype) in torchfiles.STORAGES}
        torchfiles.write(path, tensors)
    else:
        write_safetensors(tensors, path)


VALUES = (None, 0, -1, 2, 1e999, 1e300, float("nan"), "4", "x", [], {}, [4], {"a": 1}, True, 10**400)
PATTERNS = (
    "(a+)+$",
    "(",
    "[",
    "(" * 400,
    ".*.*.*.*.*x",
    r"\1",
    "a{1,99999}",
    "",
    ".*",
    "proj",
    "(?P<a>x)",
    "^(a|b)",
    "x" * 999,
)


def config_changed(rng: np.random.Generator, path: Path, tensors: Tensors) -> None:
    """What PEFT says of alphas."""

    def value() -> Any:
        if rng.random() < 0.5:
            return one_of(rng, VALUES)
        return {one_of(rng, PATTERNS): one_of(rng, VALUES) for _ in range(3)}

    keys = ("lora_alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora")
    config: Any = {f"unet.{key}": value() for key in keys if rng.random() < 0.8}
    config = config if rng.random() < 0.9 else one_of(rng, VALUES)
    text = json.dumps(config) if rng.random() < 0.9 else one_of(rng, ["", "{", "[" * 5000, "\x00", "nul"])
    write_safetensors(made()["peft"], path, metadata={"lora_adapter_metadata": text})


def pickle_flipped(rng: np.random.Generator, path: Path, tensors: Tensors) -> None:
    torchfiles.write(path, tensors)
    path.write_bytes(flipped(rng, bytearray(path.read_bytes())))


class Runs:
    """What a pickle would execute."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def pickle_that_runs(rng: np.random.Generator, path: Path, tensors: Tensors) -> None:
    value = {"lora_unet_conv_in.lora_down.weight": Runs(path.with_name("executed"))}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, int(rng.integers(0, 5))))
        archive.writestr("archive/version", "3\n")


WAYS: dict[Callable[..., None], tuple[str, ...]] = {
    bytes_flipped: (".safetensors",),
    cut: (".safetensors",),
    header: (".safetensors",),
    tensors_changed: (".safetensors", ".safetensors", ".pt"),
    config_changed: (".safetensors",),
    pickle_flipped: (".pt", ".bin", ".ckpt"),
    pickle_that_runs: (".pt",),
}


@pytest.mark.parametrize("count", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
def test_damaged_files(count: int, tmp_path: Path) -> None:
    """Each is read and fits the model, with finite numbers, or is refused by one message."""
    rng = np.random.default_rng(count)
    refused = dict.fromkeys(WAYS, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(count):
        way = list(WAYS)[i % len(WAYS)]
        path = tmp_path / f"a{one_of(rng, WAYS[way])}"
        way(rng, path, one_of(rng, made().values()))
        try:
            lora = cmjax.lora.read(path)
            found = cmjax.lora.resolve(lora, text_model())
        except (ValueError, FileNotFoundError) as error:
            refused[way] += 1
            kind, message = type(error), str(error)
            assert kind in (ValueError, FileNotFoundError), f"{i}: {kind} {message}"
            assert 20 < len(message) < LONGEST_MESSAGE, f"{i}: {message:.500}"
            assert not re.search(r"Traceback|XlaRuntime|jaxlib|dot_general|broadcast", message), f"{i}: {message:.500}"
        else:
            assert all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(found)), i
    assert not (tmp_path / "executed").exists()
    assert all(refused[way] for way in WAYS), refused
    assert refused[pickle_that_runs] == (count + len(WAYS) - 7) // len(WAYS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


# ---- files of other kinds --------------------------------------------------------------------------------------------


def written(path: Path, *modules: str, width: int = 8) -> Path:
    tensors = {
        f"{module}.{word}": np.ones(shape, np.float32)
        for module in modules
        for word, shape in (("lora_A.weight", (2, width)), ("lora_B.weight", (8, 2)))
    }
    write_safetensors(tensors, path)
    return path


@pytest.mark.parametrize(
    ("module", "width", "base"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_k", 8, "Flux"),
        ("lora_unet_double_blocks_0_img_attn_proj", 8, "Flux"),
        ("transformer.transformer_blocks.0.attn.to_q", 8, "Stable Diffusion 3"),
        ("unet.down_blocks.0.motion_modules.0.proj_in", 8, "AnimateDiff"),
        ("unet.down_blocks.9.attentions.0.transformer_blocks.0.attn2.to_k", 768, "Stable Diffusion 1"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 1024, "Stable Diffusion 2"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v", 2048, "Stable Diffusion XL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 1280, "SDXL's refiner"),
    ],
)
def test_a_lora_for_another_base_is_named(module: str, width: int, base: str, tmp_path: Path) -> None:
    lora = cmjax.lora.read(written(tmp_path / "a.safetensors", module, width=width))
    for change in (cmjax.lora.merge, cmjax.lora.attach, cmjax.lora.resolve):
        with pytest.raises(ValueError, match=f"seems to be for {base}"):
            change(lora, text_model()) if change is cmjax.lora.resolve else change(text_model(), lora)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"], "no LoRA"),
        (["controlnet_cond_embedding.conv_in.weight"], "no LoRA"),
        (["a.lora_A.weight", "a.lora_B.weight", "a.diff"], "a whole difference of weights, which is not supported"),
        (["a.oft_blocks"], "OFT, which is not supported"),
        (["a.lora_A.weight"], "a: it lacks up"),
        (["a.lora_A.weight", "a.lora_down.weight", "a.lora_B.weight"], "two tensors that are the down of a"),
    ],
)
def test_what_is_no_lora_is_said(names: list[str], message: str, tmp_path: Path) -> None:
    write_safetensors({name: np.ones((2, 2), np.float32) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)):
        cmjax.lora.read(tmp_path / "a.safetensors")


# ---- LoRAs that do not fit -------------------------------------------------------------------------------------------

NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def product(c_in: int, rank: int, c_out: int) -> Factors:
    return Factors(Product(jnp.ones((c_in, rank)), jnp.ones((rank, c_out))), jnp.float32(rank))


GOOD = LoRA({NAME: product(8, 2, 8)})


def test_unknown_modules_are_listed_with_the_nearest() -> None:
    wrong = {NAME.replace("attn1", "attn3"): product(8, 2, 8), "no_such.module": product(8, 2, 8)}
    with pytest.raises(ValueError, match=r"2 of the LoRA's 3: .*attn3\.to_q \(nearest: .*to_q\), no_such\.module"):
        cmjax.lora.merge(text_model(), LoRA({**GOOD.factors, **wrong}))


@pytest.mark.parametrize("shape", [(7, 2, 8), (8, 2, 9), (8, 0, 9)])
def test_factors_that_do_not_fit_are_listed(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(NAME)} changes a kernel of shape \(8, 8\), but they make"):
        cmjax.lora.attach(text_model(), LoRA({NAME: product(*shape)}))


def test_one_module_by_two_names() -> None:
    twice = {NAME: product(8, 2, 8), "lora_" + NAME.replace(".", "_"): product(8, 2, 8)}
    with pytest.raises(ValueError, match=r"changes .* twice"):
        cmjax.lora.resolve(LoRA(twice), text_model())


@pytest.mark.parametrize("change", [cmjax.lora.merge, cmjax.lora.attach])
@pytest.mark.parametrize(
    ("scale", "kind"),
    [
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("1", TypeError),
        (None, TypeError),
        (1j, TypeError),
        (np.ones((2, 2)), ValueError),
        (np.ones(0), ValueError),
        ([1.0, 2.0], ValueError),
    ],
)
def test_scales_that_are_none(change: Any, scale: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="scale must be"):
        change(text_model(), [GOOD], scale)


@pytest.mark.parametrize("target", [None, 3, "sdxl", {}, jnp.ones(3), "an autoencoder"])
def test_targets_that_are_none(target: Any) -> None:
    target = text_model().autoencoder if target == "an autoencoder" else target
    for change in (cmjax.lora.merge, cmjax.lora.attach):
        with pytest.raises((TypeError, ValueError), match="target must be"):
            change(target, GOOD)


@pytest.mark.parametrize("lora", [None, "a.safetensors", {}, 3])
def test_loras_that_are_none(lora: Any) -> None:
    for call in (
        lambda: cmjax.lora.merge(text_model(), lora),
        lambda: cmjax.lora.attach(text_model(), [GOOD, lora]),
        lambda: cmjax.lora.resolve(lora, text_model()),
        lambda: cmjax.lora.base_of(lora),
        lambda: cmjax.lora.write(lora, "a.safetensors"),
    ):
        with pytest.raises(TypeError, match="lora must be a LoRA"):
            call()


@pytest.mark.parametrize("path", [None, 3, GOOD, ["a.safetensors"]])
def test_paths_that_are_none(path: Any) -> None:
    for call in (cmjax.lora.read, lambda path: cmjax.lora.write(GOOD, path)):
        with pytest.raises(TypeError, match=r"path(_or_repo_id)? must"):
            call(path)


@pytest.mark.parametrize("name", ["a.pt", "a", "a.safetensors.bak"])
def test_what_is_written_can_be_read(name: str, tmp_path: Path) -> None:
    """Reading goes by the ending, and refuses a file without factors."""
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        cmjax.lora.write(GOOD, tmp_path / name)
    with pytest.raises(ValueError, match="must have factors"):
        cmjax.lora.write(cmjax.lora.LoRA({}), tmp_path / "a.safetensors")


def test_models_that_have_no_difference_to_extract() -> None:
    unet = text_model().unet
    damaged = unet.replace({"conv_in.kernel": unet.leaves()["conv_in.kernel"] * jnp.nan})
    for tuned, message in (
        (cmjax.lora.attach(unet, GOOD), "without LoRAs beside"),
        (damaged, r"finite weights, but those of unet\.conv_in"),
    ):
        with pytest.raises(ValueError, match=message):
            cmjax.lora.extract(unet, tuned, 1)
    with pytest.raises(TypeError, match="must have weights"):
        cmjax.lora.extract(unet, jax.eval_shape(lambda: unet), 1)


def test_a_tree_of_something_else_has_a_repr() -> None:
    assert repr(jax.tree.map(lambda leaf: 0, GOOD)) == f"LoRA({len(GOOD.factors)} modules)"


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["kohya", "peft"])
def test_written_with_the_axes_that_programs_expect(style: str, tmp_path: Path) -> None:
    """A window of one pixel for Stable Diffusion 1's projections, and no alphas where ranks differ."""
    path = tmp_path / "a.safetensors"
    made = lora_files.make(text_model(), style, alphas="some").tensors
    made = {name: value for name, value in made.items() if not name.endswith(".alpha")}
    assert any(value.shape[2:] == (1, 1) for name, value in made.items() if "proj_in" in name)
    write_safetensors(made, path)
    lora = cmjax.lora.resolve(cmjax.lora.read(path), text_model())
    ((attached, _),) = cmjax.lora.attached(cmjax.lora.attach(text_model(), lora))
    for one in (lora, attached):
        cmjax.lora.write(one, path, style)
        again = read_safetensors(path)
        assert again.keys() == made.keys()
        for name, value in made.items():
            np.testing.assert_array_equal(again[name], value)
