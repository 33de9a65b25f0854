"""CLIP's text encoders against transformers: the same weights give the same numbers, and files load there."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from parity.networks import close, shaken

from cmjax.io.assembly import assemble
from cmjax.io.configs import write_json
from cmjax.io.safetensors_files import read_safetensors, write_safetensors
from cmjax.io.weights import file_tensors
from cmjax.models.clip import TextConfig, TextEncoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = np.array(
    [
        [48, 5, 7, 49, 49, 49, 49],
        [48, 3, 3, 20, 11, 47, 49],
        [48, 49, 0, 0, 0, 0, 0],  # filled with "!"
        [48, 9, 49, 30, 49, 2, 0],  # what ends a text, in the middle of one
    ]
)
SIZE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 9,
}
SIZES = {
    "two layers": {},
    "five layers": {"num_hidden_layers": 5, "hidden_size": 32, "intermediate_size": 37, "projection_dim": 20},
    "one head": {"num_attention_heads": 1, "layer_norm_eps": 1e-3, "max_position_embeddings": 7, "projection_dim": 1},
}
CONFIGS = [
    {**SIZE, **SIZES[size], "hidden_act": act, "eos_token_id": eos, "projection": projection}
    for size, act, eos, projection in itertools.product(SIZES, ("quick_gelu", "gelu"), (2, 49), (False, True))
]


def reference(said):
    """A network of transformers with noise on every weight, biases and norms included."""
    options = {key: value for key, value in said.items() if key != "projection"}
    kind = transformers.CLIPTextModelWithProjection if said["projection"] else transformers.CLIPTextModel
    return shaken(kind(transformers.CLIPTextConfig(**options)), 0)


def ours(theirs):
    config = TextConfig.from_dict({**theirs.config.to_dict(), "architectures": [type(theirs).__name__]})
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    return assemble(config, state)


def encode(model, tokens=TOKENS):
    return jax.jit(lambda model, tokens: model.module(tokens))(model, tokens)


def same_as(out, theirs, projection):
    expected = theirs(torch.from_numpy(TOKENS), output_hidden_states=True)
    close(out.last, expected.last_hidden_state)
    for a, b in zip(out.hidden, expected.hidden_states, strict=True):
        close(a, b)
    if projection:
        close(out.projected, expected.text_embeds)
    else:
        close(out.pooled, expected.pooler_output)
        assert out.projected is None


@pytest.mark.parametrize("said", CONFIGS, ids=lambda said: "-".join(map(str, list(said.values())[4:])))
def test_every_output(said):
    theirs = reference(said)
    model = ours(theirs)
    assert model.config.projection == said["projection"]
    same_as(encode(model), theirs, said["projection"])


@pytest.mark.parametrize("projection", [False, True])
def test_transformers_loads_what_is_written(tmp_path, projection):
    said = {**SIZE, "hidden_act": "gelu", "eos_token_id": 49, "projection": projection}
    theirs = reference(said)
    model = ours(theirs)
    tensors = file_tensors(model.module)
    assert all(name.startswith("text_") for name in tensors)
    write_safetensors(tensors, tmp_path / "model.safetensors")
    write_json(model.config.to_dict(), tmp_path / "config.json")
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = again.eval()
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], value)
    same_as(encode(model), again, projection)
    theirs.save_pretrained(tmp_path / "theirs")
    back = assemble(model.config, read_safetensors(tmp_path / "theirs" / "model.safetensors"))
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_text_encoder_of_a_whole_clip():
    torch.manual_seed(0)
    pictures = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.CLIPConfig(
        text_config={**SIZE, "eos_token_id": 49, "projection_dim": 12},
        vision_config={**pictures, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    theirs = transformers.CLIPModel(config).eval()
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    model = assemble(TextConfig.from_dict({**config.to_dict(), "architectures": ["CLIPModel"]}), state)
    out = encode(model)
    expected = theirs.get_text_features(input_ids=torch.from_numpy(TOKENS))
    close(out.projected, getattr(expected, "pooler_output", expected))


def test_the_context_of_a_clip_skip():
    theirs = reference({**SIZE, "num_hidden_layers": 3, "eos_token_id": 2, "projection": True})
    model = ours(theirs)
    states = theirs(torch.from_numpy(TOKENS), output_hidden_states=True).hidden_states
    out = encode(model)
    for skip in range(3):
        module = model.module
        close(module.context(out, skip), theirs.text_model.final_layer_norm(states[-(skip + 1)]))
        close(module.context(out, skip + 1, normed=False), states[-(skip + 2)])


def test_the_names_recorded_of_published_encoders():
    from golden.record_clip_names import FILE, tables, written

    assert FILE.read_text() == written(tables())


def test_configs_come_back_from_transformers():
    for projection in (False, True):
        config = TextConfig(**SIZE, projection=projection, eos_token_id=49)
        theirs = transformers.CLIPTextConfig.from_dict(config.to_dict())
        assert TextConfig.from_dict(theirs.to_dict()) == config
    assert TextEncoder(config, rngs=nnx.Rngs(0)).config.class_name == "CLIPTextModelWithProjection"
