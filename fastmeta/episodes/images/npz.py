"""Images in a NumPy archive."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmeta.episodes.images.classes import ImageClasses

DAMAGE = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def read_arrays(path: str | Path, required: Collection[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file; objects (pickles) in it are refused.

    Raises:
        ValueError: the file is no such archive, is damaged, or lacks an array.
        OSError: it cannot be opened.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is one array, not an archive")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as an npz archive: {error}") from error
    missing = [name for name in required if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no array {missing[0]!r}; it has {', '.join(arrays)}")
    return arrays


def read_npz(path: str | Path) -> ImageClasses:
    """Read images from an ``.npz`` file, in either of two forms.

    - ``images`` uint8 [n, H, W] or [n, H, W, C], ``labels`` [n] integers, and perhaps ``names``,
      one for each label;
    - ``images`` uint8 [classes, n, H, W] or [classes, n, H, W, C], as many of each class, and
      ``names`` [classes]. There is no array ``labels`` then.

    Raises:
        ValueError: the file is not of either form or is damaged.
        OSError: it cannot be opened.
    """
    arrays = read_arrays(path, required=["images"])
    images, names = arrays["images"], arrays.get("names")
    labels = arrays.get("labels")
    try:
        if labels is None:
            if images.ndim not in (4, 5) or names is None or names.shape != images.shape[:1]:
                raise ValueError("without labels, images [classes, n, H, W] need a name each")
            labels = np.arange(len(images)).repeat(images.shape[1])
            images = images.reshape(-1, *images.shape[2:])
        return ImageClasses.from_labels(
            channels_first(images), labels, None if names is None else names.tolist()
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def channels_first(images: np.ndarray) -> Tensor:
    """Return [n, H, W] or [n, H, W, C] as a tensor [n, C, H, W].

    Raises:
        ValueError: another shape, or images that are not uint8.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"images must be uint8 [n, H, W] or [n, H, W, C], not {images.dtype} "
            f"{list(images.shape)}"
        )
    stacked = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    return torch.from_numpy(np.ascontiguousarray(stacked))
