"""The forms in which several data sets are found on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastmeta.episodes.images.classes import ImageSplits
from fastmeta.episodes.images.folders import class_files, class_folders, read_sides, side_folders
from fastmeta.episodes.images.pickled import find_pickles, read_pickled_images
from fastmeta.episodes.images.splits import published_split


def from_pickles(folder: Path, patterns: Iterable[str], image_size: int) -> ImageSplits | None:
    """Read the first of these sets of pickles that is there; None if none is.

    Raises:
        ValueError: a file is damaged, or its images are of another size.
        OSError: `folder` or a file cannot be opened.
    """
    files = next(filter(None, (find_pickles(folder, pattern) for pattern in patterns)), None)
    if files is None:
        return None
    splits = ImageSplits(*map(read_pickled_images, files))
    for file, classes in zip(files, splits, strict=True):
        size = tuple(classes.images.shape[1:])
        if size != (3, image_size, image_size):
            raise ValueError(f"{file} has images {size}, not {(3, image_size, image_size)}")
    return splits


def from_side_folders(folder: Path, image_size: int) -> ImageSplits | None:
    """Read folders `train`, `val` and `test` with a folder a class; None if they are not there."""
    sides = side_folders(folder)
    if sides is None:
        return None
    files = [class_files(side) if side else {} for side in sides]
    return read_sides(files, channels=3, image_size=image_size)


def from_class_folders(
    folder: Path, validation: Sequence[str], test: Sequence[str], image_size: int
) -> ImageSplits | None:
    """Read a folder a class, split as published; None if the first test class has none."""
    if not (folder / test[0]).is_dir():
        return None
    split = published_split(tuple(class_folders(folder)), validation, test)
    files = [class_files(folder, side) for side in split]
    return read_sides(files, channels=3, image_size=image_size)
