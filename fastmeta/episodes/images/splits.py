"""Which classes are for training, validation and test, where no publication says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastmeta.episodes.images.classes import ImageClasses, ImageSplits

FRACTIONS = (0.64, 0.16, 0.20)
SPLIT_KEYS = ("train", "val", "test")


class ClassSplit(NamedTuple):
    """Names of the classes of each side."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def of(self, classes: ImageClasses) -> ImageSplits:
        """The images of each side, in the order of the names."""
        return ImageSplits(*(classes.select(names) for names in self))


def published_split(
    names: Sequence[str], validation: Sequence[str], test: Sequence[str]
) -> ClassSplit:
    """These classes for validation and test; the others of `names` are for training."""
    held_out = {*validation, *test}
    train = tuple(name for name in names if name not in held_out)
    return ClassSplit(train, tuple(validation), tuple(test))


def check_counts(
    splits: ImageSplits, counts: tuple[int, int, int], title: str, path: Path
) -> ImageSplits:
    """The splits themselves, or ValueError if they have not so many classes."""
    found = tuple(map(len, splits))
    if found != counts:
        raise ValueError(
            f"{path} has {found[0]}, {found[1]} and {found[2]} classes for train, validation and "
            f"test, {title} {counts[0]}, {counts[1]} and {counts[2]}"
        )
    return splits


def split_classes(
    names: Sequence[str],
    *,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> ClassSplit:
    """Split classes by name.

    They are ordered by the SHA-256 of ``"{seed}:{name}"``; the first ``round(test * n)`` are for
    test, the next ``round(validation * n)`` for validation, the others for training. So the split
    depends on the names and the seed only.

    Raises:
        ValueError: fractions that are negative or do not sum to 1, or a side that should have
            classes and gets none.
    """
    train, validation, test = fractions
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must not be negative and sum to 1, not {fractions}")
    order = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    n_test, n_validation = round(test * len(order)), round(validation * len(order))
    split = ClassSplit(
        train=tuple(order[n_test + n_validation :]),
        validation=tuple(order[n_test : n_test + n_validation]),
        test=tuple(order[:n_test]),
    )
    for side, fraction, chosen in zip(split._fields, fractions, split, strict=True):
        if fraction > 0 and not chosen:
            raise ValueError(f"{len(order)} classes cannot be split {fractions}: no {side} class")
    return split


def read_class_split(path: str | Path) -> ClassSplit:
    """Read a JSON file ``{"train": [names], "val": [names], "test": [names]}``; val may be absent.

    Raises:
        ValueError: the file is not of that form, or a class is on two sides.
        OSError: it cannot be opened.
    """
    content = read_json(path)
    sides = [content.get(key, []) for key in SPLIT_KEYS] if isinstance(content, dict) else []
    if not sides or not all(map(_is_names, sides)) or not sides[0] or not sides[2]:
        raise ValueError(f'{path} must be {{"train": [names], "val": [names], "test": [names]}}')
    names = [name for side in sides for name in side]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} names the class {twice!r} twice")
    return ClassSplit(*map(tuple, sides))


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def read_json(path: str | Path) -> object:
    """Return what a JSON file holds; ValueError if it is none."""
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
