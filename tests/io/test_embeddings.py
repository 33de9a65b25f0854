"""Files of textual inversion: every form is read, and whatever is none is one error, with nothing executed."""

from __future__ import annotations

import os
import random
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from torchfiles import Call, Raw, Tensor, Writer, damaged, write, write_legacy

from cmjax.io import hub, read_embedding, write_safetensors
from cmjax.io.embeddings import as_embedding

TWO = np.arange(16, dtype=np.float32).reshape(2, 8)
PAIR = {"clip_g": np.ones((2, 12), np.float32), "clip_l": TWO}


def a1111(tensor=TWO, **changes):
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": "cat", "step": 9} | changes


def parameters(tensor=TWO):
    """A `ParameterDict`, as Python pickles a module."""
    writer = Writer()
    state = writer.code({"training": True, "_parameters": {"*": tensor}, "_buffers": {}})
    code = b"ctorch.nn.modules.container\nParameterDict\n)\x81" + state + b"b"
    return Raw(code), writer.arrays


FORMS = {
    "token": {"<cat>": TWO},
    "a1111": a1111(),
    "half": a1111(TWO.astype(ml_dtypes.bfloat16)),
    "strided": {"<cat>": Tensor(TWO, (2, 8), (8, 1))},
    "nameless": {"emb_params": TWO},
    "star": {"*": TWO},
    "no name": a1111(name=None),
    "tensor": TWO,
}


@pytest.mark.parametrize("form", [write, write_legacy])
@pytest.mark.parametrize("kind", FORMS)
def test_every_form_of_torchs_files(kind, form, tmp_path):
    found = read_embedding(form(tmp_path / "file name.bin", FORMS[kind]))
    token = {"token": "<cat>", "strided": "<cat>", "a1111": "cat", "half": "cat"}.get(kind, "file name")
    assert found.token == token
    assert len(found.vectors) == 1 and found.vectors[0].dtype == np.float32
    np.testing.assert_array_equal(found.vectors[0], TWO)
    assert read_embedding(tmp_path / "file name.bin", "<dog>").token == "<dog>"


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_two_encoders_in_their_order(names, suffix, tmp_path):
    path = tmp_path / f"cat{suffix}"
    pair = {names[1]: PAIR["clip_g"], names[0]: TWO}
    (write_safetensors(pair, path) if suffix == ".safetensors" else write(path, pair))
    found = read_embedding(path)
    assert found.token == "cat" and [one.shape for one in found.vectors] == [(2, 8), (2, 12)]


def test_one_vector_and_a_module_of_parameters(tmp_path):
    write_safetensors({"<cat>": TWO[0].astype(np.float16)}, tmp_path / "x.safetensors")
    found = read_embedding(tmp_path / "x.safetensors")
    assert found.token == "<cat>" and found.vectors[0].shape == (1, 8)
    module, arrays = parameters()
    top = Writer().pickle({"string_to_param": module, "name": "cat"})
    write(tmp_path / "x.pt", top, extra=[("archive/data/0", arrays["0"].tobytes())])
    np.testing.assert_array_equal(read_embedding(tmp_path / "x.pt").vectors[0], TWO)


def test_folders_and_the_hub(tmp_path, monkeypatch):
    folder, asked = tmp_path / "folder", []
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"but it holds 0: name one, .*folder/FILE\."):
        read_embedding(folder)
    write(folder / "other.pt", {"<dog>": TWO})
    assert read_embedding(folder).token == "<dog>"
    write(folder / "learned_embeds.bin", {"<cat>": TWO})

    def download_file(repo_id, name, *, revision=None):
        asked.append((repo_id, name, revision))
        return folder / name

    monkeypatch.setattr(hub, "list_files", lambda repo_id, *, revision: sorted(os.listdir(folder)))
    monkeypatch.setattr(hub, "download_file", download_file)
    monkeypatch.chdir(tmp_path)
    assert read_embedding(folder).token == read_embedding("owner/name").token == "<cat>"
    assert read_embedding("owner/name/other.pt", revision="v1").token == "<dog>"
    assert asked == [("owner/name", "learned_embeds.bin", None), ("owner/name", "other.pt", "v1")]
    for nowhere in ("nowhere.pt", "folder/nowhere.pt", "~nobody/x.pt"):
        with pytest.raises(FileNotFoundError, match="there is no embedding"):
            read_embedding(nowhere)
    with pytest.raises(TypeError, match="must be a path or a hub id, got a int"):
        read_embedding(3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": TWO, "b": TWO, "c": TWO}, "there are 3: 'a', 'b', 'c'"),
        ({f"lora.{i}": TWO for i in range(9)}, "there are 9: .*, ..."),
        ({}, "there are 0: none"),
        ({"clip_l": TWO, "clip_g": TWO[:1]}, "as many vectors each, got 2 and 1"),
        ({"<cat>": TWO[None]}, r"'<cat>' has shape \(1, 2, 8\)"),
        ({"<cat>": np.float32(1)}, r"has shape \(\)"),
        ({"<cat>": np.zeros((0, 8))}, r"has shape \(0, 8\)"),
        ({"<cat>": np.zeros((1001, 1))}, r"has shape \(1001, 1\)"),
        ({"<cat>": np.zeros((1, 1 << 17), np.float16)}, r"has shape \(1, 131072\)"),
        ({"<cat>": TWO.astype(int)}, "must hold real numbers, but '<cat>' holds int64"),
        ({"<cat>": TWO * 1j}, "holds complex"),
        ({"<cat>": ["a"]}, "holds <U1"),
        ({"<cat>": np.array([np.nan, 1.0])}, "holds NaN or infinity"),
        ({"<cat>": np.array([1e300])}, "holds NaN or infinity"),
        (TWO, "token must be given"),
        ({" cat": TWO}, "without spaces at its ends"),
        ({"c\nat": TWO}, "must be printable"),
        ({"c" * 101: TWO}, "of 100 characters at most"),
    ],
)
def test_arrays_that_are_no_embedding(content, says):
    with pytest.raises(ValueError, match=says):
        as_embedding(content)


def test_files_that_are_no_embedding(tmp_path):
    path = tmp_path / "x.pt"
    for content, says in (
        ({"string_to_param": 3, "name": "x"}, "is no embedding: it must hold a dict"),
        ({"string_to_param": {}, "name": "x"}, "is no embedding: it must hold a dict"),
        ([TWO], "is no embedding: it must hold a dict"),
        ({"<cat>": TWO, "step": 3}, "but 'step' is under"),
        ({3: TWO}, "but 3 is under"),
        ({"state_dict": {"a": TWO}}, "but 'state_dict' is under"),
        ({"<cat>": Tensor(TWO, (900, 65536), (0, 0))}, "more than 16 times the file's size"),
        ({"<cat>": TWO * np.nan}, "x.pt: an embedding must hold finite numbers"),
    ):
        with pytest.raises(ValueError, match=says):
            read_embedding(write(path, content))
    for name in ("x.txt", "x.png", "x"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=r"must be a \.safetensors, \.pt, \.bin, \.pth file"):
            read_embedding(tmp_path / name)


def test_a_pickle_that_holds_itself_or_calls_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = b"X\x0f\0\0\0string_to_param"
    parts = b"ctorch.nn.modules.container\nParameterDict\n"
    state = b"}X\x0b\0\0\0_parametersh\1s"
    for code in (
        b"}q\1" + inner + b"h\1s.",  # a dict that is its own string_to_param
        b"}" + inner + parts + b")\x81q\1" + state + b"bs.",  # a module whose parameters are itself
        b"}" + inner + parts + b")\x81s.",
        b"}" + inner + Writer().code(Call("os.system", ("touch sung",))) + b"s.",
    ):
        with pytest.raises(ValueError, match=r"is no embedding|asks for os\.system"):
            read_embedding(write(tmp_path / "x.pt", code))
    assert os.listdir() == ["x.pt"]


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_give_nothing_but_one_value_error(number, tmp_path, monkeypatch):
    """Of every form, damaged in one to five places: one error that names the file, or an embedding that is one."""
    folder = tmp_path / "where"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_safetensors(PAIR, tmp_path / "pair.safetensors")
    write_safetensors({"emb_params": TWO}, tmp_path / "one.safetensors")
    write(tmp_path / "a1111.pt", a1111())
    write(tmp_path / "token.bin", {"<cat>": TWO})
    write_legacy(tmp_path / "old.pt", a1111())
    module, arrays = parameters()
    top = Writer().pickle({"string_to_param": module, "name": "cat"})
    write(tmp_path / "module.pt", top, extra=[("archive/data/0", arrays["0"].tobytes())])
    paths = sorted(path for path in tmp_path.iterdir() if path.is_file())
    wholes, rng, refused, good = [path.read_bytes() for path in paths], random.Random(number), 0, 0
    assert all(read_embedding(path).vectors for path in paths)
    tracemalloc.start()
    for i in range(number):
        path = paths[i % len(paths)]
        path.write_bytes(damaged(wholes[i % len(paths)], rng))
        try:
            found = read_embedding(path)
        except ValueError as error:
            said = str(error)
            refused += said.startswith(str(path)) and "\n" not in said
        else:
            good += bool(found.token) and all(one.ndim == 2 and np.isfinite(one).all() for one in found.vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused + good == number
    assert 0.3 * number < refused < number
    assert peak < 64 << 20
    assert not os.listdir()
