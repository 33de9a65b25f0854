"""Captioned pictures that stay in their files: every form says the same, and what is damaged is named."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from cmjax.io import open_captions


def encoded(level=0, size=(6, 4), mode="RGB", kind="PNG", **options):
    """A picture's file: width and height, one level everywhere."""
    color = level if mode == "L" else (level,) * 3 + (0,) * (mode == "RGBA")
    stream = io.BytesIO()
    Image.new(mode, size, color).save(stream, kind, **options)
    return stream.getvalue()


def tar(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, raw in members:
            member = tarfile.TarInfo(name)
            if isinstance(raw, str):  # a link
                member.type, member.linkname = tarfile.SYMTYPE, raw
                archive.addfile(member)
            else:
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
    return path


def both(tmp_path):
    """The same three pictures in a folder and in two tar files."""
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = [encoded(10), encoded(20, (8, 2), "L"), encoded(30, (4, 10), kind="JPEG", exif=turned)]
    captions = [("ten",), ("twenty", "grey"), ("blaß",)]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, raw, told in zip(("a.png", "b.png", "c.jpg"), pictures, captions, strict=True):
        (folder / name).write_bytes(raw)
        (folder / name).with_suffix(".txt").write_text("\n".join(told), encoding="utf-8")
    (tmp_path / "shards").mkdir()
    sidecar = json.dumps({"caption": ["twenty", " grey "], "width": 8}).encode()
    noise = [("._a.png", b"x"), ("x/notes", b"y"), ("a.cls", b"3"), ("a.mask.png", encoded(255))]
    first = [*noise, ("a.png", pictures[0]), ("a.txt", b"ten"), ("x/b.json", sidecar), ("x/b.png", pictures[1])]
    tar(tmp_path / "shards" / "0.tar", first)
    tar(tmp_path / "shards" / "1.tar", [("c.jpg", pictures[2]), ("c.txt", "blaß".encode())])
    return folder, tmp_path / "shards"


def test_folders_and_tar_files_hold_the_same(tmp_path):
    folder, shards = both(tmp_path)
    one, other = open_captions(folder), open_captions(str(shards / "*.tar"))
    assert len(one) == len(other) == 3
    assert list(one.captions) == list(other.captions) == [("ten",), ("twenty", "grey"), ("blaß",)]
    for a, b, shape in zip(one, other, ((4, 6, 3), (2, 8, 3), (4, 10, 3)), strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.image.shape == shape and a.image.dtype == np.uint8  # the last one is turned
    np.testing.assert_array_equal(one.sizes, [[4, 6], [2, 8], [4, 10]])
    np.testing.assert_array_equal(other.sizes, one.sizes)
    assert other.name(1) == f"x/b.png in {shards / '0.tar'}" and other[-1].captions == ("blaß",)
    assert open_captions(shards).fingerprint == other.fingerprint != one.fingerprint
    again = pickle.loads(pickle.dumps(other))
    np.testing.assert_array_equal(again[1].image, other[1].image)
    with pytest.raises(IndexError, match="index must be below 3"):
        one[3]
    before = one.fingerprint
    (folder / "a.txt").write_text("eleven")
    assert open_captions(folder).fingerprint != before


def test_transparent_pictures_lie_on_white(tmp_path):
    tar(tmp_path / "a.tar", [("a.png", encoded(0, mode="RGBA")), ("a.txt", b"nothing")])
    assert (open_captions(tmp_path / "a.tar")[0].image == 255).all()


def test_nothing_outside_of_a_tar_file_is_read(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    far = [("../b.png", encoded(1)), ("../b.txt", b"above"), ("/c.png", encoded(2)), ("/c.txt", b"root")]
    links = [("a.png", encoded(3)), ("a.txt", str(tmp_path / "secret.txt"))]
    source = open_captions(tar(tmp_path / "far.tar", far))  # names alone: nothing is extracted
    assert list(source.captions) == [("above",), ("root",)] and source[0].image[0, 0, 0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far.tar", "secret.txt"]
    with pytest.raises(ValueError, match=r"1 of 1 lack one, such as a.png"):
        open_captions(tar(tmp_path / "links.tar", links))


def test_an_unreadable_picture_is_named_where_it_is_read(tmp_path):
    broken = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(broken).save(stream, "PNG")
    members = [("a.png", stream.getvalue()[:900]), ("a.txt", b"a"), ("b.png", b"no picture"), ("b.txt", b"b")]
    source = open_captions(tar(tmp_path / "a.tar", members))
    np.testing.assert_array_equal(source.sizes, [[40, 40], [0, 0]])  # a header says nothing of what follows
    with pytest.raises(ValueError, match=r"a.png in .*a.tar is damaged, and cannot be read"):
        source[0]
    with pytest.raises(ValueError, match=r"b.png in .*a.tar is not a picture"):
        source.size(1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(f"{i}.png", b"") for i in range(5)], "5 of 5 lack one, such as 0.png, 1.png, 2.png, ...: write it into KEY"),
        ([("a.txt", b"a")], "must hold a picture for each caption, but there is none of a"),
        ([("a.png", b""), ("a.jpg", b""), ("a.txt", b"a")], "pictures of a must be one, but there are 2: a.png, a.jpg"),
        ([("a.png", b""), ("a.txt", b" \n")], "a.txt in .* must hold a caption, but it is empty"),
        ([("a.png", b""), ("a.txt", b"\xff")], "must be UTF-8, but is not at byte 0"),
        ([("a.png", b""), ("a.json", b"{")], "a.json in .* must be a JSON object"),
        ([("a.png", b""), ("a.json", b'{"text": 3}')], "text must be a caption that is not empty"),
        ([("a.png", b""), ("a.json", b"{}")], "1 of 1 lack one"),
    ],
)
def test_tar_files_that_lack_something(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        open_captions(tar(tmp_path / "a.tar", members))


def test_files_that_are_no_data(tmp_path):
    whole = tar(tmp_path / "a.tar", [("a.png", bytes(9000)), ("a.txt", b"a")])
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:5000])
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    (tmp_path / "a.zip").write_bytes(b"")
    for path, message in (
        ("cut.tar", "is not a whole tar file"),
        ("packed.tar", "is not a whole tar file without compression"),
        ("a.zip", r"data must be a folder, .tar files or .parquet files"),
        ("*.[tz][ai][rp]", "give files of one kind"),
    ):
        with pytest.raises(ValueError, match=message):
            open_captions(tmp_path / path)
    for path, message in (("none", "does not exist; give a folder"), ("*.parquet", "no file matches")):
        with pytest.raises(FileNotFoundError, match=message):
            open_captions(str(tmp_path / path))
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        open_captions(tar(tmp_path / "empty.tar", []))


def test_parquet_files(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name, images, texts, **names):
        table = pa.table({names.get("image", "image"): images, names.get("text", "text"): texts})
        parquet.write_table(table, tmp_path / name, row_group_size=2)

    write("0.parquet", [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(5)], list("abcde"))
    write("1.parquet", [{"bytes": encoded(5), "path": None}, {"bytes": None, "path": "/etc/passwd"}], ["f", "g"])
    source = open_captions(tmp_path)
    assert len(source) == 7 and list(source.captions) == [(one,) for one in "abcdefg"]
    assert [int(source[i].image[0, 0, 0]) for i in (5, 0, 3, 1, 4, 2)] == [5, 0, 3, 1, 4, 2]
    assert source.name(4) == f"row 4 of {tmp_path / '0.parquet'}" and source.name(5).startswith("row 0 of")
    with pytest.raises(ValueError, match=r"row 1 of .*1.parquet holds no picture: bytes of a file are wanted"):
        source[6]
    assert int(pickle.loads(pickle.dumps(source))[3].image[0, 0, 0]) == 3
    write("plain.parquet", [encoded(7)], [["x", "y"]], image="jpg", text="caption")
    plain = open_captions(tmp_path / "plain.parquet")
    assert plain[0].captions == ("x", "y") and plain[0].image[0, 0, 0] == 7
    write("lacking.parquet", [encoded(7)] * 3, ["a", None, ""])
    with pytest.raises(ValueError, match=r"2 of 3 lack one, such as row 1 of .*, row 2 of"):
        open_captions(tmp_path / "lacking.parquet")
    write("other.parquet", [1], ["a"], image="picture")
    with pytest.raises(ValueError, match="must have a column image or bytes or jpg or png, but it has picture, text"):
        open_captions(tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is not a parquet file that can be read"):
        open_captions(tmp_path / "broken.parquet")


def test_grain_reads_a_source_as_it_is(tmp_path):
    grain = pytest.importorskip("grain")
    source = open_captions(both(tmp_path)[1])
    seen = [one.captions[0] for one in grain.MapDataset.source(source).seed(0).shuffle()]
    assert sorted(seen) == ["blaß", "ten", "twenty"]
