"""CLIP's encoder of pictures, and what comes before it: the formula, published files, resizing as Pillow does it."""

import math
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cmjax.io.assembly import assemble
from cmjax.io.weights import file_tensors, load_weights
from cmjax.models.clip import Preprocessing, TextConfig, VisionConfig, VisionEncoder, names
from cmjax.models.families import family_of

CONFIG = VisionConfig(
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=11,
    patch_size=4,
    projection_dim=6,
    projection=True,
)
PICTURES = np.random.default_rng(1).normal(size=(3, 11, 11, 3)).astype(np.float32)


@cache
def encoder():
    """An encoder whose every weight is drawn, norms and biases too."""
    module = nnx.eval_shape(lambda: VisionEncoder(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    shapes = file_tensors(jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), module))
    tensors = {name: rng.normal(size=value.shape).astype(np.float32) / 2 for name, value in shapes.items()}
    return load_weights(module, tensors), tensors


def by_hand(tensors, pictures):
    """The formula in float64: the last state, and the projection."""
    w = {name.removeprefix("vision_model."): value.astype(np.float64) for name, value in tensors.items()}

    def norm(x, name):
        d = x - x.mean(-1, keepdims=True)
        d = d / np.sqrt((d**2).mean(-1, keepdims=True) + CONFIG.layer_norm_eps)
        return d * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    kernel, tokens = w["embeddings.patch_embedding.weight"], []
    for row in range(2):
        for column in range(2):
            patch = pictures[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            tokens.append(np.einsum("bhwc,dchw->bd", patch, kernel))
    first = np.broadcast_to(w["embeddings.class_embedding"], (len(pictures), 8))
    x = norm(np.stack([first, *tokens], 1) + w["embeddings.position_embedding.weight"], "pre_layrnorm")
    for i in range(CONFIG.num_hidden_layers):
        at = f"encoder.layers.{i}"
        y = norm(x, f"{at}.layer_norm1")
        q, k, v = (linear(y, f"{at}.self_attn.{c}_proj").reshape(3, 5, 2, 4).swapaxes(1, 2) for c in "qkv")
        weights = np.exp(q @ k.swapaxes(-1, -2) / 2)
        y = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + linear(y.swapaxes(1, 2).reshape(x.shape), f"{at}.self_attn.out_proj")
        y = linear(norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1")
        x = x + linear(y / (1 + np.exp(-1.702 * y)), f"{at}.mlp.fc2")
    return x, norm(x[:, 0], "post_layernorm") @ w["visual_projection.weight"].T


def test_it_computes_the_formula():
    module, tensors = encoder()
    out = jax.jit(lambda module, pictures: module(pictures))(module, PICTURES)
    last, projected = by_hand(tensors, PICTURES)
    np.testing.assert_allclose(out.last, last, atol=2e-5 * np.abs(last).max())
    np.testing.assert_allclose(out.projected, projected, atol=2e-5 * np.abs(projected).max())
    assert len(out.hidden) == 3 and out.projected.dtype == np.float32
    with pytest.raises(ValueError, match=r"images must be f\[B, 11, 11, 3\], got \[1, 8, 8, 3\]: give them that size"):
        module(np.zeros((1, 8, 8, 3)))


# ---- files -----------------------------------------------------------------------------------------------------------

HUGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}


@pytest.mark.parametrize(
    ("said", "count", "parameters"),
    [
        ({"patch_size": 32}, 200, 87_849_216),
        ({**HUGE, "patch_size": 14, "hidden_act": "gelu", "projection_dim": 1024}, 520, 632_076_800),
    ],
    ids=["CLIP-B/32", "OpenCLIP-H/14"],
)
def test_published_encoders_have_the_tensors_of_their_files(said, count, parameters):
    config = VisionConfig.from_dict({**said, "architectures": ["CLIPVisionModelWithProjection"]})
    module = nnx.eval_shape(lambda: VisionEncoder(config, rngs=_NoKeys()))
    empty = file_tensors(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), module))
    assert (len(empty), sum(math.prod(value.shape) for value in empty.values())) == (count, parameters)
    assert empty["vision_model.embeddings.patch_embedding.weight"].shape[1:] == (3, *[config.patch_size] * 2)
    assert VisionConfig.from_dict(config.to_dict()) == config


class _NoKeys:
    def params(self):
        return jax.random.key(0)


def test_files_with_and_without_the_prefix_and_of_a_whole_clip():
    _, tensors = encoder()
    bare = {name.removeprefix("vision_model."): value for name, value in tensors.items()}
    more = {
        "vision_model.embeddings.position_ids": np.arange(5)[None],
        "text_model.final_layer_norm.weight": np.zeros(3, np.float32),
        "text_projection.weight": np.zeros((3, 3), np.float32),
        "logit_scale": np.float32(2.6),
    }
    whole = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 6, "text_config": {}}
    whole["vision_config"] = {**CONFIG.to_dict(), "image_size": [11, 11], "projection_dim": 512}
    plain = VisionConfig.from_dict(whole)
    assert not plain.projection
    for found in (tensors, bare, {**tensors, **more}):
        model = assemble(plain, found)  # the file shows that there is a projection
        assert model.config == CONFIG and family_of(CONFIG).class_of(model.config) == "CLIPVisionModelWithProjection"
        for name, value in file_tensors(model.module).items():
            np.testing.assert_array_equal(value, tensors[name])
    del bare["visual_projection.weight"]
    assert assemble(plain, bare).config.class_name == "CLIPVisionModel"
    with pytest.raises(ValueError, match=r"1 parameter with no weights: visual_projection\.weight"):
        assemble(CONFIG, bare)
    assert names.current("visual_projection.weight") is None and family_of(TextConfig()) is not family_of(CONFIG)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "the picture encoder's config.json must hold a JSON object, got a list"),
        ({"model_type": "clip_text_model"}, "is for 'clip_text_model'; cmjax reads 'clip_vision_model'"),
        ({"num_attention_heads": 7}, "must be a multiple of num_attention_heads = 7"),
        ({"patch_size": 300}, "patch_size = 300 must be at most image_size = 224"),
        ({"image_size": [224, 112]}, "image_size"),
        ({"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_other_configs_are_refused(content, says):
    with pytest.raises(ValueError, match=says):
        VisionConfig.from_dict(content)


# ---- preprocessing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50, 37), (9, 24), (24, 24), (20, 20)])
def test_pictures_are_resized_as_pillow_does(shape):
    levels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    prepare = Preprocessing(size=24, crop=20)
    out = np.asarray(prepare(levels[None] / np.float32(127.5) - 1))[0]
    height, width = (24 if side == min(shape) else int(24 * side / min(shape)) for side in shape)
    theirs = np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 20) // 2, (width - 20) // 2
    theirs = (theirs[top : top + 20, left : left + 20] / 255 - prepare.mean) / prepare.std
    off = np.abs(out - theirs) > 1e-5
    assert out.shape == (20, 20, 3) and off.mean() <= 0.002  # where a sum lies halfway between two levels
    assert np.abs(out - theirs).max() < 0.016


def test_its_file_comes_back_and_another_one_is_refused():
    prepare = Preprocessing(size=30, crop=28, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert Preprocessing.from_dict(prepare.to_dict()) == prepare
    assert Preprocessing.from_dict({"size": 224, "crop_size": 224, "feature_extractor_type": "X"}) == Preprocessing()
    assert Preprocessing(size=4, crop=4)(np.zeros((1, 4, 4, 1))).shape == (1, 4, 4, 3)
    for content, says in (
        ([], "must hold a JSON object"),
        ({"do_center_crop": False}, "says do_center_crop = false; cmjax reads CLIP's, with all steps"),
        ({"resample": 2}, r"must say resample = 3 \(bicubic\), got 2"),
        ({"size": 100}, "crop = 224 must be at most size = 100"),
        ({"image_std": [0.5, 0.0, 0.5]}, "std must be positive, one for each of the 3 channels"),
        ({"size": {"shortest_edge": "a"}}, "size"),
    ):
        with pytest.raises(ValueError, match=says):
            Preprocessing.from_dict(content)
    with pytest.raises(ValueError, match=r"images must be f\[B, H, W, 1 or 3\]"):
        prepare(np.zeros((1, 4, 4, 2)))
