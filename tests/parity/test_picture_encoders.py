"""CLIP's encoders of pictures against transformers: the same weights give the same numbers, and files load there."""

import itertools

import jax
import numpy as np
import pytest
from parity.networks import close, nchw, shaken
from PIL import Image
from texts import tokenizer

from cmjax.io.assembly import assemble
from cmjax.io.configs import write_json
from cmjax.io.safetensors_files import read_safetensors, write_safetensors
from cmjax.io.weights import file_tensors
from cmjax.models.clip import Preprocessing, VisionConfig
from cmjax.text_to_image import load_clip

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"image_size": 16, "patch_size": 4, "projection_dim": 12}
SIZES = {
    "two layers": {},
    "uneven": {"image_size": 30, "patch_size": 7, "num_hidden_layers": 3, "hidden_size": 24},
    "one head": {"num_attention_heads": 1, "layer_norm_eps": 1e-3, "projection_dim": 1, "patch_size": 16},
}
CONFIGS = [
    {**SIZE, **SIZES[size], "hidden_act": act, "projection": projection}
    for size, act, projection in itertools.product(SIZES, ("quick_gelu", "gelu"), (False, True))
]


def reference(said):
    options = {key: value for key, value in said.items() if key != "projection"}
    kind = transformers.CLIPVisionModelWithProjection if said["projection"] else transformers.CLIPVisionModel
    return shaken(kind(transformers.CLIPVisionConfig(**options)), 0)


def ours(theirs):
    config = VisionConfig.from_dict({**theirs.config.to_dict(), "architectures": [type(theirs).__name__]})
    return assemble(config, {name: value.numpy() for name, value in theirs.state_dict().items()})


def pictures(config):
    return np.random.default_rng(0).normal(size=(3, config.image_size, config.image_size, 3)).astype(np.float32)


def same_as(model, theirs, projection):
    x = pictures(model.config)
    out = jax.jit(lambda model, x: model.module(x))(model, x)
    expected = theirs(nchw(x), output_hidden_states=True)
    close(out.last, expected.last_hidden_state, 1e-5)
    for a, b in zip(out.hidden, expected.hidden_states, strict=True):
        close(a, b, 1e-5)
    if projection:
        close(out.projected, expected.image_embeds, 1e-5)
    else:
        close(out.pooled, expected.pooler_output, 1e-5)
        assert out.projected is None


@pytest.mark.parametrize("said", CONFIGS, ids=lambda said: "-".join(map(str, list(said.values())[4:])))
def test_every_output(said):
    theirs = reference(said)
    model = ours(theirs)
    assert model.config.projection == said["projection"]
    same_as(model, theirs, said["projection"])


@pytest.mark.parametrize("projection", [False, True])
def test_transformers_loads_what_is_written(tmp_path, projection):
    theirs = reference({**SIZE, "hidden_act": "gelu", "projection": projection})
    model = ours(theirs)
    write_safetensors(file_tensors(model.module), tmp_path / "model.safetensors")
    write_json(model.config.to_dict(), tmp_path / "config.json")
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], value)
    same_as(model, again.eval(), projection)
    theirs.save_pretrained(tmp_path / "theirs")
    back = assemble(model.config, read_safetensors(tmp_path / "theirs" / "model.safetensors"))
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (17, 33)])
def test_pictures_are_prepared_as_by_transformers(shape):
    levels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    said = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.CLIPImageProcessorPil if hasattr(transformers, "CLIPImageProcessorPil") else None
    processor = (processor or transformers.CLIPImageProcessor)(**said)
    theirs = processor(images=Image.fromarray(levels), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    prepare = Preprocessing.from_dict(processor.to_dict())
    out = np.asarray(prepare(levels[None] / np.float32(127.5) - 1))[0]
    assert (np.abs(out - theirs) > 1e-5).mean() <= 0.002 and np.abs(out - theirs).max() < 0.016


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_a_whole_clip_scores_as_in_transformers(tmp_path, act):
    ours = tokenizer()
    ours.write(tmp_path)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    texts = {**size, "vocab_size": len(ours), "max_position_embeddings": 10, "hidden_act": act}
    texts |= {"eos_token_id": ours.eos_id, "bos_token_id": ours.bos_id}
    vision = {**size, "image_size": 24, "patch_size": 8, "hidden_act": act}
    config = transformers.CLIPConfig(text_config=texts, vision_config=vision, projection_dim=12)
    theirs = shaken(transformers.CLIPModel(config), 0)
    theirs.save_pretrained(tmp_path)
    prepare = Preprocessing(size=24, crop=24)
    write_json(prepare.to_dict(), tmp_path / "preprocessor_config.json")
    clip, prompts = load_clip(tmp_path), ["red fox", "a b"]
    x = np.random.default_rng(0).uniform(-1, 1, size=(2, 24, 30, 3)).astype(np.float32)
    tokens = clip.tokenize(prompts)
    expected = theirs(input_ids=torch.from_numpy(tokens).long(), pixel_values=nchw(np.asarray(prepare(x))))
    vectors = jax.jit(lambda clip, x, tokens: (clip.embed_images(x), clip.embed_texts(tokens)))(clip, x, tokens)
    for own, name in zip(vectors, ("image_embeds", "text_embeds"), strict=True):
        close(own, getattr(expected, name), 1e-5)
    cosines = expected.logits_per_image.detach().numpy().diagonal() / theirs.logit_scale.exp().item()
    np.testing.assert_allclose(np.asarray(vectors[0] * vectors[1]).sum(1), cosines, atol=1e-5)
