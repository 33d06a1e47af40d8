import json
import pickle

import numpy as np
import pytest

from fastmeta.episodes import mini_imagenet
from fastmeta.episodes.images.mini_imagenet import TEST, VALIDATION

COUNTS = (64, 16, 20)
LEARNED = tuple(f"n{i:08d}" for i in range(64))
SIDES = (LEARNED, VALIDATION, TEST)
FILES = ("train", "val", "test")


@pytest.fixture
def pictures(tmp_path, write_image):
    """A picture of 20x10 pixels for each class, in ``images``; its colour is its place."""
    colours = {}
    for name in (name for side in SIDES for name in side):
        colours[name] = len(colours)
        write_image(tmp_path / "images" / f"{name}00000001.jpg", colours[name], size=(20, 10))
    return colours


def assert_read(splits, colours):
    assert tuple(map(len, splits)) == COUNTS
    for side, names in zip(splits, SIDES, strict=True):
        assert side.names == names and side.images.shape[1:] == (3, 84, 84)
        for name in names:
            assert (side[name].int() - colours[name]).abs().max() <= 2  # JPEG


def write_csv(folder, name=lambda file: file):
    for file, names in zip(FILES, SIDES, strict=True):
        rows = "".join(f"{name(f'{n}00000001.jpg')},{n}\n" for n in names)
        (folder / f"{file}.csv").write_text(f"filename,label\n{rows}")


def test_images_with_csv_files(tmp_path, pictures):
    write_csv(tmp_path)
    assert_read(mini_imagenet(tmp_path), pictures)
    assert mini_imagenet(tmp_path, image_size=30).train.images.shape == (64, 3, 30, 30)


@pytest.mark.parametrize("base", ["images", None], ids=["relative", "absolute"])
def test_images_with_json_files(tmp_path, pictures, base):
    folder = str(tmp_path / "images") if base is None else base
    for file, names in zip(("base", "val", "novel"), SIDES, strict=True):
        content = {
            "label_names": list(names),
            "image_names": [f"{folder}/{name}00000001.jpg" for name in names],
            "image_labels": list(names),
        }
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    assert_read(mini_imagenet(tmp_path), pictures)


def test_a_list_that_leads_out_of_the_folder(tmp_path, pictures):
    write_csv(tmp_path, lambda file: f"../../{file}")
    with pytest.raises(ValueError, match="train.csv lists 'images/../../n.*, which lies outside"):
        mini_imagenet(tmp_path)


def test_lists_of_another_form(tmp_path, pictures):
    write_csv(tmp_path)
    (tmp_path / "val.csv").write_text("file,label\nx,y\n")
    with pytest.raises(ValueError, match="val.csv must have columns filename and label"):
        mini_imagenet(tmp_path)
    write_csv(tmp_path)
    (tmp_path / "images" / "n0000000300000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="n0000000300000001.jpg"):
        mini_imagenet(tmp_path)
    write_csv(tmp_path)
    (tmp_path / "images" / "n0000000300000001.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="n0000000300000001.jpg cannot be read as an image"):
        mini_imagenet(tmp_path)


@pytest.mark.parametrize("sides", [True, False], ids=["by side", "all in one"])
def test_a_folder_a_class(tmp_path, write_image, sides):
    colours = {}
    for file, names in zip(FILES, SIDES, strict=True):
        for name in names:
            colours[name] = len(colours)
            place = tmp_path / file / name if sides else tmp_path / name
            write_image(place / "1.jpeg", colours[name], size=(9, 9))
    splits = mini_imagenet(tmp_path)
    if sides:  # found in the order of the names
        splits = [side.select(names) for side, names in zip(splits, SIDES, strict=True)]
    assert_read(splits, colours)


@pytest.mark.parametrize(
    "pattern", ["mini-imagenet-cache-{}.pkl", "miniImageNet_category_split_{}.pickle"]
)
def test_pickles(tmp_path, pattern):
    colours = {}
    cached = "cache" in pattern
    for file, names in zip(FILES, SIDES, strict=True):
        begin = len(colours)
        colours.update({name: begin + i for i, name in enumerate(names)})
        values = np.array([colours[name] for name in names], np.uint8)[:, None, None, None]
        images = np.broadcast_to(values, (len(names), 84, 84, 3)).copy()
        content = (
            {"image_data": images, "class_dict": {name: [i] for i, name in enumerate(names)}}
            if cached
            else {"data": images, "labels": [colours[name] for name in names]}
        )
        side = "train_phase_train" if file == "train" and not cached else file
        (tmp_path / pattern.format(side)).write_bytes(pickle.dumps(content, 2))
    splits = mini_imagenet(tmp_path)
    if cached:
        assert_read(splits, colours)
    else:
        assert tuple(map(len, splits)) == COUNTS and (splits.test["85"] == 85).all()
    with pytest.raises(ValueError, match=r"has images \(3, 84, 84\), not \(3, 64, 64\)"):
        mini_imagenet(tmp_path, image_size=64)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no mini-ImageNet in"):
        mini_imagenet(tmp_path)


def test_the_classes_of_ravi_and_larochelle(data_folder):
    folder = data_folder / "splits" / "miniimagenet_ravi"
    for side, names in (("val", VALIDATION), ("test", TEST)):
        assert sorted((folder / f"{side}.txt").read_text().split()) == sorted(names)
    assert len((folder / "train.txt").read_text().split()) == 64
