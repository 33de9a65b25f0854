import contextlib
import errno
import os
import re
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from cmjax.io import grid, read_images, read_picture, to_uint8, write_npz, write_png


def save(path, size=(6, 4), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
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
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros((2, 2), int)}, "must be 2 integers"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8), "arr_1": np.zeros((2, 4, 4), np.uint8)}, "arr_1 in .* must be 2 int"),
        (
            {"images": np.zeros((1, 4, 4), np.uint8), "labels": np.zeros(1, int), "label_names": np.zeros(1)},
            r"label_names in .*d.npz must be texts, got float64\[1\]",
        ),
        (
            {"images": np.zeros((1, 4, 4), np.uint8), "labels": np.zeros(1, int), "label_names": np.array([b"\xff"])},
            "label_names in .*d.npz must be texts, but hold bytes that are not UTF-8",
        ),
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
    monkeypatch.setattr("cmjax.io.image_sets._IN_MEMORY", 100)
    mapped = read_images(tmp_path).images
    assert isinstance(mapped, np.memmap) and not isinstance(plain, np.memmap)
    np.testing.assert_array_equal(mapped, plain)
    np.testing.assert_array_equal(mapped[[7, 3]], plain[[7, 3]])


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be asked for in advance")
def test_no_room_for_the_images_is_said_before_any_is_read(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path / "a.png")
    monkeypatch.setattr("cmjax.io.image_sets._IN_MEMORY", 10)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"the images take .* GiB in .*No space left.*TMPDIR="):
        read_images(tmp_path)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "holds no images"),
        ({"a.png": ((6, 4), "L"), "b.png": ((4, 4), "L")}, ValueError, "b.png is 4x4 and .*a.png is 6x4"),
        ({"a.png": ((6, 4), "RGBA")}, ValueError, "a.png has transparent pixels; flatten it"),
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
    with pytest.raises(ValueError, match=r"b\.png is damaged, and cannot be read"):
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
    with pytest.raises(ValueError, match=r"a\.png is a pipe or a device"):
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
    with pytest.raises(ValueError, match=r"a\.png has more than 1,000 pixels"):
        read_images(tmp_path)


def test_labels_of_shape_n_1_are_labels(tmp_path):
    images, labels = np.zeros((3, 4, 4), np.uint8), np.array([[2], [0], [1]], np.uint8)
    np.savez(tmp_path / "medmnist.npz", train_images=images, train_labels=labels)
    assert read_images(tmp_path / "medmnist.npz").labels.tolist() == [2, 0, 1]


def test_arrays_without_names_are_images_and_labels(tmp_path):
    images, labels = np.zeros((3, 4, 4, 3), np.uint8), np.array([2, 0, 1])
    np.savez(tmp_path / "samples.npz", images, labels)  # as the consistency models' own script writes samples
    for split in ("train", "test"):
        assert read_images(tmp_path / "samples.npz", split).labels.tolist() == [2, 0, 1]
    assert read_images(tmp_path / "samples.npz", classes=False).labels is None


def test_names_of_bytes_are_read_as_text(tmp_path):
    names = np.array(["kočka".encode(), b"dog"])
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.arange(2), label_names=names)
    assert read_images(tmp_path / "d.npz").label_names == ("kočka", "dog")


def test_hidden_folders_are_no_classes(tmp_path):
    for name in (".ipynb_checkpoints/0.png", "__MACOSX/0.png", "cat/0.png", "dog/0.png"):
        save(tmp_path / name)
    data = read_images(tmp_path)
    assert data.labels.tolist() == [0, 1] and data.label_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "looks"),
    [
        (("train", "test"), r"folders named like splits \(test, train\)"),
        (("00000", "01000", "02000", "03000"), r"folders named like chunks \(00000, 01000, 02000, ...\)"),
        (("part_1", "part_2"), r"folders named like chunks \(part_1, part_2\)"),
        (("imgs",), "one folder of images, imgs"),
    ],
)
def test_folders_that_may_be_no_classes_are_asked_about(names, looks, tmp_path):
    for name in names:
        save(tmp_path / name / "a.png")
    with pytest.raises(
        ValueError, match=rf"holds {looks}. Are they classes\? .*classes=True.*classes=False.*one folder"
    ):
        read_images(tmp_path)
    assert read_images(tmp_path, classes=False).labels is None
    assert len(read_images(tmp_path, classes=False).images) == len(names)
    assert read_images(tmp_path, classes=True).label_names == tuple(sorted(names))
    with pytest.raises(ValueError, match="classes must be False or left out"):
        read_images(tmp_path / names[0], classes=True)


def test_folders_of_digits_and_of_words_are_classes(tmp_path):
    for names in (("0", "1", "2"), ("bus", "train"), ("000", "001")):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name in names:
            save(folder / name / "a.png")
        assert read_images(folder).label_names == names


def grey_and_others(folder):
    """One picture of each kind that people have, all of 6 x 4 pixels."""
    ramp = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    ramp.save(folder / "a_grey.png")
    Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 2700).save(folder / "b_16_bits.png")
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(folder / "c_cmyk.jpg", quality=100)
    ramp.convert("P").save(folder / "d_palette.png", transparency=bytes([255] * 256))
    Image.new("RGBA", (6, 4), (1, 2, 3, 255)).save(folder / "e_opaque.png")
    ramp.convert("RGB").save(folder / "f_rgb.png")


def test_data_and_edit_read_the_same_pictures_alike(tmp_path):
    grey_and_others(tmp_path)
    data = read_images(tmp_path)
    assert data.images.shape == (6, 4, 6, 3)
    for image, path in zip(data.images, sorted(tmp_path.iterdir()), strict=True):
        picture = read_picture(path)
        assert picture.alpha is None
        np.testing.assert_array_equal(image, np.broadcast_to(to_uint8(picture.pixels), image.shape), err_msg=path.name)


def test_what_one_refuses_the_other_refuses_in_the_same_words(tmp_path):
    grey = Image.new("L", (6, 4))
    grey.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (6, 4), 255)])
    for read in (read_picture, lambda path: read_images(path.parent)):
        with pytest.raises(ValueError, match=r"a\.gif has 2 frames: give a single picture\.$"):
            read(tmp_path / "a.gif")


def test_no_picture_starts_a_program(tmp_path, monkeypatch):
    def started(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen.__init__", started)
    monkeypatch.setattr("os.system", started)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n"
    (tmp_path / "b.png").write_bytes(eps)
    for read in (read_picture, lambda path: read_images(path.parent)):
        with pytest.raises(ValueError, match=r"b\.png is not a picture"):
            read(tmp_path / "b.png")


def rational_make(orientation):
    """EXIF whose Make (271) is of type RATIONAL, which Pillow cannot write again."""
    entries = struct.pack("<HHII", 271, 5, 1, 38) + struct.pack("<HHIHH", 274, 3, 1, orientation, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<III", 0, 1, 1)


def test_a_photograph_is_turned_by_the_tags_value_whatever_the_others_are(tmp_path):
    picture = Image.new("L", (6, 4))
    picture.paste(255, (0, 0, 3, 4))  # white on the left
    for orientation, shape in ((1, (4, 6, 1)), (6, (6, 4, 1))):
        path = tmp_path / f"{orientation}.jpg"
        picture.save(path, exif=rational_make(orientation), quality=100)
        assert path.read_bytes().count(b"Exif") == 1
        levels = to_uint8(read_picture(path).pixels)
        assert levels.shape == shape and levels[0].mean() == (255 if orientation == 6 else 127.5)
    for compression in (None, "tiff_lzw"):
        picture.save(tmp_path / "6.tif", tiffinfo={274: 6}, compression=compression)
        levels = to_uint8(read_picture(tmp_path / "6.tif").pixels)[..., 0]
        np.testing.assert_array_equal(levels, np.rot90(picture, -1))


def test_whatever_pillow_raises_becomes_one_sentence(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    for error in (struct.error("x"), TypeError("a\nb"), AttributeError(), RuntimeError("y."), SyntaxError("z")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        for read in (read_picture, lambda path: read_images(path.parent)):
            with pytest.raises(ValueError, match=r"^[^\n]*a\.png is damaged, and cannot be read: [^\n.]+\.$"):
                read(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.bmp", "a.webp"])
def test_damaged_files_of_every_format_are_named_or_read(name, tmp_path):
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    whole, random = path.read_bytes(), np.random.default_rng(1)
    for _ in range(150):
        broken = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, len(broken), 3):
            broken[place] = random.integers(0, 256)
        path.write_bytes(broken)
        with contextlib.suppress(ValueError):
            read_picture(path)
            continue
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} [^\n]*\.$"):
            read_picture(path)
