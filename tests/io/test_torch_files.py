"""The reader of torch's files: right on honest ones, and on all others one ValueError, with nothing executed."""

import collections
import os
import pickle
import random
import re
import struct
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torchfiles
from torchfiles import Call, Raw, Tensor, damaged, write, write_legacy

from cmjax.io import read_pt
from cmjax.io.torch_files.pickles import LONGEST, read_pickle

DTYPES = [*torchfiles.STORAGES]


def array(dtype="float32", shape=(2, 3)):
    values = np.random.default_rng(0).integers(0, 100, shape)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


# ---- honest files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [write, write_legacy])
def test_every_dtype_comes_back_in_both_forms(form, tmp_path):
    tensors = {dtype: array(dtype) for dtype in DTYPES} | {"scalar": array(shape=()), "empty": array(shape=(0, 4))}
    read = read_pt(form(tmp_path / "m.pt", tensors))
    assert list(read) == list(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)
        assert not value.size or not read[name].flags.writeable
        np.testing.assert_array_equal(read[name].astype(np.float64), value.astype(np.float64))  # aligned or not


def test_views_and_shared_storages(tmp_path):
    base = np.arange(24, dtype=np.float32)
    views = {
        "whole": Tensor(base, (4, 6), (6, 1)),
        "transposed": Tensor(base, (6, 4), (1, 6)),
        "columns": Tensor(base, (4, 2), (6, 3), 1),
        "last": Tensor(base, (1,), (1,), 23),
        "repeated": Tensor(base, (3, 2), (0, 1), 4),
        "one row, with the stride of none": Tensor(base, (1, 2), (10**9, 1)),
    }
    read = read_pt(write(tmp_path / "m.pt", views))
    whole = base.reshape(4, 6)
    np.testing.assert_array_equal(read["whole"], whole)
    np.testing.assert_array_equal(read["transposed"], whole.T)
    np.testing.assert_array_equal(read["columns"], whole[:, [1, 4]])
    np.testing.assert_array_equal(read["last"], [23])
    np.testing.assert_array_equal(read["repeated"], [[4, 5]] * 3)
    assert np.shares_memory(read["whole"], read["transposed"])


def test_a_large_file_is_mapped_not_read(tmp_path):
    import tracemalloc

    path = write(tmp_path / "m.pt", {"w": np.zeros(1 << 24, np.float32)})
    tracemalloc.start()
    read = read_pt(path)["w"]
    assert read[12345] == 0
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_parameters_sizes_attributes_and_other_forms(tmp_path):
    parameter = Call("torch._utils._rebuild_parameter", (array(), True, Call("collections.OrderedDict", ())))
    size = Call("torch.Size", ((2, 3),))
    writer = torchfiles.Writer()
    ordered = Raw(
        writer.code(Call("collections.OrderedDict", ()))
        + b"(" + writer.code("p") + writer.code(parameter) + b"u"
        + writer.code({"_metadata": {"": {"version": 1}}, "size": size}) + b"b"
    )  # fmt: skip
    assert read_pickle(writer.pickle(size)).value == (2, 3)
    path = tmp_path / "m.pt"
    write(path, writer.pickle(ordered), extra=[("archive/data/0", array().tobytes())], byteorder=None)
    np.testing.assert_array_equal(read_pt(path)["p"], array())
    np.testing.assert_array_equal(read_pt(write(path, {"w": array()}, prefix="ein Ordner/ä/"))["w"], array())


@pytest.mark.parametrize("key", ["state_dict", "model", "ema"])
def test_a_state_dict_beside_other_things(key, tmp_path):
    path = write(tmp_path / "m.pt", {"epoch": 3, key: {"w": array()}, "optimizer": {"state": {0: array()}}})
    assert list(read_pt(path)) == ["w"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pythons_own_pickles_of_plain_values(protocol):
    value = {"a": [1, -1, 300, 70000, -(2**31), 2**40, 2.5, True, None], "b": ((), (1,), (1, 2), (1, 2, 3), (1,) * 4)}
    value["long"] = ["x" * 300, "ä"] + [str(i) for i in range(300)] * 2
    value["same"] = value["a"]
    data = b"..." + pickle.dumps(value, protocol) + b"more"
    read = read_pickle(data, 3)
    assert read.value == value
    assert read.value["same"] is read.value["a"]
    assert data[read.end :] == b"more"


def test_ordered_dicts_of_every_protocol():
    ordered = collections.OrderedDict(a=1, b="two")
    for protocol in (2, 3, 4, 5):
        assert read_pickle(pickle.dumps(ordered, protocol)).value == {"a": 1, "b": "two"}


def test_what_a_training_run_keeps_beside_its_tensors_is_data_or_a_note():
    # As Lightning writes checkpoints: callbacks under their class, numbers of NumPy among their values.
    key = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    number = pickle.dumps(np.float64(0.25), 2)[2:-1]
    read = read_pickle(
        b"\x80\x02}X\x09\0\0\0callbacks}" + key + b"}X\4\0\0\0best" + number + b"sssX\1\0\0\0eK\1s."
    ).value
    (callbacks,) = read["callbacks"].values()
    assert read["e"] == 1 and list(callbacks) == ["best"] and "0.25" not in repr(callbacks)
    with pytest.raises(ValueError, match=r"the file asks for pytorch_lightning\.Trainer"):
        read_pickle(b"}cpytorch_lightning\nTrainer\n")
    with pytest.raises(ValueError, match="calls what is not a function"):
        read_pickle(key + b")R.")


# ---- hostile pickles -------------------------------------------------------------------------------------------------

CANARY = "canary"
SHELL = b"X" + struct.pack("<L", len(f"touch {CANARY}")) + f"touch {CANARY}".encode()


class Reduced:
    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


class Plain:
    def __init__(self):
        self.x = 1


HOSTILE = {
    "REDUCE of a GLOBAL": (b"cos\nsystem\n" + SHELL + b"\x85R.", "asks for os.system"),
    "REDUCE of a STACK_GLOBAL": (
        b"\x8c\x05posix\x8c\x06system\x93" + SHELL + b"\x85R.",
        "asks for posix.system",
    ),
    "a name that is found in two steps": (b"\x8c\x08builtins\x8c\x0eobject.__new__\x93.", "builtins.object.__new__"),
    "a dotted way out of an allowed module": (
        b"\x8c\x0ctorch._utils\x8c\x09os.system\x93.",
        "asks for torch._utils.os.system",
    ),
    "INST": (b"(" + SHELL + b"ios\nsystem\n.", "opcode INST"),
    "OBJ": (b"(ccollections\nOrderedDict\n" + SHELL + b"o.", "opcode OBJ"),
    "OBJ of os": (b"(cos\nsystem\n" + SHELL + b"o.", "asks for os.system"),
    "NEWOBJ": (b"ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
    "NEWOBJ_EX": (b"ccollections\nOrderedDict\n)}\x92.", "opcode NEWOBJ_EX"),
    "BUILD of a function": (b"ctorch\nSize\n}b.", "sets attributes"),
    "BUILD with what is not a dict": (b"}Nb.", "sets attributes"),
    "NEWOBJ of a ParameterDict of something": (
        b"ctorch.nn.modules.container\nParameterDict\n(Nt\x81.",
        "opcode NEWOBJ",
    ),
    "a call of a ParameterDict": (b"ctorch.nn.modules.container\nParameterDict\n)R.", "calls what is not a function"),
    "a set of something": (b"c__builtin__\nset\n](Ne\x85R.", "makes a set"),
    "a module's source": (b"(X\6\0\0\0modulecos\nsystem\nNNtQ.", "asks for os.system"),
    "another module's source": (b"(X\6\0\0\0modulectorch\nSize\nNNtQ.", "refers to data in a form"),
    "EXT1": (b"\x82\x01.", "opcode EXT1"),
    "EXT4": (b"\x84\x01\0\0\0.", "opcode EXT4"),
    "PERSID": (b"Pstorage\n.", "opcode PERSID"),
    "BYTEARRAY8": (b"\x96" + b"\xff" * 8 + b".", "opcode BYTEARRAY8"),
    "a call of what is not a function": (b"X\x01\0\0\0a)R.", "calls what is not a function"),
    "a call of a storage type": (b"ctorch\nFloatStorage\n)R.", "calls what is not a function"),
    "a call with no tuple": (b"ctorch\nSize\nNR.", "calls what is not a function"),
    "too many arguments": (b"ccollections\nOrderedDict\nN\x85R.", "takes 0 to 0"),
    "too few arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "takes 6 to 7"),
    "odd arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.", "in a form that torch.save does not write"),
    "a parameter of nothing": (b"ctorch._utils\n_rebuild_parameter\n(NNNtR.", "parameter of what is not a tensor"),
    "a size of texts": (b"ctorch\nSize\n(X\x01\0\0\0at\x85R.", "makes a shape of what are not sizes"),
    "persistent id: a text": (b"X\x01\0\0\0aQ.", "refers to data in a form"),
    "persistent id: short": (b"X\x07\0\0\0storage\x85Q.", "refers to data in a form"),
    "persistent id: no type": (b"(X\x07\0\0\0storageNX\x01\0\0\0aNK\1tQ.", "without saying of which type"),
    "persistent id: a function as type": (
        b"(X\x07\0\0\0storagectorch\nSize\nX\x01\0\0\0aNK\1tQ.",
        "without saying of which type",
    ),
    "persistent id: less than nothing": (
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0aNJ\xff\xff\xff\xfftQ.",
        "refers to data in a form",
    ),
    "a key that is a tuple": (b"})K\1s.", "a key of a dict is a tuple"),
    "items of a list": (b"]K\1K\1s.", "sets items of what is not a dict"),
    "half an item": (b"}(K\1u.", "sets items of what is not a dict"),
    "an append to a tuple": (b")K\1a.", "appends to what is not a list"),
    "an empty stack": (b"R.", "takes a value where there is none"),
    "a value taken through a mark": (b"K\1(\x85.", "takes a value where there is none"),
    "no mark": (b"t.", "goes back to a mark where there is none"),
    "an empty memo": (b"h\0.", "recalls value 0"),
    "values left over": (b"NN.", "values left over"),
    "a mark left over": (b"(N.", "values left over"),
    "no end": (b"N", "has no end"),
    "a text longer than the file": (b"X\xff\xff\xff\xffa.", "has no end"),
    "a text of 2^64 bytes": (b"\x8d" + b"\xff" * 8 + b"a.", "has no end"),
    "no UTF-8": (b"\x8c\x01\xff.", "not UTF-8"),
    "a name without end": (b"cos", "has no end"),
    "no opcode": (b"\xff.", "is not an opcode"),
    "deep nesting": (b"(" * 1000 + b".", "nested more than 100 deep"),
    "a long pickle": (b"N0" * LONGEST, "opcode POP"),
    "a very long pickle": (b"X" + struct.pack("<L", LONGEST) + b"x" * LONGEST + b".", "longer than"),
    "control characters in a name": (b"cos\nsy\x1b[31mstem\n.", r"os.sy\x1b[31mstem,"),
    **{
        f"a class with __reduce__, protocol {p}": (pickle.dumps(Reduced(), p), "system, which is not part of a tensor")
        for p in (0, 2, 4, 5)
    },
    "an object": (pickle.dumps(Plain(), 4), "Plain, which is not part of a tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_by_name_and_nothing_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, message = HOSTILE[name]
    for form in (lambda: read_pickle(code), lambda: read_pt(write(tmp_path / "m.pt", code))):
        with pytest.raises(ValueError, match=re.escape(message)):
            form()
    assert os.listdir() == ["m.pt"]


def test_the_canary_sings_where_pickles_are_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE["REDUCE of a GLOBAL"][0])
    assert os.listdir() == [CANARY]


def test_abuse_costs_little():
    start = time.perf_counter()
    # A tuple of a tuple of ... that holds everything twice: 2^n things, if someone walked it.
    for end in (b"}h\0K\1s.", b"X\1\0\0\0ah\0\x86Q.", b".", b"ctorch\nSize\nh\0\x85R."):
        code = b")q\0" + b"h\0h\0\x86q\0" * 50_000 + end
        with pytest.raises(ValueError, match=r"left over|key of a dict|in a form|not sizes"):
            read_pickle(code)
    # A shape whose product would be a number of a million digits.
    sizes = b"(" + b"\x8a\x08" + b"\xff" * 7 + b"\x3f" + b"q\1" + b"h\1" * 100_000 + b"t"
    storage = torchfiles.Writer().code(("storage", Raw(b"ctorch\nFloatStorage\n"), "0", "cpu", 1)) + b"Q"
    with pytest.raises(ValueError, match="in a form"):
        read_pickle(b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + sizes + sizes + b"NNtR.")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("code", [b"]", b"}", b")\x85", b"N\x94", b")\x85q\0", b"(t", b"Nr%b"])
def test_many_small_things_are_refused_early(code, tmp_path):
    many = [code.replace(b"%b", struct.pack("<L", i)) for i in range(300_000 if b"%b" in code else 1)]
    many = (b"".join(many) if len(many) > 1 else code * (LONGEST // len(code)))[: LONGEST - 2] + b"."
    start = time.perf_counter()
    with pytest.raises(ValueError, match="makes more than 200000 things"):
        read_pt(write(tmp_path / "m.pt", many))
    assert time.perf_counter() - start < 5


def test_the_pickles_of_the_old_form_share_one_bound(tmp_path):
    path, writer = tmp_path / "m.pt", torchfiles.Writer()
    magic, version, system = (writer.pickle(v) for v in (torchfiles.LEGACY_MAGIC, 1001, {"little_endian": True}))
    lists = b"]" * 150_000 + b"0."
    for data, message in (
        (magic + lists, "opcode POP"),
        (magic + b"(" + b"]" * 150_000 + b"t." + lists, "of a version of torch.save"),  # the third is not even read
        (magic + version + b"N." + lists, "of a version of torch.save"),
        (magic + version + system + b"]" * (1 << 20), "makes more than 200000"),
        (magic + version + system + 2 * (b"X" + struct.pack("<L", 1 << 20) + b"x" * (1 << 20) + b"."), "longer than"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as caught:
            read_pt(path)
        assert str(caught.value).startswith(f"{path}: ")


# ---- tensors that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor(array(), (2, 4), (3, 1)), "reaches to number 6 of a storage of 6"),
        (Tensor(array(), (2, 3), (3, 1), offset=1), "reaches to number 6 of a storage of 6"),
        (Tensor(array(), (2, 3), (2**61, 1)), "reaches to number"),
        (Tensor(array(), (2, 3), (-3, 1)), "in a form that torch.save does not write"),
        (Tensor(array(), (2, 3), (3, 1), offset=-1), "in a form that torch.save does not write"),
        (Tensor(array(), (2, 3), (3,)), "in a form that torch.save does not write"),
        (Tensor(array(), (2, 3.0), (3, 1)), "in a form that torch.save does not write"),
        (Tensor(array(), (True, 3), (3, 1)), "in a form that torch.save does not write"),
        (Tensor(array(), (1,) * 33, (1,) * 33), "in a form that torch.save does not write"),
        (Tensor(array(), (0, 2**61, 2**61), (1, 1, 1)), "has a shape that no tensor has"),
        (Tensor(array(), (2, 3), (3, 1), numel=7), "take 28 bytes, but 24 are said to be there"),
        (Tensor(array(), (2**40,), (0,)), "more than 16 times the file's size"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tensor, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_pt(write(tmp_path / "m.pt", {"w": tensor}))


def test_one_storage_in_two_types(tmp_path):
    both = {"a": Tensor(array(), (6,), (1,), key="0"), "b": Tensor(array("float64"), (6,), (1,), key="0")}
    with pytest.raises(ValueError, match="in two ways that disagree"):
        read_pt(write(tmp_path / "m.pt", both))


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({}, "holds an empty dict"),
        ([], "holds something of type list"),
        (array(), "holds a single tensor"),
        ({"w": array(), "step": 3, "note": "x"}, r"tensors, 'step' \(of type int\), 'note' \(of type str\)"),
        ({"model": {"w": array()}, "ema": {"w": array()}}, r"'model' \(of type dict\), 'ema' \(of type dict\)"),
        ({"weights": {"w": array()}}, r"'weights' \(of type dict\)"),
        ({str(i): i for i in range(20)}, ", more"),
        ({0: array()}, "keys that are not names: 0"),
    ],
)
def test_what_a_file_holds_in_place_of_tensors_is_listed(top, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_pt(write(tmp_path / "m.pt", top))


# ---- archives that lie -----------------------------------------------------------------------------------------------


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "m.pt"
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        read_pt(path)
    for data, message in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "neither a zip archive nor a pickle"),
        (pickle.dumps({"a": 1}), "a pickle, but not one of torch.save"),
        (b"PK\3\4 and so on", "the end of the zip archive is missing"),
        (b"PK\3\4" + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 4, 0), "the zip archive holds no records"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as caught:
            read_pt(path)
        assert str(path) in str(caught.value)
    for nothing in (None, 3, b"m.pt"):
        with pytest.raises(TypeError, match="path must be the path of a file, got a"):
            read_pt(nothing)


def test_archives_that_torch_does_not_write(tmp_path):
    path, tensors = tmp_path / "m.pt", {"w": array()}
    for options, message in (
        ({"byteorder": b"big"}, "big-endian"),
        ({"compression": zipfile.ZIP_DEFLATED}, "data.pkl of the zip archive is compressed"),
        ({"extra": [("b/data.pkl", b"N.")]}, "but this one holds 2"),
        ({"prefix": ""}, "but this one holds 0"),
    ):
        with pytest.raises(ValueError, match=message):
            read_pt(write(path, tensors, **options))
    with pytest.raises(ValueError, match="record archive/data/0 is missing"):
        read_pt(write(path, torchfiles.Writer().pickle(tensors)))
    with pytest.warns(UserWarning, match="Duplicate"):
        write(path, tensors, extra=[("archive/data/0", b"x")])
    with pytest.raises(ValueError, match="two records archive/data/0"):
        read_pt(path)


def patched(path, *changes):
    """Overwrite places of a file: (where to look for what, how far behind it, the new bytes)."""
    data = bytearray(path.read_bytes())
    for anchor, offset, new in changes:
        at = data.rindex(anchor) + offset
        data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


def test_archives_that_contradict_themselves(tmp_path):
    path = tmp_path / "m.pt"

    def entry(name):  # the last entry of the directory begins 46 bytes before its name
        return f"archive/{name}".encode()

    for changes, message in (
        ([(entry("data/0"), -46 + 42, b"\0\0\0\0")], "says two things of its record archive/data/0"),
        ([(entry("data/0"), -46 + 42, b"\xff\xff\xff\x7f")], "points outside of the file"),
        ([(entry("data/0"), -46 + 20, b"\x30\0\0\0" * 2)], "says two things of its record archive/data/0"),
        ([(entry("data/0"), -46 + 8, b"\1\0")], "compressed or encrypted"),
        ([(entry("data/0"), 0, b"x")], "says two things of its record xrchive/data/0"),
        ([(b"PK\5\6", 12, b"\xff\xff\0\0")], "the directory of the zip archive is damaged"),
        ([(b"PK\5\6", 16, b"\0\0\0\0")], "the directory of the zip archive is damaged"),
        ([(b"PK\5\6", 8, b"\xff\xff\xff\xff")], "the directory of the zip archive is damaged"),
        ([(b"PK\5\6", 4, b"\1\0")], "several parts"),
    ):
        write(path, {"w": array()})
        with pytest.raises(ValueError, match=message):
            read_pt(patched(path, *changes))


def test_records_that_overlap(tmp_path):
    path = write(tmp_path / "m.pt", {"a": array(), "b": array("int32")})
    data = path.read_bytes()
    # Both sizes of data/0, in header and directory, now reach into the header of data/1.
    for name_at, back in ((data.index(b"archive/data/0"), 12), (data.rindex(b"archive/data/0"), 26)):
        data = data[: name_at - back] + struct.pack("<2L", 32, 32) + data[name_at - back + 8 :]
    path.write_bytes(data)
    with pytest.raises(ValueError, match="archive/data/0 and archive/data/1 overlap"):
        read_pt(path)


def test_large_archives_say_sizes_in_64_bits(tmp_path):
    path = tmp_path / "m.pt"
    writer = torchfiles.Writer()
    top = writer.pickle({"w": array()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", top)
        with archive.open("a/data/0", "w", force_zip64=True) as record:
            record.write(array().tobytes())
    np.testing.assert_array_equal(read_pt(path)["w"], array())
    with zipfile.ZipFile(path) as archive:  # and the end in 64 bits, as torch writes it
        at, count = archive.start_dir, len(archive.infolist())
    data = path.read_bytes()
    end = data.index(b"PK\5\6")
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, end - at, at)
    end64 += struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    nothing = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:end] + end64 + nothing)
    np.testing.assert_array_equal(read_pt(path)["w"], array())


def test_legacy_files_that_lie(tmp_path):
    path, tensors = tmp_path / "m.pt", {"w": array()}
    for options, message in (
        ({"magic": 1}, "not one of torch.save"),
        ({"version": 7}, "of a version of torch.save"),
        ({"little": False}, "big-endian"),
    ):
        with pytest.raises(ValueError, match=message):
            read_pt(write_legacy(path, tensors, **options))
    data = write_legacy(path, tensors).read_bytes()
    for cut in (1, 24, 25, 32, 40, 100):
        path.write_bytes(data[:-cut])
        with pytest.raises(ValueError, match="truncated"):
            read_pt(path)
    path.write_bytes(data[:-32] + b"\xff" * 8 + data[-24:])
    with pytest.raises(ValueError, match="damaged or truncated"):
        read_pt(path)


MODEL = {"a.weight": array(), "b": array("bfloat16", (2, 2, 1, 1)), "c": Tensor(array(), (3, 2), (1, 3))}


@pytest.mark.parametrize("form", [write, write_legacy])
def test_thousands_of_damaged_files_give_nothing_but_value_errors(form, tmp_path):
    path = form(tmp_path / "m.pt", MODEL)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(2000):
        path.write_bytes(damaged(whole, rng))
        try:
            read = read_pt(path)
        except ValueError as error:
            refused += str(error).startswith(str(path))
        else:
            refused += 0 * sum(len(value.tobytes()) for value in read.values())  # it can be read to its end
    assert 800 < refused < 2000


def test_thousands_of_damaged_pickles_give_nothing_but_value_errors():
    wholes = [torchfiles.Writer().pickle(MODEL), *(pickle.dumps({"a": [1, (2.5, "b")] * 3}, p) for p in (2, 4))]
    rng, refused = random.Random(1), 0
    for number in range(6000):
        try:
            read_pickle(damaged(wholes[number % 3], rng))
        except ValueError:
            refused += 1
    assert 2000 < refused < 6000
