"""CIFAR-FS (Bertinetto et al. 2019) and FC100 (Oreshkin et al. 2018), both made of CIFAR-100."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastmeta.episodes.images.classes import ImageClasses, ImageSplits
from fastmeta.episodes.images.layouts import from_class_folders, from_pickles, from_side_folders
from fastmeta.episodes.images.pickled import read_pickled_dict
from fastmeta.episodes.images.splits import check_counts, published_split

IMAGE_SIZE = 32
CIFAR_FS_COUNTS = (64, 16, 20)
CIFAR_FS_VALIDATION = (
    "beaver", "otter", "flatfish", "shark", "lamp", "television", "beetle", "butterfly", "sea",
    "camel", "cattle", "crab", "crocodile", "maple_tree", "motorcycle", "tractor",
)  # fmt: skip
CIFAR_FS_TEST = (
    "whale", "poppy", "rose", "sweet_pepper", "telephone", "bed", "table", "wardrobe", "leopard",
    "plain", "chimpanzee", "fox", "snail", "worm", "baby", "man", "bicycle", "pickup_truck",
    "rocket", "woman",
)  # fmt: skip
# Superclasses of five classes each.
FC100_COUNTS = (60, 20, 20)
FC100_VALIDATION = {
    "large_carnivores", "large_omnivores_and_herbivores", "non-insect_invertebrates",
    "small_mammals",
}  # fmt: skip
FC100_TEST = {"aquatic_mammals", "insects", "medium_mammals", "people"}
ORIGINAL = "cifar-100-python"


def cifar_fs(path: str | Path) -> ImageSplits:
    """Read CIFAR-FS: 64, 16 and 20 classes, images uint8 [n, 3, 32, 32].

    `path` is a folder with one of:

    - ``CIFAR_FS_{train,val,test}.pickle``;
    - folders ``train``, ``val``, ``test`` with a folder of images a class;
    - a folder a class, in it or in its folder ``data``;
    - CIFAR-100 in its original form, ``cifar-100-python``, or what is in that.

    Raises:
        ValueError: a file is damaged, or the classes are not those of CIFAR-FS.
        OSError: none of these is there, or a file cannot be opened.
    """
    folder = Path(path)
    splits = from_pickles(folder, ["CIFAR_FS_{}.pickle"], IMAGE_SIZE) or from_side_folders(
        folder, IMAGE_SIZE
    )
    if splits is None and (original := _original(folder)):
        fine, _ = _read_cifar100(original)
        splits = published_split(fine.names, CIFAR_FS_VALIDATION, CIFAR_FS_TEST).of(fine)
    for pictures in (folder / "data", folder):
        splits = splits or from_class_folders(
            pictures, CIFAR_FS_VALIDATION, CIFAR_FS_TEST, IMAGE_SIZE
        )
    if splits is None:
        raise FileNotFoundError(
            f"there is no CIFAR-FS in {folder}: it needs CIFAR_FS_train.pickle, "
            f"CIFAR_FS_val.pickle and CIFAR_FS_test.pickle, a folder of images a class, or "
            f"{ORIGINAL}"
        )
    return check_counts(splits, CIFAR_FS_COUNTS, "CIFAR-FS", folder)


def fc100(path: str | Path) -> ImageSplits:
    """Read FC100: 60, 20 and 20 classes of superclasses of their own, uint8 [n, 3, 32, 32].

    `path` is a folder with one of:

    - ``FC100_{train,val,test}.pickle``;
    - folders ``train``, ``val``, ``test`` with a folder of images a class;
    - CIFAR-100 in its original form, ``cifar-100-python``, or what is in that.

    Raises:
        ValueError: a file is damaged, or the classes are not those of FC100.
        OSError: none of these is there, or a file cannot be opened.
    """
    folder = Path(path)
    splits = from_pickles(folder, ["FC100_{}.pickle"], IMAGE_SIZE) or from_side_folders(
        folder, IMAGE_SIZE
    )
    if splits is None and (original := _original(folder)):
        fine, superclass = _read_cifar100(original)
        validation, test = (
            [name for name in fine.names if superclass[name] in wanted]
            for wanted in (FC100_VALIDATION, FC100_TEST)
        )
        splits = published_split(fine.names, validation, test).of(fine)
    if splits is None:
        raise FileNotFoundError(
            f"there is no FC100 in {folder}: it needs FC100_train.pickle, FC100_val.pickle and "
            f"FC100_test.pickle, folders train, val and test, or {ORIGINAL}"
        )
    return check_counts(splits, FC100_COUNTS, "FC100", folder)


def _original(folder: Path) -> Path | None:
    """The folder with the files `train`, `test` and `meta` of CIFAR-100."""
    for candidate in (folder, folder / ORIGINAL):
        if all((candidate / name).is_file() for name in ("train", "test", "meta")):
            return candidate
    return None


def _read_cifar100(folder: Path) -> tuple[ImageClasses, dict[str, str]]:
    """Read the images of train and test together, and the superclass of each class."""
    train, test, meta = (read_pickled_dict(folder / name) for name in ("train", "test", "meta"))
    try:
        pixels = np.concatenate([part["data"] for part in (train, test)])
        fine = np.concatenate([part["fine_labels"] for part in (train, test)])
        coarse = np.concatenate([part["coarse_labels"] for part in (train, test)])
        fine_names, coarse_names = meta["fine_label_names"], meta["coarse_label_names"]
        images = torch.from_numpy(pixels.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE))
        classes = ImageClasses.from_labels(images, fine, fine_names)
        pairs = np.unique(np.stack([fine, coarse]), axis=1).T.tolist()
        superclass = {fine_names[f]: coarse_names[c] for f, c in pairs}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{folder} is not CIFAR-100 as published: {error!r}") from error
    return classes, superclass
