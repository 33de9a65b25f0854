"""CLIP's text encoders: the formula, the outputs, what published files are like."""

import json
import math
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shapes import shaped

from cmjax.io.assembly import assemble
from cmjax.io.weights import file_tensors, load_weights
from cmjax.models.clip import TextConfig, TextEncoder, names
from cmjax.models.families import FAMILIES, family_of

PUBLISHED = json.loads((Path(__file__).parents[1] / "golden/clip_names.json").read_text())
SIZE = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = TextConfig(**SIZE, max_position_embeddings=7, eos_token_id=49, projection_dim=6, projection=True)
TOKENS = np.array([[48, 5, 7, 49, 49, 49], [48, 3, 3, 20, 11, 49], [48, 49, 0, 0, 0, 0]])


@cache
def encoder():
    """An encoder whose every weight is drawn, norms and biases too."""
    module = shaped(lambda rngs: TextEncoder(CONFIG, rngs=rngs))
    rng = np.random.default_rng(0)
    shapes = file_tensors(jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), module))
    tensors = {name: rng.normal(size=value.shape).astype(np.float32) / 2 for name, value in shapes.items()}
    return load_weights(module, tensors), tensors


@cache
def output():
    return jax.jit(lambda module, tokens: module(tokens))(encoder()[0], TOKENS)


def by_hand(tensors, tokens, config):
    """The formula in float64: the states between layers, and the last one after the norm."""
    w = {name.removeprefix("text_model."): value.astype(np.float64) for name, value in tensors.items()}

    def norm(x, name):
        d = x - x.mean(-1, keepdims=True)
        d = d / np.sqrt((d**2).mean(-1, keepdims=True) + config.layer_norm_eps)
        return d * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def act(x):
        return x / (1 + np.exp(-1.702 * x)) if config.hidden_act == "quick_gelu" else x * np.vectorize(cdf)(x)

    n, heads = tokens.shape[1], config.num_attention_heads
    x = w["embeddings.token_embedding.weight"][tokens] + w["embeddings.position_embedding.weight"][:n]
    states = [x]
    for i in range(config.num_hidden_layers):
        at = f"encoder.layers.{i}"
        y = norm(x, f"{at}.layer_norm1")
        q, k, v = (linear(y, f"{at}.self_attn.{c}_proj").reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for c in "qkv")
        logits = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        logits[..., ~np.tri(n, dtype=bool)] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        y = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + linear(y.swapaxes(1, 2).reshape(x.shape), f"{at}.self_attn.out_proj")
        y = act(linear(norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1"))
        x = x + linear(y, f"{at}.mlp.fc2")
        states.append(x)
    return states, norm(x, "final_layer_norm")


def cdf(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def close(a, b, bound=2e-5):
    assert a.shape == b.shape and a.dtype == jnp.float32
    assert np.abs(a - b).max() <= bound * np.abs(b).max()


def test_it_computes_the_formula():
    tensors, out = encoder()[1], output()
    states, last = by_hand(tensors, TOKENS, CONFIG)
    assert len(out.hidden) == CONFIG.num_hidden_layers + 1
    for a, b in zip(out.hidden, states, strict=True):
        close(a, b)
    close(out.last, last)
    ends = last[np.arange(3), [3, 5, 1]]  # the first token that ends each
    close(out.pooled, ends)
    close(out.projected, ends @ tensors["text_projection.weight"].T.astype(np.float64))


def test_it_computes_the_formula_with_the_other_activation():
    config = TextConfig(**SIZE, max_position_embeddings=7, hidden_act="gelu", eos_token_id=49)
    _, tensors = encoder()
    tensors = {name: value for name, value in tensors.items() if name != "text_projection.weight"}
    out = jax.jit(lambda m, t: m(t))(load_weights(TextEncoder(config, rngs=nnx.Rngs(0)), tensors), TOKENS)
    close(out.last, by_hand(tensors, TOKENS, config)[1])
    assert out.projected is None


def test_the_context_of_a_clip_skip():
    module, out = encoder()[0], output()
    np.testing.assert_array_equal(module.context(out), out.last)
    np.testing.assert_array_equal(module.context(out, normed=False), out.hidden[-1])
    np.testing.assert_array_equal(module.context(out, 1, normed=False), out.hidden[-2])
    close(module.context(out, 1), module.text_model.final_layer_norm(out.hidden[-2]))
    np.testing.assert_array_equal(module.context(out, 2, normed=False), out.hidden[0])
    for wrong in (-1, 3, True, 0.5):
        with pytest.raises(ValueError, match="clip_skip must leave out 0 to 2 layers of this encoder, got"):
            module.context(out, wrong)


def test_a_token_changes_nothing_before_it():
    """And so a batch of texts, padded, changes nobody's rows."""
    changed = TOKENS.copy()
    changed[:, 4:] = 17
    out = jax.jit(lambda module, tokens: module(tokens))(encoder()[0], changed)
    np.testing.assert_array_equal(out.last[:, :4], output().last[:, :4])
    assert (out.last[:2, 4:] != output().last[:2, 4:]).any(axis=-1).all()


@pytest.mark.parametrize(
    ("eos", "rows"),
    [
        (49, [3, 5, 1]),  # the first one; the row 0 where there is none
        (2, [3, 5, 1]),  # the largest one
        (7, [2, 0, 0]),
    ],
)
def test_where_the_pooled_output_is_read(eos, rows):
    module = shaped(lambda rngs: TextEncoder(TextConfig(**SIZE, eos_token_id=eos), rngs=rngs))
    np.testing.assert_array_equal(module._end(jnp.asarray(TOKENS)), rows)


def test_tokens_of_textual_inversion_do_not_move_the_pooled_row():
    config = TextConfig(**SIZE | {"vocab_size": 49410}, eos_token_id=2)
    module = shaped(lambda rngs: TextEncoder(config, rngs=rngs))
    tokens = jnp.array([[49406, 49408, 49409, 320, 49407, 49407], [49406, 320, 49407, 49407, 49407, 49407]])
    np.testing.assert_array_equal(module._end(tokens), [4, 2])


def test_half_precision_is_near_and_its_outputs_are_float32():
    _, tensors = encoder()
    model = assemble(CONFIG, tensors, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    out = jax.jit(lambda model, tokens: model.module(tokens))(model, TOKENS)
    for name in ("last", "pooled", "projected"):
        close(getattr(out, name), getattr(output(), name), 0.05)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (np.zeros((2, 8), int), "tokens may be 7 for each text at most, got 8"),
        (np.zeros((2,), int), r"must be whole numbers of shape \(batch, N\), got int64\(2,\)"),
        (np.zeros((2, 3), np.float32), "must be whole numbers"),
    ],
)
def test_tokens_of_another_shape_are_refused(tokens, says):
    with pytest.raises(ValueError, match=says):
        encoder()[0](tokens)


def test_a_token_that_does_not_exist_gives_nan():
    tokens = TOKENS.copy()
    tokens[0, 1], tokens[1, 1] = 50, -1
    out = jax.jit(lambda module, tokens: module(tokens))(encoder()[0], tokens)
    assert np.isnan(out.pooled).all(axis=-1).tolist() == [True, True, False]


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "parameters"),
    [
        ("CLIP-L", 196, 123_060_480),
        ("OpenCLIP-H", 372, 340_387_840),
        ("OpenCLIP-bigG", 517, 694_659_840),
    ],
)
def test_published_encoders_have_the_tensors_of_their_files(name, count, parameters):
    said = PUBLISHED[name]
    config = TextConfig.from_dict(said["config"])
    layers = range(config.num_hidden_layers)
    expected = {
        path.format(n=n): tuple(shape)
        for path, shape in said["tensors"].items()
        for n in (layers if "{n}" in path else [0])
    }
    module = nnx.eval_shape(lambda: TextEncoder(config, rngs=_NoKeys()))
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), module)
    assert {path: value.shape for path, value in file_tensors(empty).items()} == expected
    assert len(expected) == count and sum(map(math.prod, expected.values())) == parameters
    assert config.to_dict()["architectures"] == said["config"]["architectures"]
    assert TextConfig.from_dict(config.to_dict()) == config


class _NoKeys:
    def params(self):
        return jax.random.key(0)


def test_files_with_and_without_the_prefix_and_of_a_whole_clip():
    _, tensors = encoder()
    bare = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    more = {
        "text_model.embeddings.position_ids": np.arange(77)[None],
        "embeddings.position_ids": np.zeros((1, 77), np.float32),
        "vision_model.embeddings.class_embedding": np.zeros(3, np.float32),
        "visual_projection.weight": np.zeros((3, 3), np.float32),
        "logit_scale": np.float32(2.6),
    }
    plain = TextConfig.from_dict({**CONFIG.to_dict(), "architectures": ["CLIPModel"], "model_type": "clip"})
    assert not plain.projection
    for found in (tensors, bare, {**tensors, **more}, {**bare, **more}):
        model = assemble(plain, found)  # the file shows that there is a projection
        assert model.config == CONFIG and model.config.class_name == "CLIPTextModelWithProjection"
        back = file_tensors(model.module)
        assert set(back) == set(tensors)
        for name, value in back.items():
            np.testing.assert_array_equal(value, tensors[name])
    del bare["text_projection.weight"]
    assert assemble(plain, bare).config.class_name == "CLIPTextModel"
    with pytest.raises(ValueError, match=r"1 parameter with no weights: text_projection\.weight"):
        assemble(CONFIG, bare)


def test_one_row_reads_both_classes():
    family = family_of(CONFIG)
    assert [row for row in FAMILIES if "CLIPTextModelWithProjection" in row.class_names] == [family]
    assert {"CLIPTextModel", "CLIPModel"} < set(family.class_names)
    plain = TextConfig(**SIZE)
    assert (family.class_of(CONFIG), family.class_of(plain)) == ("CLIPTextModelWithProjection", "CLIPTextModel")
    assert names.current("text_projection.weight") == "text_projection.weight"


def test_configs_as_they_are_published():
    whole = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 6,
        "text_config_dict": {"num_hidden_layers": 2},
        "text_config": {**SIZE, "num_hidden_layers": 1, "projection_dim": 512, "model_type": "clip_text_model",
                        "eos_token_id": None, "torch_dtype": None, "num_beams": 1},
        "vision_config": {"hidden_size": 1024},
    }  # fmt: skip
    assert TextConfig.from_dict(whole) == TextConfig(**SIZE, projection_dim=6)
    odd = {**SIZE, "layer_norm_eps": None, "pad_token_id": None, "hidden_act": None, "torch_dtype": "float16"}
    assert TextConfig.from_dict(odd) == TextConfig(**SIZE, pad_token_id=None)
    assert TextConfig.from_dict({**SIZE, "architectures": None}) == TextConfig(**SIZE)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "must hold a JSON object, got a list"),
        ({"model_type": "t5"}, "is for 't5'; cmjax reads 'clip_text_model'"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_attention_heads": 7}, "must be a multiple of num_attention_heads = 7"),
        ({"projection_dim": 0}, "projection_dim must be a positive integer, got 0"),
        (
            {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": None},
            "projection_dim must be a positive integer where there is a projection",
        ),
    ],
)
def test_other_configs_are_refused(content, says):
    with pytest.raises(ValueError, match=says):
        TextConfig.from_dict(content)
