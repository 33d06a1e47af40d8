"""mini-ImageNet (Vinyals et al. 2016) with the split of Ravi and Larochelle 2017."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from fastmeta.counts import whole_number
from fastmeta.episodes.images.classes import ImageSplits
from fastmeta.episodes.images.folders import read_sides
from fastmeta.episodes.images.layouts import from_class_folders, from_pickles, from_side_folders
from fastmeta.episodes.images.splits import check_counts, read_json

IMAGE_SIZE = 84
COUNTS = (64, 16, 20)
VALIDATION = (
    "n01855672", "n02091244", "n02114548", "n02138441", "n02174001", "n02950826", "n02971356",
    "n02981792", "n03075370", "n03417042", "n03535780", "n03584254", "n03770439", "n03773504",
    "n03980874", "n09256479",
)  # fmt: skip
TEST = (
    "n01930112", "n01981276", "n02099601", "n02110063", "n02110341", "n02116738", "n02129165",
    "n02219486", "n02443484", "n02871525", "n03127925", "n03146219", "n03272010", "n03544143",
    "n03775546", "n04146614", "n04149813", "n04418357", "n04522168", "n07613480",
)  # fmt: skip
PICKLES = (
    "mini-imagenet-cache-{}.pkl",
    "miniImageNet_category_split_{}.pickle",
    "mini_imagenet_{}.pickle",
)
CSV_FILES = ("train.csv", "val.csv", "test.csv")
JSON_FILES = ("base.json", "val.json", "novel.json")


def mini_imagenet(path: str | Path, *, image_size: int = IMAGE_SIZE) -> ImageSplits:
    """Read mini-ImageNet: 64, 16 and 20 classes, images uint8 [n, 3, image_size, image_size].

    `path` is a folder with one of:

    - ``mini-imagenet-cache-{train,val,test}.pkl``;
    - ``miniImageNet_category_split_{train_phase_train,val,test}.pickle``;
    - ``train.csv``, ``val.csv``, ``test.csv`` (columns filename, label) and a folder ``images``;
    - ``base.json``, ``val.json``, ``novel.json`` (image_names, image_labels, label_names) with the
      images inside the folder;
    - folders ``train``, ``val``, ``test`` with a folder of images a class;
    - a folder of images a class, named by its synset.

    Raises:
        ValueError: `image_size` is below 1, a file is damaged, or the classes are not 64, 16 and
            20.
        OSError: none of these is there, or a file cannot be opened.
    """
    image_size = whole_number("image_size", image_size)
    folder = Path(path)
    splits = (
        from_pickles(folder, PICKLES, image_size)
        or _from_lists(folder, image_size)
        or from_side_folders(folder, image_size)
        or from_class_folders(folder, VALIDATION, TEST, image_size)
    )
    if splits is None:
        raise FileNotFoundError(
            f"there is no mini-ImageNet in {folder}: it needs mini-imagenet-cache-train.pkl, "
            "-val.pkl and -test.pkl, train.csv, val.csv and test.csv with images, or a folder of "
            "images a class"
        )
    return check_counts(splits, COUNTS, "mini-ImageNet", folder)


def _from_lists(folder: Path, image_size: int) -> ImageSplits | None:
    """Read the images that three CSV or JSON files list; None if these are not there."""
    for names, read_list in ((CSV_FILES, _listed_in_csv), (JSON_FILES, _listed_in_json)):
        if all((folder / name).is_file() for name in names):
            files = [_by_class(folder / name, read_list(folder / name)) for name in names]
            return read_sides(files, channels=3, image_size=image_size)
    return None


def _listed_in_csv(path: Path) -> Iterable[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    if not rows or not {"filename", "label"} <= rows[0].keys():
        raise ValueError(f"{path} must have columns filename and label, and rows")
    return [(f"images/{row['filename']}", row["label"]) for row in rows]


def _listed_in_json(path: Path) -> Iterable[tuple[str, str]]:
    content = read_json(path)
    lists = ("image_names", "image_labels")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in lists):
        raise ValueError(f"{path} must have lists image_names and image_labels")
    names, labels = (content[key] for key in lists)
    if len(names) != len(labels):
        raise ValueError(f"{path} lists {len(names)} image_names and {len(labels)} image_labels")
    return [(str(name), str(label)) for name, label in zip(names, labels, strict=True)]


def _by_class(path: Path, listed: Iterable[tuple[str, str]]) -> dict[str, list[Path]]:
    """Sort the files that a list names by class; they must lie beside the list, or deeper."""
    folder = path.parent.resolve()
    files: dict[str, list[Path]] = {}
    for name, label in listed:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise ValueError(f"{path} lists {name!r}, which lies outside {folder}")
        files.setdefault(label, []).append(file)
    return files
