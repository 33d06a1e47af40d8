import json

import pytest

from fastmeta.episodes import read_images


@pytest.fixture
def folder(tmp_path, write_image):
    """Ten classes; pictures of class i have the colours 10 * i and 10 * i + 1."""
    for label in range(10):
        for sample in range(2):
            write_image(tmp_path / f"c{label}" / f"{sample}.png", 10 * label + sample)
    (tmp_path / "c3" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.txt").write_text("not a class")
    return tmp_path


def colours(classes, name):
    return classes[name][:, 0, 0, 0].tolist()


def test_a_folder_a_class(folder):
    splits = read_images(folder)
    assert tuple(map(len, splits)) == (6, 2, 2)
    names = [name for side in splits for name in side.names]
    assert sorted(names) == [f"c{label}" for label in range(10)]
    for side in splits:
        for name in side.names:
            label = int(name[1:])
            assert colours(side, name) == [10 * label, 10 * label + 1]
    assert read_images(folder, seed=1).test.names != splits.test.names
    assert tuple(map(len, read_images(folder, fractions=(0.9, 0, 0.1)))) == (9, 0, 1)


def test_size_and_channels(folder):
    splits = read_images(folder, channels=1, image_size=6)
    assert splits.train.images.shape == (12, 1, 6, 6)


def test_a_split_from_a_file(folder, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["c2", "c1"], "test": ["c9"]}))
    splits = read_images(folder, split=path)
    assert splits.train.names == ("c2", "c1") and splits.test.names == ("c9",)
    assert len(splits.validation) == 0 and splits.validation.images.shape == (0, 3, 8, 8)
    path.write_text(json.dumps({"train": ["c2", "cat"], "test": ["c9", "dog"]}))
    with pytest.raises(ValueError, match="has no folder 'cat', nor 0 other of the 2 classes"):
        read_images(folder, split=path)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", None])
def test_folders_for_each_side(tmp_path, write_image, validation):
    for side in filter(None, ("train", validation, "test")):
        write_image(tmp_path / side / f"{side} class" / "x.jpg", 100)
    splits = read_images(tmp_path)
    assert splits.train.names == ("train class",) and splits.test.names == ("test class",)
    assert splits.validation.names == ((f"{validation} class",) if validation else ())
    with pytest.raises(ValueError, match="a split already"):
        read_images(tmp_path, split="x.json")


def test_folders_without_images(tmp_path, folder):
    (folder / "c5" / "0.png").unlink()
    (folder / "c5" / "1.png").unlink()
    with pytest.raises(ValueError, match="c5 has no images"):
        read_images(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no folders"):
        read_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_images(tmp_path / "nowhere")


def test_an_image_size_is_a_whole_number(folder):
    for size in (0, -3, 2.5, "28"):
        with pytest.raises(ValueError, match="image_size must be a whole number of at least 1"):
            read_images(folder, image_size=size)


def test_a_corrupt_image_is_named(folder):
    (folder / "c4" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match="c4/1.png cannot be read as an image"):
        read_images(folder)


def test_real_photographs_in_the_split_beside_them(data_folder):
    path = data_folder / "splits" / "caltech101_64_16_20.json"
    splits = read_images(data_folder / "caltech101_32.npz", split=path)
    assert tuple(map(len, splits)) == (64, 16, 20)
    written = json.loads(path.read_text())
    assert [side.names for side in splits] == [tuple(written[k]) for k in ("train", "val", "test")]
