import numpy as np
import pytest

from fastmeta.episodes import read_npz

IMAGES = np.arange(6 * 2 * 4, dtype=np.uint8).reshape(6, 2, 4)


def write(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_labelled_images(tmp_path):
    path = write(tmp_path / "x.npz", images=IMAGES, labels=np.array([1, 0, 1, 1, 0, 0], np.uint8))
    classes = read_npz(path)
    assert classes.names == ("0", "1") and classes.images.shape == (6, 1, 2, 4)
    np.testing.assert_array_equal(classes["1"][:, 0], IMAGES[[0, 2, 3]])


def test_labelled_images_in_colour(tmp_path):
    colours = IMAGES.reshape(2, 2, 4, 3)
    path = write(tmp_path / "x.npz", images=colours, labels=[0, 1], names=np.array(["a", "b"]))
    classes = read_npz(path)
    assert classes.names == ("a", "b")
    np.testing.assert_array_equal(classes["b"][0].permute(1, 2, 0), colours[1])


@pytest.mark.parametrize("shape", [(3, 2, 2, 4), (3, 2, 2, 2, 2)])
def test_as_many_of_each_class(tmp_path, shape):
    images = IMAGES.reshape(shape)
    classes = read_npz(write(tmp_path / "x.npz", images=images, names=np.array(list("abc"))))
    assert classes.names == ("a", "b", "c") and classes.sizes.tolist() == [2, 2, 2]
    back = classes["b"].permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(back.reshape(shape[1:]), images[1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0] * 6}, "has no array 'images'; it has labels"),
        ({"images": IMAGES}, "need a name each"),
        ({"images": IMAGES[:, None], "names": np.array(["a"])}, "need a name each"),
        ({"images": IMAGES.astype(float), "labels": [0] * 6}, "must be uint8"),
        ({"images": IMAGES, "labels": [0] * 5}, "6 integers"),
        ({"images": IMAGES, "labels": [0, 1] * 3, "names": np.array(["a"])}, r"in 0\.\.0"),
        ({"images": IMAGES, "labels": np.array([None] * 6)}, "cannot be read"),
    ],
)
def test_other_content(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=rf"x.npz.*{message}"):
        read_npz(write(tmp_path / "x.npz", **arrays))


def test_damaged_archives(tmp_path):
    path = write(tmp_path / "x.npz", images=IMAGES, labels=[0] * 6)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-30], whole[:60] + b"\xff" * 30 + whole[90:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x.npz cannot be read as an npz archive"):
            read_npz(path)
    np.save(tmp_path / "y.npy", IMAGES)
    with pytest.raises(ValueError, match="one array"):
        read_npz(tmp_path / "y.npy")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "z.npz")


def test_real_photographs(data_folder):
    classes = read_npz(data_folder / "caltech101_32.npz")
    assert len(classes) == 100 and classes.images.shape == (5233, 3, 32, 32)
    with np.load(data_folder / "caltech101_32.npz") as archive:
        assert classes.names == tuple(archive["names"])
        np.testing.assert_array_equal(classes.offsets, archive["class_offsets"])
        np.testing.assert_array_equal(classes.images.permute(0, 2, 3, 1), archive["images"])
