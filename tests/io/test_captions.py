"""Pictures with captions: both forms of a folder, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from cmjax.io import read_captions


def picture(path, level=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 6), level if mode == "L" else (level,) * 3).save(path)


def metadata(folder, *entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_texts_beside_pictures(tmp_path):
    picture(tmp_path / "b.png", 10)
    picture(tmp_path / "a.jpg", 30, "L")
    picture(tmp_path / "more" / "c.png", 20)
    picture(tmp_path / ".thumbs" / "d.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfgrey\r\n\r\n  a grey day \r\n")
    (tmp_path / "b.txt").write_text("blaß", encoding="utf-8")
    (tmp_path / "more" / "c.txt").write_text("third")
    images, captions = read_captions(tmp_path)
    assert captions == (("grey", "a grey day"), ("blaß",), ("third",))
    assert images.shape == (3, 6, 4, 3) and images.dtype == np.uint8
    np.testing.assert_allclose(images[:, 0, 0, 0], [30, 10, 20], atol=1)


def test_metadata_gives_the_order(tmp_path):
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "train" / "b.png", 2)
    (tmp_path / "README.txt").write_text("of the data")
    metadata(
        tmp_path,
        {"file_name": "train/b.png", "text": ["one", " another "], "width": 4},
        "",
        {"file_name": "./a.png", "text": "first"},
    )
    images, captions = read_captions(str(tmp_path))
    assert captions == (("one", "another"), ("first",))
    assert images[:, 0, 0, 0].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{broken", "line 2 must be a JSON object, but it is not valid JSON"),
        ("[" * 100_000, "line 2 must be a JSON object, but it is not valid JSON"),
        ("[1]", r"line 2 must be a JSON object with file_name and text, got \[1\]"),
        ({"file_name": "b.png"}, "with file_name and text"),
        ({"file_name": "../b.png", "text": "b"}, r"line 2: file_name must be a path within the folder.*'../b.png'"),
        ({"file_name": "/b.png", "text": "b"}, "must be a path within the folder"),
        ({"file_name": "", "text": "b"}, "must be a path within the folder"),
        ({"file_name": 3, "text": "b"}, "must be a path within the folder"),
        ({"file_name": "b\0.png", "text": "b"}, "must be a path within the folder"),
        ({"file_name": ".b.png", "text": "b"}, "that are not hidden"),
        ({"file_name": "c.png", "text": "b"}, "but c.png is not there"),
        ({"file_name": "metadata.jsonl", "text": "b"}, "metadata.jsonl is not a picture, by its name"),
        ({"file_name": "a.png", "text": "b"}, "a.png had a line before: give a list of texts"),
        ({"file_name": "b.png", "text": " "}, "line 2: text must be a caption that is not empty"),
        ({"file_name": "b.png", "text": []}, "text must be a caption"),
        ({"file_name": "b.png", "text": ["b", 2]}, "text must be a caption"),
        ("", "must hold a line for each picture, but 1 of 2 lack one, such as .*b.png"),
    ],
)
def test_bad_lines_are_said_with_their_number(tmp_path, second, message):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    metadata(tmp_path, {"file_name": "a.png", "text": "a"}, second)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_captions(tmp_path)


def test_bytes_that_are_no_text_are_said(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"gr\xfcn")
    with pytest.raises(ValueError, match=r"a.txt must be UTF-8, but is not at byte 2"):
        read_captions(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b'\n{"file_name": "a.png", "text": "gr\xfcn"}')
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2 must be UTF-8"):
        read_captions(tmp_path)


def test_folders_without_captions_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_captions(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no pictures; give a folder of .png, .jpg or .webp files"):
        read_captions(tmp_path)
    picture(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_captions(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"nor a text for any of 1 pictures: write the caption of a.png into a.txt"):
        read_captions(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"a.txt must hold a caption, but it is empty"):
        read_captions(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    picture(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"1 of 2 lack one, such as .*b.png: write it into b.txt"):
        read_captions(tmp_path)
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.txt").write_text("c")
    with pytest.raises(ValueError, match=r"must hold a picture for each caption, but 1 of 3 lack one, such as .*c.txt"):
        read_captions(tmp_path)
