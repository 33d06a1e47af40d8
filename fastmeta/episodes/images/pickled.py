"""The pickles in which CIFAR-FS, FC100 and mini-ImageNet are distributed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta.episodes.images.classes import ImageClasses
from fastmeta.episodes.images.npz import channels_first
from fastmeta.episodes.images.pickles import read_pickle

SIDES = (("train", "train_phase_train"), ("val", "valid", "validation"), ("test",))


def find_pickles(folder: Path, pattern: str) -> tuple[Path, Path, Path] | None:
    """The files of train, validation and test named like `pattern`, in any case, or None.

    Args:
        folder: where to look.
        pattern: file name with ``{}`` for the side.
    """
    files = {entry.name.lower(): entry for entry in folder.iterdir()}
    train, validation, test = (
        next((f for side in names if (f := files.get(pattern.format(side).lower()))), None)
        for names in SIDES
    )
    if train is None or validation is None or test is None:
        return None
    return train, validation, test


def read_pickled_images(path: Path) -> ImageClasses:
    """Read a pickled dict, in either of two forms.

    - ``data`` uint8 [n, H, W, C] and ``labels`` [n];
    - ``image_data`` uint8 [n, H, W, C] and ``class_dict``: row numbers by class name.

    Raises:
        ValueError: the file is not of either form, is damaged, or names more than data.
        OSError: it cannot be opened.
    """
    content = read_pickled_dict(path)
    try:
        if "data" in content and "labels" in content:
            images = channels_first(_array(content["data"]))
            return ImageClasses.from_labels(images, content["labels"])
        if "image_data" in content and isinstance(content.get("class_dict"), Mapping):
            return _from_rows(_array(content["image_data"]), content["class_dict"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    raise ValueError(
        f"{path} has {', '.join(content)}, but data and labels, or image_data and class_dict, "
        "are needed"
    )


def read_pickled_dict(path: Path) -> dict[str, Any]:
    """Return a pickled dict; its keys may be text or, from Python 2, bytes.

    Raises:
        ValueError: the file is no such pickle, is damaged, or names more than data.
        OSError: it cannot be opened.
    """
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, and a dict is needed")
    return {_text(key): value for key, value in content.items()}


def _from_rows(images: np.ndarray, rows_by_class: Mapping[Any, Any]) -> ImageClasses:
    labels = np.full(len(images), -1)
    for label, (name, rows) in enumerate(rows_by_class.items()):
        rows = np.asarray(rows)
        if rows.dtype.kind not in "iu" or not len(rows):
            raise ValueError(f"class {_text(name)!r} has no row numbers")
        if rows.min() < 0 or rows.max() >= len(images):
            raise ValueError(
                f"class {_text(name)!r} has rows {rows.min()} to {rows.max()} "
                f"of {len(images)} images"
            )
        labels[rows] = label
    if (labels < 0).any():
        raise ValueError(f"{(labels < 0).sum()} of {len(images)} images have no class")
    return ImageClasses.from_labels(channels_first(images), labels, [*map(_text, rows_by_class)])


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"images must be an array, not a {type(value).__name__}")
    return value


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
