import io

import numpy as np
import pytest
from PIL import Image

from fastmeta.episodes.images.decode import decode_image, read_image_files


def png(image, format="PNG"):
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


def test_colours_and_grey():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    content = png(Image.fromarray(pixels))
    np.testing.assert_array_equal(decode_image(content, "x"), pixels.transpose(2, 0, 1))
    grey = decode_image(content, "x", channels=1)
    assert grey.shape == (1, 2, 3) and abs(int(grey[0, 0, 0]) - 1) <= 1
    assert decode_image(png(Image.fromarray(pixels[..., 0])), "x").shape == (3, 2, 3)


def test_a_bitmap_is_resized_with_shades_of_grey():
    bitmap = Image.fromarray(np.tri(30, dtype=np.uint8) * 255).convert("1")
    small = decode_image(png(bitmap), "x", channels=1, image_size=10)
    assert small.shape == (1, 10, 10)
    assert len(np.unique(small)) > 2  # nearest neighbour, Pillow's way with bitmaps, gives two


def test_inverted():
    black = Image.new("1", (4, 4), 0)
    assert (decode_image(png(black), "x", channels=1, invert=True) == 255).all()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        png(Image.new("RGB", (50, 50)))[:60],
        png(Image.new("L", (9, 9)))[:-20] + b"\0" * 20,
        png(Image.effect_noise((60, 60), 90).convert("RGB"), "JPEG")[:700],
    ],
    ids=["empty", "text", "short png", "broken png", "short jpeg"],
)
def test_a_damaged_image_is_named(content):
    with pytest.raises(ValueError, match="cat/7.png cannot be read as an image"):
        decode_image(content, "cat/7.png")


def test_sixteen_bits_are_not_cut_to_eight():
    deep = Image.fromarray(np.full((4, 4), 1000, np.uint16))
    with pytest.raises(ValueError, match="deep.png .* 8 bits a channel are needed"):
        decode_image(png(deep), "deep.png")


def test_two_channels():
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        decode_image(png(Image.new("L", (2, 2))), "x", channels=2)


def test_files_of_classes(tmp_path, write_image):
    files = {"a": [tmp_path / "a" / "0.png", tmp_path / "a" / "1.png"], "b": [tmp_path / "b.png"]}
    for value, file in enumerate(file for members in files.values() for file in members):
        write_image(file, 10 * value)
    classes = read_image_files(files, image_size=None)
    assert classes.names == ("a", "b") and classes.images.shape == (3, 3, 8, 8)
    assert classes["a"][:, 0, 0, 0].tolist() == [0, 10] and classes["b"][0, 2, 7, 7] == 20
    assert read_image_files(files, channels=1, image_size=5).images.shape == (3, 1, 5, 5)


def test_files_that_cannot_be_read(tmp_path, write_image):
    write_image(tmp_path / "1.png", 1)
    write_image(tmp_path / "2.png", 1, size=(8, 9))
    files = {"a": [tmp_path / "1.png", tmp_path / "2.png"]}
    with pytest.raises(ValueError, match="2.png has 9x8 pixels, .*1.png 8x8: give image_size"):
        read_image_files(files, image_size=None)
    with pytest.raises(FileNotFoundError, match="3.png"):
        read_image_files({"a": [tmp_path / "1.png", tmp_path / "3.png"]}, image_size=8)
    with pytest.raises(ValueError, match="class 'b' has no images"):
        read_image_files({**files, "b": []}, image_size=8)
    with pytest.raises(ValueError, match="no classes"):
        read_image_files({}, image_size=8)
