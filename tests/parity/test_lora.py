"""LoRAs against diffusers and PEFT: files that both read, files that are written here, and where the reference differs.

Every model is tiny and random. Of files that the reference reads rightly, fused weights are compared; they were 2e-7 of
the largest apart at most, and the bound is 2e-6. Where the reference departs from the formula, the test says so, holds
the formula here, and shows the difference.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import lora_files
import numpy as np
import pytest

import cmjax
from cmjax import text_to_image
from cmjax.io.safetensors_files import write_safetensors

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
tiny = pytest.importorskip("torch_texts")

BOUND, PICTURES = 2e-6, 1e-4
PARTS = ("unet", "text_encoder", "text_encoder_2")
SCALE = 0.3
KEY = jax.random.key(5)


Weights = dict[str, np.ndarray]


class Pair(NamedTuple):
    """One folder: our model, and the reference's loader, since LoRAs change a pipeline for good."""

    ours: text_to_image.TextToImage
    base: Weights
    folder: Path
    xl: bool

    def theirs(self) -> Any:
        return tiny.raw(diffusers.DiffusionPipeline.from_pretrained(self.folder, low_cpu_mem_usage=False))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def pair(xl: bool) -> Pair:
        folder = tiny.save(tmp_path_factory.mktemp("pipelines") / f"xl{xl}", xl=xl)
        ours = text_to_image.load(folder)
        return Pair(ours, _plain(lora_files.weights(ours)), folder, xl)

    return pair


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Writes tensors; returns the path."""

    def write(tensors: dict[str, np.ndarray]) -> Path:
        write_safetensors(tensors, tmp_path / "lora.safetensors")
        return tmp_path / "lora.safetensors"

    return write


def _plain(weights: Weights) -> Weights:
    """Without a prefix of text encoders that comes and goes with the versions of transformers."""
    return {name.replace(".text_model.", "."): value for name, value in weights.items()}


def ours(pair: Pair, path: Path, scale: float = SCALE) -> Weights:
    return _plain(lora_files.weights(cmjax.lora.merge(pair.ours, cmjax.lora.read(path), scale)))


def formula(pair: Pair, made: lora_files.File, scale: float = SCALE) -> Weights:
    change = _plain(made.change)
    return {name: kernel + scale * change.get(name, np.zeros(())) for name, kernel in pair.base.items()}


def theirs(pair: Pair, path: Path, scale: float = SCALE) -> Weights:
    pipe = pair.theirs()
    pipe.load_lora_weights(path)
    return fused(pair, pipe, scale)


def fused(pair: Pair, pipe: Any, scale: float = SCALE) -> Weights:
    pipe.fuse_lora(components=[part for part in PARTS if getattr(pipe, part, None) is not None], lora_scale=scale)
    pipe.unload_lora_weights()
    return kernels(pair, pipe)


def kernels(pair: Pair, pipe: Any) -> Weights:
    found = {
        f"{part}.{name.removesuffix('.weight')}": np.asarray(value.detach(), np.float64)
        for part in PARTS
        if getattr(pipe, part, None) is not None
        for name, value in getattr(pipe, part).state_dict().items()
        if name.endswith(".weight")
    }
    return {name: value for name, value in _plain(found).items() if name in pair.base}


def apart(one: Weights, other: Weights) -> set[str]:
    """The modules whose weights differ."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return {name for name in one if np.abs(one[name] - other[name]).max() > BOUND * max(1.0, np.abs(one[name]).max())}


def same(one: Weights, other: Weights) -> None:
    assert apart(one, other) == set()


BOTH = [(xl, style) for xl in (False, True) for style in ("peft", "kohya", "diffusers", "first", "linear_layer")]
ADDED = {"unet.add_embedding.linear_1", "unet.add_embedding.linear_2"}  # which the reference knows by another name


def without(word: str, made: lora_files.File) -> lora_files.File:
    return lora_files.File(*({k: v for k, v in one.items() if word not in k} for one in (made.tensors, made.change)))


def make(pair: Pair, style: str, form: str = "lora", **options: Any) -> lora_files.File:
    """A file as the reference could have written it: without modules that it has no name for there."""
    made = lora_files.make(pair.ours, style, form, **options)
    if style == "kohya":
        made = without("add_embedding", made)
    if style == "diffusers":  # of text encoders it called them lora_linear_layer
        made = without("text_", made)
    if options.get("alphas", "none") != "none":  # with ranks that differ
        made = without("text_projection", made)
    return made


# ---- files that the reference reads rightly --------------------------------------------------------------------------


@pytest.mark.parametrize(("xl", "style"), [*BOTH, (True, "sgm"), (False, "short_texts")])
def test_fused_is_merged(xl, style, pairs, file):
    """All styles, ranks that differ, no alphas."""
    pair = pairs(xl)
    alphas = "none" if lora_files.STYLES[style].has_alpha else "some"  # which mixes ranks
    made = make(pair, style, alphas=alphas)
    path = file(made.tensors)
    expected = ours(pair, path)
    assert apart(expected, pair.base) == set(_plain(made.change))
    same(expected, formula(pair, made))
    same(expected, theirs(pair, path))


@pytest.mark.parametrize(("xl", "style"), [(False, "kohya"), (True, "kohya"), (True, "sgm")])
def test_one_common_alpha(xl, style, pairs, file):
    pair = pairs(xl)
    made = make(pair, style, alphas="all")
    tensors = {name: np.float32(1.5) if name.endswith(".alpha") else value for name, value in made.tensors.items()}
    path = file({name: np.asarray(value) for name, value in tensors.items()})
    same(ours(pair, path), theirs(pair, path))


@pytest.mark.parametrize("xl", [False, True])
def test_alphas_that_are_the_ranks(xl, pairs, file):
    """Files of mixed ranks with alpha = rank are right only where the ranks are one."""
    pair = pairs(xl)
    made = make(pair, "kohya")
    names = {name.rpartition(".lora_down")[0] for name in made.tensors if ".lora_down" in name}
    path = file(made.tensors | {f"{name}.alpha": np.asarray(2.0, np.float32) for name in names})
    same(formula(pair, made), ours(pair, path))
    same(formula(pair, made), theirs(pair, path))


# ---- what is written here, the reference reads -----------------------------------------------------------------------


@pytest.mark.parametrize("style", ["peft", "kohya"])
@pytest.mark.parametrize("xl", [False, True])
def test_written_here_is_fused_and_drawn_there(xl, style, pairs, file, tmp_path, monkeypatch):
    """Of mixed ranks and alphas, text encoders included: the same weights, and the same pictures."""
    pair = pairs(xl)
    made = make(pair, "kohya", alphas="some", seed=3)
    lora = cmjax.lora.resolve(cmjax.lora.read(file(made.tensors)), pair.ours)
    path = tmp_path / "written.safetensors"
    cmjax.lora.write(lora, path, style)
    wanted = formula(pair, made)
    same(ours(pair, path), wanted)
    same(theirs(pair, path), wanted)

    drawn, steps, prompts, size = tiny.Drawn(monkeypatch), 2, ["red fox", "blue"], (24, 40)
    model = cmjax.lora.merge(pair.ours, lora, SCALE)
    state = cmjax.tcd.init(model.config, steps, eta=0.3)
    pictures = text_to_image.draw(model, state, KEY, model.encode(model.tokenize(prompts), size=size), size=size)
    pipe = pair.theirs()
    pipe.load_lora_weights(path, adapter_name="ours")
    pipe.set_adapters(["ours"], [SCALE])
    start, *drawn.left = tiny.draws(KEY, steps, (2, 3, 5, 4))
    expected = pipe(
        prompts,
        latents=start,
        output_type="pt",
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=0.0,
        eta=0.3,
    ).images
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(pictures, expected, rtol=0, atol=PICTURES)


def test_written_magnitudes_are_read(pairs, file, tmp_path):
    """DoRA, in PEFT's style; layers alone, since the reference's module does convolutions another way (below)."""
    pair = pairs(False)
    made = make(pair, "kohya", "dora_out", alphas="all")
    lora = cmjax.lora.resolve(cmjax.lora.read(file(made.tensors)), pair.ours)
    cmjax.lora.write(lora, tmp_path / "written.safetensors")
    wanted = ours(pair, tmp_path / "written.safetensors", 1.0)
    same(wanted, formula(pair, made, 1.0))
    same(wanted, theirs(pair, tmp_path / "written.safetensors", 1.0))


# ---- what PEFT and the reference write is read here ------------------------------------------------------------------

CONFIGS = {
    "alpha": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"attn1.to_q": 2, "down_blocks.1.attentions.0.proj_in": 3, "to_k": 1},
        "alpha_pattern": {"attn1.to_q": 5, "to_k": 9, "conv1": 1},
    },
    # A pattern is a regular expression from the start of a name or a dot to its end, and the first that fits counts;
    # files sort them.
    "expressions": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {r"^up_blocks\..*\.conv1": 1, "attn[12].to_k": 5, "mid_block.*to_q": 2, "to_q": 3},
        "alpha_pattern": {"attn1.to_v": 7, r"down_blocks\..*": 3, "to_v": 2},
    },
    "rslora_patterns": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {"to_q": 2},
        "alpha_pattern": {"to_k": 3},
    },
    "dora": {"r": 4, "lora_alpha": 6, "use_dora": True},
}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "conv_in", "conv_shortcut"]


def drawn_factors(module: Any, seed: int = 0) -> None:
    """Give every factor numbers; PEFT begins with zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif "magnitude" in name:
                parameter.mul_(1.3)


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized")
@pytest.mark.parametrize("name", CONFIGS)
def test_read_as_the_reference_writes(name, pairs, tmp_path):
    """save_lora_weights, with what it says of alphas in the header, for the network and a text encoder."""
    pair = pairs(False)
    pipe = pair.theirs()
    pipe.unet.add_adapter(peft.LoraConfig(target_modules=TARGETS, **CONFIGS[name]))
    peft.inject_adapter_in_model(
        peft.LoraConfig(target_modules=["q_proj", "fc1"], r=3, lora_alpha=5), pipe.text_encoder
    )
    for part in (pipe.unet, pipe.text_encoder):
        drawn_factors(part)
    type(pipe).save_lora_weights(
        tmp_path,
        unet_lora_layers=peft.get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=peft.get_peft_model_state_dict(pipe.text_encoder),
        unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pipe.text_encoder.peft_config["default"].to_dict(),
    )
    same(ours(pair, tmp_path), fused(pair, pipe) if name != "dora" else ours(pair, tmp_path))
    if name == "dora":  # fused at a scale, a magnitude is another function there
        same(ours(pair, tmp_path, 1.0), fused(pair, pipe, 1.0))


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized")
@pytest.mark.parametrize("name", CONFIGS)
def test_read_as_peft_writes(name, pairs, tmp_path):
    """A folder of adapter_config.json and adapter_model.safetensors."""
    pair = pairs(False)
    unet = peft.get_peft_model(pair.theirs().unet, peft.LoraConfig(target_modules=TARGETS, **CONFIGS[name]))
    drawn_factors(unet)
    unet.save_pretrained(tmp_path)
    pipe = pair.theirs()
    pipe.unet = unet.merge_and_unload()
    same(ours(pair, tmp_path, 1.0), kernels(pair, pipe))


# ---- where the reference differs from the formula --------------------------------------------------------------------


def is_attention_or_text(name: str) -> bool:
    return name.startswith("text_") or ".attn" in name


@pytest.mark.parametrize("xl", [False, True])
def test_differs_alphas_that_differ(xl, pairs, file):
    """There, attention and text encoders get the commonest alpha of the file."""
    pair = pairs(xl)
    made = make(pair, "kohya", alphas="all")
    path = file(made.tensors)
    wanted = formula(pair, made)
    same(ours(pair, path), wanted)
    alphas = {name: float(value) for name, value in made.tensors.items() if name.endswith(".alpha")}
    common = Counter(alphas.values()).most_common(1)[0][0]
    wrong = apart(theirs(pair, path), wanted)
    assert wrong and all(is_attention_or_text(name) for name in wrong)
    assert len(wrong) > sum(value == common for value in alphas.values()) // 4


@pytest.mark.parametrize("xl", [False, True])
def test_differs_alphas_of_some_modules(xl, pairs, file):
    """There, modules without an alpha get that of others, where the rank is meant."""
    pair = pairs(xl)
    made = make(pair, "kohya")
    some = [name.rpartition(".lora_down")[0] for name in made.tensors if ".lora_down" in name][::2]
    path = file(made.tensors | {f"{name}.alpha": np.asarray(1.0, np.float32) for name in some})
    change = {name: value * (0.5 if kohya(pair, name) in some else 1.0) for name, value in made.change.items()}
    wanted = formula(pair, lora_files.File({}, change))
    same(ours(pair, path), wanted)
    assert apart(theirs(pair, path), wanted)


def kohya(pair: Pair, name: str) -> str:
    start = lora_files.STYLES["kohya"].start(pair.ours, name)
    assert start is not None
    return start.removesuffix(".")


@pytest.mark.parametrize("style", ["bare", "raw_peft"])
def test_differs_names_without_a_part(style, pairs, file):
    """There, nothing is applied, and a warning is all."""
    pair = pairs(False)
    made = make(pair, style)
    path = file(made.tensors)
    same(ours(pair, path), formula(pair, made))
    pipe = pair.theirs()
    pipe.load_lora_weights(path)
    same(kernels(pair, pipe), pair.base)


def test_differs_unknown_modules(pairs, file):
    """There, they are dropped with a warning; here, a LoRA that does not fit is an error."""
    pair = pairs(False)
    made = make(pair, "peft")
    more = {f"unet.no_such_block.lora_{side}.weight": np.ones((2, 2), np.float32) for side in "AB"}
    path = file(made.tensors | more)
    with pytest.raises(ValueError, match="no_such_block"):
        ours(pair, path)
    same(theirs(pair, path), formula(pair, made))


def test_differs_alphas_beside_pefts_names(pairs, file):
    """There, an error."""
    pair = pairs(False)
    made = make(pair, "peft")
    names = {name.rpartition(".lora_A")[0] for name in made.tensors if ".lora_A" in name}
    path = file(made.tensors | {f"{name}.alpha": np.asarray(1.0, np.float32) for name in names})
    same(ours(pair, path), formula(pair, lora_files.File({}, {name: 0.5 * d for name, d in made.change.items()})))
    with pytest.raises(ValueError, match="lora"):
        theirs(pair, path)


@pytest.mark.parametrize("form", ["dora_out", "dora_in"])
def test_differs_magnitudes_in_kohyas_names(form, pairs, file):
    """There, they are dropped with a warning, and what remains is another LoRA."""
    pair = pairs(False)
    made = make(pair, "kohya", form)
    path = file(made.tensors)
    wanted = formula(pair, made)
    same(ours(pair, path), wanted)
    without = {name: value for name, value in made.tensors.items() if not name.endswith("dora_scale")}
    found = theirs(pair, path)
    assert apart(found, wanted)
    same(found, ours(pair, file(without)))


@pytest.mark.parametrize("form", ["locon_mid", "loha", "loha_tucker", "lokr", "lokr_low", "lokr_tucker"])
def test_differs_other_forms(form, pairs, file):
    """There, an error."""
    pair = pairs(False)
    made = make(pair, "kohya", form)
    path = file(made.tensors)
    same(ours(pair, path), formula(pair, made))
    with pytest.raises(ValueError, match=r"(?i)lora|state.dict|key"):
        theirs(pair, path)


def test_differs_original_names_of_stable_diffusion_1(pairs, file):
    """There, they are known for XL only: modules are dropped with a warning, or all of them with an error."""
    pair = pairs(False)
    made = make(pair, "sgm")
    path = file(made.tensors)
    wanted = formula(pair, made)
    same(ours(pair, path), wanted)
    lost = apart(theirs(pair, path), wanted)
    assert lost and all(name.startswith("unet.") for name in lost)


def test_differs_mixed_names_in_one_file(pairs, file):
    """There, all modules with original names are removed."""
    pair = pairs(True)
    made = make(pair, "mixed")
    path = file(made.tensors)
    wanted = formula(pair, made)
    same(ours(pair, path), wanted)
    found = theirs(pair, path)
    lost = apart(found, wanted)
    assert lost and lost == {name for name in lost if name not in apart(found, pair.base)}


def test_differs_embedding_of_sizes(pairs, file):
    """There, XL's add_embedding is found by its original name only."""
    pair = pairs(True)
    made = lora_files.make(pair.ours, "kohya")
    path = file(made.tensors)
    same(ours(pair, path), formula(pair, made))
    assert apart(theirs(pair, path), formula(pair, made)) == ADDED


def test_differs_rank_of_the_projection(pairs, file):
    """There, the projection of a text encoder gets the commonest rank of the encoder, and another is an error."""
    pair = pairs(True)
    made = lora_files.make(pair.ours, "peft", alphas="some")
    path = file(made.tensors)
    same(ours(pair, path), formula(pair, made))
    with pytest.raises(RuntimeError, match="mismatch"):
        theirs(pair, path)


def test_differs_short_names_of_the_second_encoder(pairs, file):
    """There, an error of its own."""
    pair = pairs(True)
    made = lora_files.make(pair.ours, "short_texts")
    path = file(made.tensors)
    same(ours(pair, path), formula(pair, made))
    with pytest.raises(IndexError):
        theirs(pair, path)


def test_differs_a_second_file(pairs, file):
    """There, the last file alone counts, until set_adapters; here, each that is given."""
    pair = pairs(False)
    first = make(pair, "peft", seed=1)
    pipe, one = pair.theirs(), cmjax.lora.read(file(first.tensors))
    pipe.load_lora_weights(file(first.tensors))
    second = make(pair, "kohya", seed=2)
    pipe.load_lora_weights(file(second.tensors))
    other = cmjax.lora.read(file(second.tensors))
    both = cmjax.lora.merge(pair.ours, [one, other], SCALE)
    change = {name: first.change[name] + second.change[name] for name in first.change}
    same(_plain(lora_files.weights(both)), formula(pair, lora_files.File({}, change)))
    same(fused(pair, pipe), formula(pair, second))


def test_differs_fused_twice(pairs, file):
    """There, the scale of a first fuse stays; here, the base is kept."""
    pair = pairs(False)
    made = make(pair, "peft")
    pipe = pair.theirs()
    pipe.load_lora_weights(file(made.tensors))
    pipe.fuse_lora(components=["unet", "text_encoder"], lora_scale=0.5)
    pipe.unfuse_lora(components=["unet", "text_encoder"])
    same(fused(pair, pipe, 0.5), formula(pair, made, 0.25))
