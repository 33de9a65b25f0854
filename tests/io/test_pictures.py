import os

import numpy as np
import pytest
from PIL import Image

from cmjax.editing import block_mean, luminance
from cmjax.io import to_uint8
from cmjax.io.pictures import Picture, fit_picture, gray, on_white, read_picture

GREY = np.random.default_rng(0).integers(0, 256, (6, 4), np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (6, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(image, name="a.png", **options):
    image.save(name, **options)
    return read_picture(name)


def test_eight_bits_are_read_exactly():
    for array in (GREY, RGB):
        picture = read(Image.fromarray(array))
        assert picture.alpha is None and picture.pixels.dtype == np.float32
        np.testing.assert_array_equal(to_uint8(picture.pixels), array if array.ndim == 3 else array[..., None])
    bits = read(Image.fromarray(GREY).convert("1"))
    assert set(np.unique(bits.pixels)) == {-1.0, 1.0} and bits.pixels.shape == (6, 4, 1)


def test_sixteen_bits_are_scaled():
    levels = np.array([[0, 257, 40_000, 65_535]], np.uint16)
    picture = read(Image.fromarray(levels))
    np.testing.assert_allclose(picture.pixels[0, :, 0], levels[0] / 32767.5 - 1, atol=1e-6)
    assert to_uint8(picture.pixels)[0, :, 0].tolist() == [0, 1, 156, 255]


def test_palettes_are_colours_and_some_are_transparent():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    picture = read(image)
    assert to_uint8(picture.pixels).tolist() == [[[10, 20, 30], [200, 100, 0]]] and picture.alpha is None
    assert read(image, transparency=1).alpha.tolist() == [[1.0, 0.0]]


def test_alpha_is_kept_where_anything_is_transparent():
    for mode in ("LA", "RGBA"):
        image = Image.fromarray(RGB).convert(mode)
        assert read(image).alpha is None
        image.putpixel((1, 0), (*image.getpixel((1, 0))[:-1], 51))
        picture = read(image)
        assert picture.pixels.shape == (6, 4, len(mode) - 1)
        assert picture.alpha[0, 1] == np.float32(0.2) and (picture.alpha == 1).sum() == 23


def test_a_camera_held_sideways_is_turned():
    image = Image.fromarray(GREY)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    np.testing.assert_array_equal(to_uint8(read(image, exif=exif).pixels)[..., 0], np.rot90(GREY, -1))


def test_cmyk_becomes_colours():
    picture = read(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg", quality=100)
    assert np.abs(to_uint8(picture.pixels).astype(int) - [255, 0, 0]).max() <= 3


def test_what_cannot_be_read_is_said_with_its_name(monkeypatch):
    Image.fromarray(RGB).save("whole.png")
    with open("whole.png", "rb") as file:
        data = file.read()
    for name, content in (("text.png", b"hello"), ("empty.png", b""), ("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        with open(name, "wb") as file:
            file.write(content)
        with pytest.raises(ValueError, match=f"^{name} is not a picture: give a PNG or JPEG file.$"):
            read_picture(name)
    with open("cut.png", "wb") as file:
        file.write(data[:60])
    with pytest.raises(ValueError, match=r"^cut.png is damaged, and cannot be read: .*[^.]\.$"):
        read_picture("cut.png")
    Image.fromarray(GREY).save("moving.gif", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    with pytest.raises(ValueError, match=r"^moving.gif has 2 frames: give a single picture.$"):
        read_picture("moving.gif")
    with pytest.raises(FileNotFoundError, match=r"^no.png does not exist.$"):
        read_picture("no.png")
    with pytest.raises(IsADirectoryError, match="is a folder, not a picture"):
        read_picture(".")
    with pytest.raises(ValueError, match=rf"^{os.devnull} is a pipe or a device: give a PNG or JPEG file.$"):
        read_picture(os.devnull)
    Image.fromarray(GREY.astype(np.float32)).save("float.tiff")
    with pytest.raises(ValueError, match=r"^float.tiff has the colour mode F: convert it"):
        read_picture("float.tiff")
    for limit in (20, 10):  # Pillow warns beyond the limit, and refuses beyond twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=rf"^whole.png has more than {limit} pixels"):
            read_picture("whole.png")


def test_a_size_that_is_none_is_refused():
    for size, error in (((0, 4), ValueError), ((4, 2.5), TypeError)):
        with pytest.raises(error, match=r"^(height|width) must be"):
            fit_picture(Picture(np.zeros((8, 8, 1), np.float32)), *size)


def test_grey_is_the_luminance_that_colorize_keeps():
    pixels = RGB / np.float32(127.5) - 1
    np.testing.assert_allclose(gray(pixels), luminance(pixels), atol=1e-6)
    same = np.repeat(GREY[..., None], 3, -1) / np.float32(127.5) - 1
    np.testing.assert_array_equal(to_uint8(gray(same))[..., 0], GREY)


def test_transparent_pixels_are_white_on_white():
    alpha = np.array([[0.0, 1.0, 0.5]], np.float32)
    flat = on_white(Picture(np.full((1, 3, 1), -1, np.float32), alpha))
    assert flat.pixels.ravel().tolist() == [1.0, -1.0, 0.0] and flat.alpha is None


def test_a_whole_fraction_is_the_mean_of_blocks():
    pixels = np.random.default_rng(2).uniform(-1, 1, (12, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(fit_picture(Picture(pixels), 3, 2).pixels, block_mean(pixels, 4), atol=1e-6)
    np.testing.assert_allclose(fit_picture(Picture(pixels), 4, 4).pixels, block_mean(pixels[2:10], 2), atol=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (9, 9), (40, 20)])
def test_fit_keeps_what_is_flat_and_stays_in_range(size):
    flat = fit_picture(Picture(np.full((13, 11, 3), 0.3, np.float32)), *size).pixels
    assert flat.shape == (*size, 3)
    np.testing.assert_allclose(flat, 0.3, atol=1e-6)
    edge = fit_picture(Picture(np.where(np.arange(11) > 4, 1.0, -1.0)[None, :, None].repeat(13, 0)), *size).pixels
    assert np.abs(edge).max() <= 1 and edge[:, 0].max() < -0.9 and edge[:, -1].min() > 0.9


def test_colours_of_transparent_pixels_do_not_bleed():
    pixels = np.full((12, 12, 1), 0.5, np.float32)
    alpha = np.ones((12, 12), np.float32)
    pixels[:, 6:], alpha[:, 6:] = -1, 0
    for size in (3, 5, 30):
        small = fit_picture(Picture(pixels, alpha), size, size)
        seen = small.alpha > 0.05
        np.testing.assert_allclose(small.pixels[seen], 0.5, atol=1e-4)
        assert small.alpha[0, 0] > 0.95 and small.alpha[0, -1] < 0.05
