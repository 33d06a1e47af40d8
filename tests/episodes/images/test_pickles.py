import collections
import os
import pickle

import numpy as np
import pytest

from fastmeta.episodes.images.pickled import find_pickles, read_pickled_images
from fastmeta.episodes.images.pickles import read_pickle

IMAGES = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


# ---- what a pickle may hold ---------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_comes_back(tmp_path, protocol):
    content = {
        "data": IMAGES,
        "turned": IMAGES.T,
        "floats": np.float64(2.5),
        "labels": [1, 2, 3],
        "names": ("a", b"\xff\x00b"),
        "ordered": collections.OrderedDict(x=None),
    }
    found = read_pickle(write(tmp_path / "x.pickle", content, protocol))
    assert found.keys() == content.keys()
    np.testing.assert_array_equal(found["data"], IMAGES)
    np.testing.assert_array_equal(found["turned"], IMAGES.T)
    assert all(found[key] == content[key] for key in ("floats", "labels", "names", "ordered"))


def test_the_old_name_of_numpys_module(tmp_path):
    path = write(tmp_path / "x.pickle", IMAGES)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(read_pickle(path), IMAGES)


def test_text_of_python_2(tmp_path):
    path = tmp_path / "x.pickle"
    path.write_bytes(b"\x80\x02}q\x00U\x04dataq\x01U\x02\xe9!q\x02s.")
    assert read_pickle(path) == {"data": "é!"}


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (Attack(os.system, "touch owned"), "system"),
        (Attack(eval, "open('owned', 'w')"), "eval"),
        (Attack(getattr, "text", "upper"), "getattr"),
        (Attack(np.load, "owned"), "load"),
        (np.array([Attack(os.system, "touch owned")], dtype=object), "system"),
    ],
    ids=["system", "eval", "getattr", "numpy", "inside an array"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_is_a_program_does_not_run(tmp_path, monkeypatch, attack, named, protocol):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.pickle", {"data": attack}, protocol)
    with pytest.raises(ValueError, match=rf"x.pickle cannot be read .*{named}, which is no data"):
        read_pickle(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pickle"]


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04\x95", b"cnumpy\nndarray\n)R."])
def test_a_damaged_pickle_is_named(tmp_path, content):
    path = tmp_path / "x.pickle"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.pickle cannot be read as a pickle"):
        read_pickle(path)


# ---- images in pickles --------------------------------------------------------------------------


@pytest.mark.parametrize("key", [str, str.encode], ids=["text", "bytes"])
def test_data_and_labels(tmp_path, key):
    content = {key("data"): IMAGES, key("labels"): [5, 3, 5, 3]}
    classes = read_pickled_images(write(tmp_path / "x", content, 3))
    assert classes.names == ("3", "5") and classes.images.shape == (4, 3, 2, 2)
    np.testing.assert_array_equal(classes["5"].permute(0, 2, 3, 1), IMAGES[[0, 2]])


@pytest.mark.parametrize("key", [str, str.encode], ids=["text", "bytes"])
def test_images_and_rows_of_classes(tmp_path, key):
    content = {"image_data": IMAGES, "class_dict": {key("n2"): [1, 2], key("n1"): [3, 0]}}
    classes = read_pickled_images(write(tmp_path / "x", content, 3))
    assert classes.names == ("n2", "n1")
    np.testing.assert_array_equal(classes["n1"].permute(0, 2, 3, 1), IMAGES[[0, 3]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list"),
        ({"pixels": IMAGES}, "has pixels, but data and labels"),
        ({"data": IMAGES, "labels": [1, 2]}, "4 integers"),
        ({"data": IMAGES.astype(np.float32), "labels": [1] * 4}, "uint8"),
        ({"data": IMAGES.tolist(), "labels": [1] * 4}, "not a list"),
        ({"image_data": IMAGES, "class_dict": {"a": [0, 1, 2]}}, "1 of 4 images have no class"),
        ({"image_data": IMAGES, "class_dict": {"a": [0, 1, 2, 4]}}, "'a' has rows 0 to 4 of 4"),
        ({"image_data": IMAGES, "class_dict": {"a": []}}, "'a' has no row numbers"),
    ],
)
def test_other_content(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"x\b.*{message}"):
        read_pickled_images(write(tmp_path / "x", content))


def test_files_are_found_in_any_case_and_with_either_name(tmp_path):
    for name in ("cifar_fs_TRAIN.pickle", "CIFAR_FS_validation.pickle"):
        (tmp_path / name).touch()
    assert find_pickles(tmp_path, "CIFAR_FS_{}.pickle") is None
    (tmp_path / "CIFAR_FS_test.pickle").touch()
    train, validation, test = find_pickles(tmp_path, "CIFAR_FS_{}.pickle")
    assert train.name == "cifar_fs_TRAIN.pickle" and validation.name == "CIFAR_FS_validation.pickle"
    assert test.name == "CIFAR_FS_test.pickle"
