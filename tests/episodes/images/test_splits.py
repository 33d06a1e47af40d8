import json

import pytest

from fastmeta.episodes import read_class_split, split_classes

NAMES = tuple(f"c{i}" for i in range(25))


def test_the_split_depends_on_names_and_seed_only():
    split = split_classes(NAMES)
    assert tuple(map(len, split)) == (16, 4, 5)
    assert sorted(name for side in split for name in side) == sorted(NAMES)
    assert split_classes(NAMES[::-1] + NAMES) == split
    assert split_classes(NAMES, seed=1) != split
    # Written down: another version must not move classes from one side to another.
    assert split.test == ("c14", "c19", "c16", "c21", "c17")


def test_a_side_can_be_left_out():
    split = split_classes(NAMES, fractions=(0.8, 0.0, 0.2))
    assert tuple(map(len, split)) == (20, 0, 5)


@pytest.mark.parametrize(
    ("names", "fractions", "message"),
    [
        (NAMES, (0.5, 0.2, 0.2), "sum to 1"),
        (NAMES, (1.2, -0.2, 0.0), "negative"),
        (NAMES[:2], (0.6, 0.2, 0.2), "2 classes cannot be split .* no validation class"),
    ],
)
def test_a_split_that_cannot_be(names, fractions, message):
    with pytest.raises(ValueError, match=message):
        split_classes(names, fractions=fractions)


def test_a_split_from_a_file(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"note": "x", "train": ["a", "b"], "val": ["c"], "test": ["d"]}))
    assert read_class_split(path) == (("a", "b"), ("c",), ("d",))
    path.write_text(json.dumps({"train": ["a", "b"], "test": ["d"]}))
    assert read_class_split(path).validation == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be"),
        ('{"train": ["a"]}', "must be"),
        ('{"train": "ab", "test": ["c"]}', "must be"),
        ('{"train": ["a", 1], "test": ["c"]}', "must be"),
        ('{"train": ["a", "c"], "test": ["c"]}', "names the class 'c' twice"),
    ],
)
def test_a_file_that_is_no_split(tmp_path, text, message):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"split.json {message}"):
        read_class_split(path)
