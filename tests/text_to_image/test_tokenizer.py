"""The tokenizer: files of every age, texts of every kind, and what a static part of a pytree must be."""

import copy
import json
import pickle
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.text_to_image.tokenizer import AddedToken, Tokenizer

EMOJI = Path(__file__).parents[2] / "benchmarks/emoji/pipeline/tokenizer"
LETTERS = [*"!abcdefghijklmnopqrstuvwxyz,", *(f"{c}</w>" for c in "!abcdefghijklmnopqrstuvwxyz,")]
MERGES = [("f", "o"), ("fo", "x</w>"), ("r", "e"), ("re", "d</w>")]
VOCAB = [*LETTERS, *("".join(pair) for pair in MERGES), "<|startoftext|>", "<|endoftext|>"]
BOS, EOS = len(VOCAB) - 2, len(VOCAB) - 1
RED, FOX, A = (VOCAB.index(token) for token in ("red</w>", "fox</w>", "a</w>"))


def small(**changes):
    return Tokenizer(**{"vocab": VOCAB, "merges": MERGES, "max_length": 8, **changes})


def put(folder, **files):
    """Write a folder of JSON files, `vocab=` to vocab.json; texts as they are."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        name = {"merges": "merges.txt"}.get(name, f"{name}.json")
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def old(folder, **files):
    """Write a folder as transformers wrote it in 2022."""
    merges = "#version: 0.2\n" + "\n".join(map(" ".join, MERGES)) + "\n"
    said = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 8, "unk_token": "<|endoftext|>", **said}
    usual = {"vocab": {token: i for i, token in enumerate(VOCAB)}, "merges": merges, "tokenizer_config": config}
    return put(folder, **{**usual, "special_tokens_map": said, **files})


def new(folder, **changes):
    """Write a folder that has tokenizer.json alone."""
    model = {
        "type": "BPE",
        "end_of_word_suffix": "</w>",
        "vocab": {token: i for i, token in enumerate(VOCAB)},
        "merges": MERGES,
    }
    return put(folder, tokenizer={"model": model | changes, "added_tokens": []})


def test_texts_become_tokens_of_one_length():
    tokens = small()(["Red  FOX", "", "a red red fox"])
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(
        tokens,
        [
            [BOS, RED, FOX, EOS, EOS, EOS, EOS, EOS],
            [BOS, EOS, EOS, EOS, EOS, EOS, EOS, EOS],
            [BOS, A, RED, RED, FOX, EOS, EOS, EOS],
        ],
    )
    assert small()(("fox",), max_length=4).tolist() == [[BOS, FOX, EOS, EOS]]
    assert small().decode(tokens[2]) == "a red red fox"
    assert len(small()) == len(VOCAB)


def test_a_long_text_is_cut_with_a_warning_that_says_what_fell_off():
    with pytest.warns(
        UserWarning, match="prompts must fit 6 tokens each, and 'a red fox a red fox a red' has 8"
    ) as seen:
        tokens = small()(["fox", "a red fox a red fox a red"])
    assert "'a red'" in str(seen[0].message) and Path(seen[0].filename).name == "test_tokenizer.py"
    assert tokens[1].tolist() == [BOS, A, RED, FOX, A, RED, FOX, EOS]
    with pytest.warns(UserWarning, match="has 10000: its end is cut"):
        assert small()([" ".join(["fox"] * 10_000)]).shape == (1, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small()(["a red fox a red fox"])  # fits exactly


@pytest.mark.parametrize(
    ("prompts", "error", "says"),
    [
        ("a fox", TypeError, r"prompts must be a list of texts, got one text; write \['a fox'\]"),
        ([], ValueError, "prompts must be at least one text, got an empty list"),
        (["a", 3], TypeError, r"prompts\[1\] is int: 3"),
        ([None], TypeError, r"prompts\[0\] is NoneType"),
        ([["a"]], TypeError, r"prompts\[0\] is list"),
        (iter(["a"]), TypeError, "got list_iterator"),
        (["a\ud800"], ValueError, r"prompts\[0\] is no valid text: surrogates not allowed at 1"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(prompts, error, says):
    with pytest.raises(error, match=says):
        small()(prompts)


def test_lengths_and_ids_out_of_range_are_refused():
    with pytest.raises(ValueError, match="max_length must be a whole number of at least 3"):
        small()(["a"], max_length=2)
    with pytest.raises(ValueError, match="max_length must"):
        small(max_length=True)
    with pytest.raises(ValueError, match=f"ids must be from 0 to {EOS}, got {EOS + 1}"):
        small().decode([0, EOS + 1])
    with pytest.raises(ValueError, match="1 of its tokens repeat others"):
        small(vocab=["a", *VOCAB])


def test_folders_of_every_age_give_one_tokenizer(tmp_path):
    assert Tokenizer.read(old(tmp_path / "old")) == small()
    assert Tokenizer.read(str(new(tmp_path / "new"))) == small(max_length=77)
    as_text = new(tmp_path / "text", merges=[" ".join(pair) for pair in MERGES])
    assert Tokenizer.read(as_text) == small(max_length=77)
    bare = old(tmp_path / "bare", tokenizer_config={"model_max_length": int(1e30)}, special_tokens_map={})
    assert Tokenizer.read(bare) == small(max_length=77)


def test_each_tokenizer_has_its_own_pad_token(tmp_path):
    """The older file says "!" and the newer one does not, as in Stable Diffusion 2."""
    end = {"content": "<|endoftext|>", "normalized": True}
    said = {"pad_token": "!", "eos_token": end, "unk_token": end}
    tokenizer = Tokenizer.read(old(tmp_path / "folder", special_tokens_map=said))
    assert (tokenizer.pad_token, tokenizer.pad_id) == ("!", 0)
    assert tokenizer(["fox!!"]).tolist() == [[BOS, FOX, 0, 0, EOS, 0, 0, 0]]
    assert small()(["fox!!"], 6).tolist() == [[BOS, FOX, 0, LETTERS.index("!</w>"), EOS, EOS]]
    assert tokenizer(["a <|ENDOFTEXT|>"], 5).tolist() == [[BOS, A, EOS, EOS, 0]]


def test_tokens_behind_the_vocabulary(tmp_path):
    config = {"model_max_length": 8, "pad_token": "<|endoftext|>"}
    for name, files in {
        "old": {"added_tokens": {"<cat>": EOS + 1, "<dog>": EOS + 2}, "tokenizer_config": config},
        "new": {
            "tokenizer_config": {
                **config,
                "added_tokens_decoder": {
                    str(EOS + 2): {"content": "<dog>", "normalized": True},
                    str(EOS + 1): {"content": "<cat>", "normalized": True},
                },
            }
        },
    }.items():
        tokenizer = Tokenizer.read(old(tmp_path / name, **files))
        assert tokenizer(["a <CAT><dog>"], 6).tolist() == [[BOS, A, EOS + 1, EOS + 2, EOS, EOS]]
        assert len(tokenizer) == len(VOCAB) + 2
        tokenizer.write(tmp_path / f"{name} again")
        assert Tokenizer.read(tmp_path / f"{name} again") == tokenizer
    with pytest.raises(ValueError, match=f"'<cat>' the id {EOS + 2}, which is not the next free one, {EOS + 1}"):
        Tokenizer.read(old(tmp_path / "gap", added_tokens={"<cat>": EOS + 2}))
    with pytest.raises(ValueError, match="'<cat>' the id 1, which is that of 'a'"):
        Tokenizer.read(old(tmp_path / "taken", added_tokens={"<cat>": 1}))


def test_writing_and_reading_is_the_identity(tmp_path):
    for tokenizer in (small(), small(pad_token="!", added=[AddedToken("<|endoftext|>", normalized=True)])):
        tokenizer.write(tmp_path / tokenizer.pad_token[:1])
        again = Tokenizer.read(tmp_path / tokenizer.pad_token[:1])
        assert again == tokenizer and hash(again) == hash(tokenizer)
    other = small(vocab=[*VOCAB, "z2"], pad_token="!")
    for folder in (new(tmp_path / "new"), old(tmp_path / "old", added_tokens={"<cat>": EOS + 1})):
        other.write(folder)  # over another's
        assert Tokenizer.read(folder) == other
        (folder / "tokenizer.json").unlink()
        assert Tokenizer.read(folder) == other


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"vocab": "{"}, "vocab.json is not valid JSON"),
        ({"vocab": []}, "vocab.json must hold an object of tokens and their ids"),
        ({"vocab": {"a": 0, "b": 2}}, "must number its 2 tokens from 0 to 1, each once, but none is 1"),
        ({"vocab": {"a": 0, "b": 0}}, "each once, but none is 1"),
        ({"vocab": {"a": 0, "b": True}}, "each once, but none is 1"),
        ({"merges": "a b c\n"}, "merges.txt must hold pairs of tokens, but its merge 0 is"),
        ({"merges": "a q\n"}, "merges must be pairs of tokens of vocab"),
        ({"tokenizer_config": {"tokenizer_class": "T5Tokenizer"}}, "is for 'T5Tokenizer'; cmjax reads CLIPTokenizer"),
        ({"tokenizer_config": []}, "tokenizer_config.json must be a JSON object"),
        ({"special_tokens_map": {"pad_token": 3}}, "a token must be a text or an object with its content, got 3"),
        ({"special_tokens_map": {"pad_token": "<pad>"}}, "pad_token must be a token of vocab, but that has no '<pad>'"),
        ({"special_tokens_map": {"unk_token": "<unk>"}}, "unk_token must be a token of vocab, but that has no '<unk>'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": "a"}}}, "list added tokens by their ids"),
        ({"tokenizer_config": {"model_max_length": 1}}, "max_length must be a whole number of at least 3"),
        ({"tokenizer": {"model": {"type": "Unigram"}}}, r"of another kind \(Unigram\); cmjax reads CLIPTokenizer"),
        ({"tokenizer": {"model": 3}}, "of another kind"),
    ],
)
def test_damaged_files_are_named(tmp_path, files, says):
    with pytest.raises(ValueError, match=says):
        Tokenizer.read(old(tmp_path / "folder", **files))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Tokenizer.read(tmp_path / "nowhere")
    for name in ("vocab.json", "merges.txt"):
        folder = old(tmp_path / name)
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"has no {name}: a tokenizer's folder holds"):
            Tokenizer.read(folder)


def test_it_is_a_static_part_of_a_pytree():
    one, other = small(), pickle.loads(pickle.dumps(copy.deepcopy(small())))
    assert one == other and hash(one) == hash(other) and {one: 1}[other] == 1
    assert one != small(pad_token="!") and one != small(max_length=9) and one != "a tokenizer"
    traces = []

    class Pipe(cmjax._struct.Struct):
        weights: jax.Array
        tokenizer: Tokenizer = cmjax._struct.static()

    @jax.jit
    def double(pipe):
        traces.append(pipe.tokenizer.eos_id)
        return pipe.replace(weights=2 * pipe.weights)

    assert double(Pipe(jnp.ones(2), one)).tokenizer is one
    double(Pipe(jnp.ones(2), other))
    assert traces == [EOS]
    with pytest.raises(AttributeError):
        one.max_length = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_the_tokenizer_of_the_pictograms(tmp_path):
    tokenizer = Tokenizer.read(EMOJI)
    assert tokenizer.max_length == 24 and len(tokenizer) == 1105
    tokens = tokenizer(["a red apple on a blue background"])
    assert tokenizer.decode(tokens[0]) == "a red apple on a blue background"
    assert (tokens[0, 0], tokens[0, 8], tokens[0, -1]) == (1103, 1104, 1104)
    tokenizer.write(tmp_path / "again")
    for name in ("vocab.json", "merges.txt"):
        read = json.loads if name.endswith("json") else str
        assert read((tmp_path / "again" / name).read_text()) == read((EMOJI / name).read_text())
