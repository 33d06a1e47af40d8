import numpy as np
import pytest
import torch

from fastmeta.episodes import ImageClasses


def bytes_of(*values):
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)


def test_from_tensors_by_class():
    classes = ImageClasses.of({"a": bytes_of(1, 2, 3), "b": bytes_of(4)})
    assert len(classes) == 2 and classes.names == ("a", "b")
    assert classes.offsets.tolist() == [0, 3, 4] and classes.sizes.tolist() == [3, 1]
    assert classes["a"].flatten().tolist() == [1, 2, 3] and classes["b"].flatten().tolist() == [4]
    assert "2 classes of 1 to 3 images, 1x1x1" in repr(classes)


def test_from_labels_in_any_order():
    labels = np.array([2, 0, 2, 0, 3])
    classes = ImageClasses.from_labels(bytes_of(1, 2, 3, 4, 5), labels, ["x", "y", "z", "w"])
    assert classes.names == ("x", "z", "w")
    assert classes.images.flatten().tolist() == [2, 4, 1, 3, 5]
    assert ImageClasses.from_labels(bytes_of(1, 2), [7, 3]).names == ("3", "7")


def test_select_keeps_the_order_asked_for(make_classes):
    classes = make_classes([2, 3, 4])
    chosen = classes.select(["class 2", "class 0"])
    assert chosen.names == ("class 2", "class 0") and chosen.sizes.tolist() == [4, 2]
    assert torch.equal(chosen["class 2"], classes["class 2"])
    none = classes.select([])
    assert len(none) == 0 and none.images.shape == (0, 1, 4, 4)


def test_mean_and_std(make_classes):
    classes = make_classes([3, 5], channels=3)
    classes.images[:, 1] = 255 - classes.images[:, 0]
    mean, std = classes.mean_and_std()
    values = classes.images.to(torch.float64).div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(values.mean(1).tolist(), abs=1e-12)
    assert std == pytest.approx(values.std(1, correction=0).tolist(), abs=1e-12)


def test_the_fingerprint_tells_names_sizes_and_pixels(make_classes):
    classes = make_classes([2, 2])
    same = make_classes([2, 2])
    assert classes.fingerprint() == same.fingerprint()
    same.images[0, 0, 3, 3] += 1
    others = (same, make_classes([2, 2], size=5), classes.select(["class 1", "class 0"]))
    assert len({classes.fingerprint(), *(other.fingerprint() for other in others)}) == 4


@pytest.mark.parametrize(
    ("images", "offsets", "names", "error"),
    [
        (torch.zeros(2, 1, 1, 1), [0, 2], ("a",), "uint8"),
        (bytes_of(1, 2).squeeze(1), [0, 2], ("a",), "n, C, H, W"),
        (bytes_of(1, 2), [0, 2], ("a", "b"), "offsets"),
        (bytes_of(1, 2), [0, 3], ("a",), "2 images"),
        (bytes_of(1, 2), [0, 2, 2], ("a", "b"), "class 'b' has 0 images"),
        (bytes_of(1, 2), [0, 1, 2], ("a", "a"), "'a' is named twice"),
    ],
)
def test_what_is_no_set_of_classes(images, offsets, names, error):
    with pytest.raises((TypeError, ValueError), match=error):
        ImageClasses(images, torch.tensor(offsets), names)


@pytest.mark.parametrize(
    ("labels", "names", "error"),
    [
        ([0, 1], None, "3 integers"),
        ([0.0, 1.0, 2.0], None, "3 integers"),
        ([0, -1, 0], None, "not negative"),
        ([0, 1, 2], ["a", "b"], r"in 0\.\.1"),
    ],
)
def test_wrong_labels(labels, names, error):
    with pytest.raises(ValueError, match=error):
        ImageClasses.from_labels(bytes_of(1, 2, 3), labels, names)


def test_unknown_classes(make_classes):
    with pytest.raises(ValueError, match="no class 'x' among 1"):
        make_classes([2])["x"]
    with pytest.raises(ValueError, match="named twice"):
        make_classes([2]).select(["class 0", "class 0"])
    with pytest.raises(ValueError, match="no classes"):
        ImageClasses.of({})
    with pytest.raises(ValueError, match="no images"):
        make_classes([2]).select([]).mean_and_std()
