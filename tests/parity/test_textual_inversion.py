"""Textual inversion against diffusers' `load_textual_inversion`: the same tokens, tables and encoded prompts.

Where the reference departs from what it says (words of several vectors with capital letters, files that hold
`emb_params`), the test says so and holds the formula.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cmjax import text_to_image
from cmjax.io import read_embedding
from cmjax.text_to_image import add_embedding

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
tiny = pytest.importorskip("torch_texts")
safetensors_torch = pytest.importorskip("safetensors.torch")

encode = jax.jit(lambda network, tokens: network.module(tokens))
WIDTH = tiny.WIDTH
PROMPTS = ["red <cat> fox", "<ONE>", "<one><cat> <cat> a", "fo<one>x <cat> red", "", "red fox", "<cat>_1 <ca"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    root = tmp_path_factory.mktemp("inversion")
    return {xl: tiny.save(root / f"plain{xl}", xl=xl) for xl in (False, True)}


def theirs_of(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)


def vectors(seed: int, *shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parts(theirs: Any) -> list[tuple[Any, Any]]:
    """Tokenizers and text encoders."""
    found = [(getattr(theirs, f"tokenizer{i}", None), getattr(theirs, f"text_encoder{i}", None)) for i in ("", "_2")]
    return [(tokenizer, encoder) for tokenizer, encoder in found if encoder is not None]


def same(ours: Any, theirs: Any, prompts: list[str] = PROMPTS) -> None:
    """Hold tokens, tables, and what encoders make of prompts, to the reference's."""
    assert len(parts(theirs)) == len(ours.text_encoders)
    for (tokenizer, encoder), tokens, network in zip(
        parts(theirs), ours.tokenize(prompts), ours.text_encoders, strict=True
    ):
        converted = theirs.maybe_convert_prompt(prompts, tokenizer)
        length = tokenizer.model_max_length
        said = tokenizer(converted, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        np.testing.assert_array_equal(tokens, said.input_ids.numpy())
        table = encoder.get_input_embeddings().weight.detach().numpy()
        np.testing.assert_array_equal(network.leaves()["text_model.embeddings.token_embedding.embedding"], table)
        assert network.config.vocab_size == len(table)
        with torch.no_grad():
            out = encoder(said.input_ids, output_hidden_states=True)
        made = encode(network, tokens)
        for one, other in ((made.last, out.last_hidden_state), *zip(made.hidden, out.hidden_states, strict=True)):
            np.testing.assert_allclose(one, other.numpy(), atol=2e-5 * float(other.abs().max()))


def files(folder: Path) -> dict[str, Path]:
    """A word of three vectors, as files of each kind have it that both read."""
    three = vectors(0, 3, WIDTH)
    a1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": three}, "name": "<cat>", "step": 3}
    found = {name: folder / name for name in ("learned.bin", "a1111.pt", "one.safetensors", "old.bin", "half.bin")}
    torch.save({"<cat>": three}, found["learned.bin"])
    torch.save(a1111, found["a1111.pt"])
    torch.save({"<cat>": three}, found["old.bin"], _use_new_zipfile_serialization=False)
    torch.save({"<cat>": torch.nn.Parameter(three.half())}, found["half.bin"])
    safetensors_torch.save_file({"<cat>": three}, found["one.safetensors"])
    return found


@pytest.mark.parametrize("kind", ["learned.bin", "a1111.pt", "one.safetensors", "old.bin", "half.bin"])
def test_words_of_one_and_of_several_vectors(kind, folders, tmp_path):
    path, theirs = files(tmp_path)[kind], theirs_of(folders[False])
    theirs.load_textual_inversion(path.parent, weight_name=path.name)
    theirs.load_textual_inversion(vectors(1, WIDTH), token="<one>")
    ours = add_embedding(text_to_image.load(folders[False]), path)
    same(add_embedding(ours, vectors(1, WIDTH).numpy(), "<one>"), theirs)


@pytest.mark.parametrize("xl", [False, True])
def test_folders_of_both_hold_the_words(xl, folders, tmp_path):
    """Ours read by the reference, and the reference's by us; and the reference can remove the words again."""
    theirs, ours = theirs_of(folders[xl]), text_to_image.load(folders[xl])
    for i, (tokenizer, encoder) in enumerate(parts(theirs)):
        for word, seed in (("<cat>", 10), ("<one>", 20)):
            value = vectors(seed + i, 3, WIDTH) if word == "<cat>" else vectors(seed + i, WIDTH)
            theirs.load_textual_inversion(value, token=word, tokenizer=tokenizer, text_encoder=encoder)
    if xl:
        for name, shape, seed in (("<cat>", (3, WIDTH), 10), ("<one>", (WIDTH,), 20)):
            pair = {"clip_l": vectors(seed, *shape), "clip_g": vectors(seed + 1, *shape)}
            safetensors_torch.save_file(pair, tmp_path / f"{name}.safetensors")
            ours = add_embedding(ours, tmp_path / f"{name}.safetensors")
    else:
        ours = add_embedding(add_embedding(ours, {"<cat>": vectors(10, 3, WIDTH)}), {"<one>": vectors(20, WIDTH)})
    same(ours, theirs)
    text_to_image.save(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = theirs_of(tmp_path / "ours")
    same(ours, again)
    same(text_to_image.load(tmp_path / "theirs"), theirs)
    assert text_to_image.load(tmp_path / "ours").tokenizers == ours.tokenizers
    for tokenizer, encoder in parts(again):
        again.unload_textual_inversion(tokenizer=tokenizer, text_encoder=encoder)
        assert len(tokenizer) == len(ours.tokenizers[0]) - 4


def test_capital_letters(folders):
    """No parity: the reference finds a word of several vectors by its lower-cased text, and gives the first alone."""
    theirs = theirs_of(folders[False])
    theirs.load_textual_inversion(vectors(0, 2, WIDTH), token="<Cat>")
    ours = add_embedding(text_to_image.load(folders[False]), vectors(0, 2, WIDTH).numpy(), "<Cat>")
    words = len(theirs.tokenizer) - 2
    said = theirs.tokenizer(theirs.maybe_convert_prompt("<Cat>", theirs.tokenizer)).input_ids
    assert said[1:-1] in ([words], [words, words + 1])
    assert ours.tokenize(["a <cat>"])[0][0, 2:4].tolist() == [words, words + 1]


@pytest.mark.parametrize("new", [True, False])
def test_torchs_own_module_of_parameters(new, tmp_path):
    """The reference refuses these; files of the first programs, of 2022, hold a `ParameterDict`."""
    held = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors(0, 2, WIDTH))})
    whole = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": held, "name": "cat"}
    torch.save(whole, tmp_path / "cat.pt", _use_new_zipfile_serialization=new)
    found = read_embedding(tmp_path / "cat.pt")
    assert found.token == "cat"
    np.testing.assert_array_equal(found.vectors[0], vectors(0, 2, WIDTH).numpy())
