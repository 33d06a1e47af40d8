"""Sources of tasks: each has ``sample(n_tasks) -> TaskBatch`` and a state that can be resumed."""

from fastmeta.episodes.csv_table import Table, read_table
from fastmeta.episodes.images.cifar import cifar_fs, fc100
from fastmeta.episodes.images.classes import ImageClasses, ImageSplits
from fastmeta.episodes.images.episodes import ImageEpisodes
from fastmeta.episodes.images.folders import read_images
from fastmeta.episodes.images.mini_imagenet import mini_imagenet
from fastmeta.episodes.images.npz import read_npz
from fastmeta.episodes.images.omniglot import omniglot, omniglot_characters
from fastmeta.episodes.images.omniglot_split import split_omniglot
from fastmeta.episodes.images.one_shot_runs import ONE_SHOT_RUNS, OneShotRun, one_shot_runs
from fastmeta.episodes.images.scale import PixelScale
from fastmeta.episodes.images.splits import ClassSplit, read_class_split, split_classes
from fastmeta.episodes.sinusoid import Sinusoid
from fastmeta.episodes.table import (
    Standardisation,
    TableEpisodes,
    check_rows,
    choose_support_norm,
    split_tasks,
    tasks_with_rows,
)
from fastmeta.episodes.vectors import VectorClasses, VectorEpisodes, read_vectors

__all__ = [
    "ONE_SHOT_RUNS",
    "ClassSplit",
    "ImageClasses",
    "ImageEpisodes",
    "ImageSplits",
    "OneShotRun",
    "PixelScale",
    "Sinusoid",
    "Standardisation",
    "Table",
    "TableEpisodes",
    "VectorClasses",
    "VectorEpisodes",
    "check_rows",
    "choose_support_norm",
    "cifar_fs",
    "fc100",
    "mini_imagenet",
    "omniglot",
    "omniglot_characters",
    "one_shot_runs",
    "read_class_split",
    "read_images",
    "read_npz",
    "read_table",
    "read_vectors",
    "split_classes",
    "split_omniglot",
    "split_tasks",
    "tasks_with_rows",
]


def __dir__() -> list[str]:
    return [*__all__]
