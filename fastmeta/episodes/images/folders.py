"""Images that people have on disk: a folder a class, or an archive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastmeta.counts import whole_number
from fastmeta.episodes.images.classes import ImageClasses, ImageSplits
from fastmeta.episodes.images.decode import read_image_files
from fastmeta.episodes.images.npz import read_npz
from fastmeta.episodes.images.splits import (
    FRACTIONS,
    ClassSplit,
    read_class_split,
    split_classes,
)

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
}  # fmt: skip
SIDE_NAMES = (("train",), ("val", "valid", "validation"), ("test",))


def read_images(
    path: str | Path,
    *,
    channels: int = 3,
    image_size: int | None = None,
    split: str | Path | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> ImageSplits:
    """Read a folder with a folder a class, or an ``.npz`` archive (`read_npz`).

    Where the folder has folders `train`, `test` and perhaps `val` (or `validation`), those hold
    the classes of each side. Otherwise `split` or, without it, `split_classes` tells.

    Args:
        path: the folder or the archive.
        channels: 1 (grey) or 3; an archive has its own.
        image_size: height and width to resize to, or None: they must all be of one size already;
            an archive has its own.
        split: JSON file as `read_class_split` takes it.
        fractions: of the classes for train, validation and test.
        seed: of the split.

    Raises:
        ValueError: `image_size` below 1, a file that is no image, a class without images, sizes
            that differ, classes that the split names and `path` lacks, or a split that leaves a
            side empty.
        OSError: `path` or a file in it cannot be opened.
    """
    if image_size is not None:
        image_size = whole_number("image_size", image_size)
    path = Path(path)
    if path.is_file():
        classes = read_npz(path)
        return _choose(classes.names, split, fractions, seed).of(classes)
    folders = class_folders(path)
    sides = side_folders(path)
    if sides is None:
        names = _choose(tuple(folders), split, fractions, seed)
        files = [class_files(path, side) for side in names]
    elif split is None:
        files = [class_files(side) if side else {} for side in sides]
    else:
        raise ValueError(f"{path} has folders {', '.join(folders)}, which are a split already")
    return read_sides(files, channels=channels, image_size=image_size)


def read_sides(
    files: Sequence[Mapping[str, Sequence[Path]]], *, channels: int, image_size: int | None
) -> ImageSplits:
    """Read the files of each class of train, validation (there may be none) and test."""

    def read(side: Mapping[str, Sequence[Path]]) -> ImageClasses:
        return read_image_files(side, channels=channels, image_size=image_size)

    train = read(files[0])
    return ImageSplits(train, read(files[1]) if files[1] else train.select(()), read(files[2]))


def class_folders(folder: Path) -> dict[str, Path]:
    """The folders inside a folder by name, sorted; hidden ones are passed over.

    Raises:
        ValueError: there is none.
        OSError: `folder` cannot be opened.
    """
    found = {
        entry.name: entry
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not found:
        raise ValueError(f"{folder} has no folders: a folder with images is needed for each class")
    return found


def class_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, list[Path]]:
    """The image files of these classes (of all by default), each a folder inside `folder`.

    Raises:
        ValueError: a class without a folder, or without images.
        OSError: `folder` cannot be opened.
    """
    folders = class_folders(folder)
    chosen = tuple(folders if names is None else names)
    missing = [name for name in chosen if name not in folders]
    if missing:
        raise ValueError(
            f"{folder} has no folder {missing[0]!r}, nor {len(missing) - 1} other of the "
            f"{len(chosen)} classes wanted"
        )
    return {name: _images_in(folders[name]) for name in chosen}


def side_folders(folder: Path) -> tuple[Path, Path | None, Path] | None:
    """The folders for train, validation (if there is one) and test, or None."""
    train, validation, test = (
        next((folder / name for name in names if (folder / name).is_dir()), None)
        for names in SIDE_NAMES
    )
    return None if train is None or test is None else (train, validation, test)


def _images_in(folder: Path) -> list[Path]:
    """The image files inside a folder, sorted; other and hidden files are passed over."""
    files = [
        entry
        for entry in sorted(folder.iterdir())
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
    ]
    if not files:
        raise ValueError(f"{folder} has no images")
    return files


def _choose(
    names: Sequence[str],
    split: str | Path | None,
    fractions: tuple[float, float, float],
    seed: int,
) -> ClassSplit:
    if split is not None:
        return read_class_split(split)
    return split_classes(names, fractions=fractions, seed=seed)
