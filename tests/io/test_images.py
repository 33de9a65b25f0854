import errno
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from cmjax.io import grid, read_images, to_uint8, write_npz, write_png


def save(path, size=(6, 4), mode="L"):
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size).save(path)


def test_grey_levels_round_to_nearest_and_clip():
    assert to_uint8(np.array([-1.5, -1.0, -0.999, 0.0, 1 / 127.5, 1.0, 7.0])).tolist() == [0, 0, 0, 128, 128, 255, 255]
    with pytest.raises(ValueError, match="NaN in 1 of 2 values"):
        to_uint8(np.array([0.0, np.nan]))


def test_a_grid_holds_each_image_in_its_place():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 5, 1), np.uint8)
    picture = np.asarray(grid(images, 3, scale=1))
    assert picture.shape == (2 * 6 + 2, 3 * 7 + 2)
    cells = [[int(picture[2 + 6 * row + 1, 2 + 7 * column + 1]) for column in range(3)] for row in range(2)]
    assert cells == [[0, 1, 2], [3, 4, 5]]
    assert picture[0, 0] == 255


def test_labels_make_room_and_leave_ink():
    images = np.full((4, 32, 32, 3), 128, np.uint8)
    plain = grid(images, 2, scale=1)
    named = grid(images, 2, scale=1, row_labels=["Trouser", "Ankle boot"], column_labels=["step 1", "step 2"])
    assert named.size > plain.size
    assert named.mode == "RGB"
    pixels = np.asarray(named)
    left, top = named.size[0] - plain.size[0], named.size[1] - plain.size[1]
    assert pixels[top:, :left].min() < 100  # ink before the rows
    assert pixels[:top, left:].min() < 100  # and above the columns
    np.testing.assert_array_equal(pixels[top + 2 :, left + 2 :], np.asarray(plain)[2:, 2:])


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 4, 4, 1)), {}, "u8"),
        (np.zeros((2, 4, 4, 2), np.uint8), {}, "1 or 3"),
        (np.zeros((0, 4, 4, 1), np.uint8), {}, "images must be"),
        (np.zeros((2, 4, 4, 1), np.uint8), {"row_labels": ["a", "b"]}, "row_labels must hold 1 texts, got 2"),
    ],
)
def test_what_is_no_grid_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        grid(images, 2, **options)


def test_npz_round_trip(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    labels = np.array([0, 1, 2, 1, 0], np.int32)
    write_npz(tmp_path / "d.npz", images=images, labels=labels, label_names=np.array(["a", "b", "c"]))
    data = read_images(tmp_path / "d.npz")
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.label_names == ("a", "b", "c")
    assert [p.name for p in tmp_path.iterdir()] == ["d.npz"]


def test_npz_of_two_splits(tmp_path):
    train, test = np.zeros((5, 4, 6), np.uint8), np.ones((3, 4, 6), np.uint8)
    np.savez(tmp_path / "d.npz", train_images=train, train_labels=np.arange(5), test_images=test)
    assert len(read_images(tmp_path / "d.npz").images) == 5
    held_out = read_images(tmp_path / "d.npz", split="test")
    assert (len(held_out.images), held_out.labels) == (3, None)
    np.savez(tmp_path / "one.npz", images=train, labels=np.arange(5))
    assert len(read_images(tmp_path / "one.npz", split="test").labels) == 5
    np.savez(tmp_path / "train.npz", train_images=train)
    with pytest.raises(ValueError, match="must hold an array named 'test_images', but it holds train_images"):
        read_images(tmp_path / "train.npz", split="test")


def test_npz_of_grey_training_images_gets_a_channel(tmp_path):
    np.savez(tmp_path / "d.npz", train_images=np.zeros((5, 4, 6), np.uint8), train_labels=np.arange(5, dtype=np.uint8))
    data = read_images(tmp_path / "d.npz")
    assert data.images.shape == (5, 4, 6, 1)
    assert data.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((1, 4, 4), np.uint8)}, "must hold an array named 'images', but it holds pictures"),
        ({"images": np.zeros((1, 4, 4), np.float32)}, "must be u8"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "N at least 1"),
        ({"images": np.zeros((2, 4, 4, 5), np.uint8)}, "1 or 3"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "must be 2 integers"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2)}, "must be 2 integers"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "integers from 0"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 2**32])}, "integers from 0"),
        ({"images": np.zeros((2, 0, 0), np.uint8)}, "must be u8"),
        ({"images": np.array([None, {}], object)}, "not an npz file of arrays that can be read"),
    ],
)
def test_an_unfit_npz_is_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_images(tmp_path / "d.npz")


def test_a_truncated_npz_is_said(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.zeros((9, 8, 8), np.uint8))
    whole = (tmp_path / "d.npz").read_bytes()
    for part in (whole[: len(whole) // 2], b""):
        (tmp_path / "d.npz").write_bytes(part)
        with pytest.raises(ValueError, match="not an npz file of arrays that can be read"):
            read_images(tmp_path / "d.npz")


def test_a_folder_of_images_is_read_in_order_of_names(tmp_path):
    for name, level in (("b.png", 20), ("a.png", 10), (".hidden.png", 30)):
        Image.new("L", (6, 4), level).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    data = read_images(tmp_path)
    assert data.images.shape == (2, 4, 6, 1)
    assert data.images[:, 0, 0, 0].tolist() == [10, 20]
    assert data.labels is None


def test_sub_folders_are_classes(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "cat/2.JPG"):
        save(tmp_path / name, mode="RGB")
    data = read_images(tmp_path)
    assert data.images.shape == (3, 4, 6, 3)
    assert data.labels.tolist() == [0, 0, 1]
    assert data.label_names == ("cat", "dog")


def test_many_images_lie_in_a_temporary_file(tmp_path, monkeypatch):
    for i in range(20):
        noise = np.random.default_rng(i).integers(0, 256, (6, 4, 3), np.uint8)
        write_png(noise, tmp_path / f"{i:02d}.png")
    plain = read_images(tmp_path).images
    monkeypatch.setattr("cmjax.io.images._IN_MEMORY", 100)
    mapped = read_images(tmp_path).images
    assert isinstance(mapped, np.memmap) and not isinstance(plain, np.memmap)
    np.testing.assert_array_equal(mapped, plain)
    np.testing.assert_array_equal(mapped[[7, 3]], plain[[7, 3]])


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be asked for in advance")
def test_no_room_for_the_images_is_said_before_any_is_read(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path / "a.png")
    monkeypatch.setattr("cmjax.io.images._IN_MEMORY", 10)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"the images take .* GiB in .*No space left.*TMPDIR="):
        read_images(tmp_path)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "holds no images"),
        ({"a.png": ((6, 4), "L"), "b.png": ((4, 4), "L")}, ValueError, "b.png is 4x4 grey and .*a.png is 6x4 grey"),
        ({"a.png": ((6, 4), "L"), "b.png": ((6, 4), "RGB")}, ValueError, "b.png is 6x4 RGB"),
        ({"a.png": ((6, 4), "RGBA")}, ValueError, "colour mode RGBA"),
        ({"a.png": ((6, 4), "L"), "x/b.png": ((6, 4), "L")}, ValueError, "both images and folders"),
    ],
)
def test_an_unfit_folder_is_refused(files, error, message, tmp_path):
    for name, (size, mode) in files.items():
        save(tmp_path / name, size, mode)
    with pytest.raises(error, match=message):
        read_images(tmp_path)


def test_a_broken_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 1), np.uint8)
    write_png(noise, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"b\.png is not a readable image"):
        read_images(tmp_path)


def test_data_must_be_there_and_of_a_known_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_images(tmp_path / "no.npz")
    (tmp_path / "d.csv").write_text("1")
    with pytest.raises(ValueError, match=r"must be an \.npz file or a folder"):
        read_images(tmp_path / "d.csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe, for which a reader would wait")
def test_pipes_are_no_data(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"must be an \.npz file or a folder"):
        read_images(tmp_path / "a.npz")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is not a file"):
        read_images(tmp_path)


def test_a_png_is_written_whole(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 1), np.uint8)
    write_png(image, tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image[..., 0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(FileNotFoundError):
        write_png(image, tmp_path / "missing" / "a.png")
    for wrong in (image.astype(np.float32), image[..., 0], image[..., [0, 0]], image[:0]):
        with pytest.raises(ValueError, match=r"a picture must be u8\[H, W, 1 or 3\], got .*to_uint8"):
            write_png(wrong, tmp_path / "wrong.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_an_array_or_a_text_named_npz_is_said(tmp_path):
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "b.npz").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as file:
        file.writestr("images", b"no array")
    for name in "abc":
        with pytest.raises(ValueError, match=rf"{name}.npz is not an npz file of arrays that can be read"):
            read_images(tmp_path / f"{name}.npz")


def test_transparency_is_refused_and_a_turned_photograph_stands_upright(tmp_path):
    (tmp_path / "clear").mkdir()
    Image.new("P", (4, 4)).save(tmp_path / "clear" / "a.png", transparency=0)
    with pytest.raises(ValueError, match="has transparent pixels; flatten it"):
        read_images(tmp_path / "clear")
    (tmp_path / "turned").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (6, 4)).save(tmp_path / "turned" / "a.jpg", exif=exif)
    assert read_images(tmp_path / "turned").images.shape == (1, 6, 4, 3)


def test_an_enormous_image_is_refused(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="is not a readable image"):
        read_images(tmp_path)
