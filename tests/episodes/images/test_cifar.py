import json
import pickle

import numpy as np
import pytest

from fastmeta.episodes import cifar_fs, fc100
from fastmeta.episodes.images.cifar import (
    CIFAR_FS_TEST,
    CIFAR_FS_VALIDATION,
    FC100_TEST,
    FC100_VALIDATION,
)

LEARNED = tuple(f"class{i}" for i in range(64))
FINE = (*LEARNED, *CIFAR_FS_VALIDATION, *CIFAR_FS_TEST)


def write_pickles(folder, pattern, counts, first=0):
    """Two images a class, of the colour of their label."""
    for side, count in zip(("train", "val", "test"), counts, strict=True):
        labels = [label for label in range(first, first + count) for _ in range(2)]
        colour = np.array(labels, np.uint8)[:, None, None, None]
        content = {"data": np.broadcast_to(colour, (2 * count, 32, 32, 3)).copy(), "labels": labels}
        (folder / pattern.format(side)).write_bytes(pickle.dumps(content, 2))
        first += count


@pytest.mark.parametrize(
    ("read", "pattern", "counts"),
    [
        (cifar_fs, "CIFAR_FS_{}.pickle", (64, 16, 20)),
        (fc100, "FC100_{}.pickle", (60, 20, 20)),
    ],
)
def test_pickles(tmp_path, read, pattern, counts):
    write_pickles(tmp_path, pattern, counts)
    splits = read(tmp_path)
    assert tuple(map(len, splits)) == counts
    assert splits.train.images.shape == (2 * counts[0], 3, 32, 32)
    assert (splits.test["99"] == 99).all()


def test_pickles_with_other_classes(tmp_path):
    write_pickles(tmp_path, "CIFAR_FS_{}.pickle", (60, 20, 20))
    with pytest.raises(ValueError, match="60, 20 and 20 classes .* CIFAR-FS 64, 16 and 20"):
        cifar_fs(tmp_path)


def test_a_folder_of_pictures_a_class(tmp_path, write_image):
    for value, name in enumerate(FINE):
        write_image(tmp_path / "data" / name / "1.png", value, size=(32, 32))
    splits = cifar_fs(tmp_path)
    assert splits.train.names == tuple(sorted(LEARNED))
    assert splits.validation.names == CIFAR_FS_VALIDATION and splits.test.names == CIFAR_FS_TEST
    assert (splits.test["woman"] == FINE.index("woman")).all()


@pytest.mark.parametrize(("read", "counts"), [(cifar_fs, (64, 16, 20)), (fc100, (60, 20, 20))])
def test_a_folder_a_side(tmp_path, write_image, read, counts):
    for side, count in zip(("train", "val", "test"), counts, strict=True):
        for label in range(count):
            write_image(tmp_path / side / f"{side}{label}" / "1.png", label, size=(32, 32))
    assert tuple(map(len, read(tmp_path))) == counts


# ---- CIFAR-100 as published ---------------------------------------------------------------------


@pytest.fixture
def original(tmp_path):
    """An image of each class in train, one in test; the superclass of class c is c // 5."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    coarse = [*(f"super{i}" for i in range(12)), *sorted(FC100_VALIDATION), *sorted(FC100_TEST)]
    meta = {"fine_label_names": list(FINE), "coarse_label_names": coarse}
    (folder / "meta").write_bytes(pickle.dumps(meta, 2))
    for side, order in (("train", range(100)), ("test", range(99, -1, -1))):
        labels = list(order)
        pixels = np.repeat(np.array(labels, np.uint8)[:, None], 3072, 1)
        pixels[:, 1024:2048] += 100
        content = {
            "data": pixels,
            "fine_labels": labels,
            "coarse_labels": [label // 5 for label in labels],
        }
        (folder / side).write_bytes(pickle.dumps(content, 2))
    return folder


def test_cifar_fs_of_the_original(original):
    for place in (original, original.parent):
        splits = cifar_fs(place)
        assert splits.train.names == LEARNED and splits.test.names == CIFAR_FS_TEST
        assert splits.train["class7"].shape == (2, 3, 32, 32)
        assert splits.train["class7"][:, :, 5, 5].tolist() == [[7, 107, 7]] * 2


def test_fc100_of_the_original(original):
    splits = fc100(original)
    assert tuple(map(len, splits)) == (60, 20, 20)
    assert splits.train.names == FINE[:60]
    assert splits.validation.names == FINE[60:80] and splits.test.names == FINE[80:]


def test_an_original_that_is_damaged(original):
    (original / "meta").write_bytes(pickle.dumps({"fine_label_names": list(FINE)}))
    with pytest.raises(ValueError, match="not CIFAR-100 as published: KeyError.'coarse_label"):
        cifar_fs(original)
    (original / "meta").write_bytes(b"cos\nsystem\n(S'x'\ntR.")
    with pytest.raises(ValueError, match="meta cannot be read .* names os.system"):
        fc100(original)


@pytest.mark.parametrize("read", [cifar_fs, fc100])
def test_nothing_there(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="train.pickle"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")


# ---- the published class lists ------------------------------------------------------------------


def test_the_classes_of_cifar_fs(data_folder):
    folder = data_folder / "splits" / "cifar_fs_bertinetto"
    for side, names in (("val", CIFAR_FS_VALIDATION), ("test", CIFAR_FS_TEST)):
        listed = json.loads((folder / f"{side}.json").read_text())
        assert sorted(fine for _, fine in listed) == sorted(names)
    assert len(json.loads((folder / "train.json").read_text())) == 64


def test_the_superclasses_of_fc100(data_folder):
    folder = data_folder / "splits" / "fc100"
    for side, names in (("val", FC100_VALIDATION), ("test", FC100_TEST)):
        assert set(json.loads((folder / f"{side}.json").read_text())) == names
