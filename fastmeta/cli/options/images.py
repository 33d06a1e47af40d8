"""`fastmeta train` on images: Omniglot and its like, folders, npz files."""

from __future__ import annotations

import argparse
from typing import Any

from fastmeta.cli.options.algorithms import CLASSIFIERS, defaults_by_algorithm
from fastmeta.cli.options.common import add_command
from fastmeta.cli.options.kinds import positive, ways
from fastmeta.cli.options.metric import add_evaluation_tasks, add_metric
from fastmeta.cli.options.training import add_training

MODELS = ("conv4", "conv4-stride", "resnet12", "omniglot-fc")

# MAML with inner rates that are learned, one a tensor: on Omniglot and Caltech-101 it learned in a
# third of the meta-steps that one fixed rate takes. Ten minutes on two cores are enough.
DRAWINGS: dict[str, Any] = dict(
    ways=5, shots=1, queries=5, rotations="classes", model="conv4", algorithm="maml",
    inner_lr=0.4, inner_steps=1, learn_inner_lr="tensor", per_step_lr=False, meta_batch=8,
    steps=6000, lr=3e-3, schedule="cosine", weight_decay=0.0, validate_every=500,
    validation_tasks=200, eval_ways=None, eval_shots=None,
)  # fmt: skip
PHOTOS: dict[str, Any] = {
    **DRAWINGS, "shots": 5, "rotations": "none", "inner_lr": 0.1, "meta_batch": 4, "steps": 2000,
}  # fmt: skip
# The paper's for mini-ImageNet, but for the learned rates and the schedule. Its 0.01 is 0.05 here:
# its code divides the loss of a task by the shots, not by the samples.
BENCHMARKS: dict[str, Any] = {
    **PHOTOS, "shots": 1, "queries": 15, "inner_lr": 0.05, "inner_steps": 5, "steps": 60_000,
    "lr": 1e-3, "validate_every": 1000,
}  # fmt: skip

# Tasks of many ways and one query teach most for the images they take: a step is 120 drawings,
# see docs/notes/metric-learners.md. Judged by 20 ways, where the best differ more than by five.
METRIC_DRAWINGS: dict[str, Any] = dict(
    ways=60, shots=1, queries=1, eval_ways=20, eval_shots=1, meta_batch=1, steps=1600, lr=3e-3,
    schedule="cosine", validate_every=800, validation_tasks=50,
)  # fmt: skip
# As Snell et al. for mini-ImageNet: 20 ways where tasks will have 5, the shots of the tasks.
METRIC_PHOTOS: dict[str, Any] = dict(
    ways=20, queries=5, eval_ways=5, meta_batch=1, steps=2000, lr=1e-3, schedule="cosine",
    validate_every=500,
)  # fmt: skip
METRIC_BENCHMARKS: dict[str, Any] = dict(
    ways=20, queries=15, eval_ways=5, meta_batch=1, steps=20_000, lr=1e-3, schedule="halving",
)  # fmt: skip


def add_image_sources(sources: Any) -> None:
    """Add each of them."""
    _add_omniglot(sources)
    _add_published(sources, "cifar-fs", "CIFAR-FS: 100 classes of 32x32 photos (Bertinetto 2019)")
    _add_published(sources, "fc100", "FC100: the same, split by superclasses (Oreshkin 2018)")
    _add_published(
        sources, "mini-imagenet", "mini-ImageNet: 100 classes of 84x84 photos (Ravi 2017)"
    )
    _add_folder(sources)
    _add_npz(sources)


def _add_omniglot(sources: Any) -> None:
    about = "1623 handwritten characters, each drawn by 20 people (Lake 2015)"
    source = add_command(sources, "omniglot", about)
    group = source.add_argument_group("images")
    group.add_argument(
        "--data",
        metavar="PATH",
        help="omniglot_28.npz, or a folder with it, with the published zips or with what they hold "
        "(default: a cache folder, where the zips are downloaded to)",
    )
    group.add_argument(
        "--split",
        choices=("vinyals", "first-1200", "background"),
        default="vinyals",
        help="vinyals: 1028 characters to learn from, 172 for validation, 423 for test; "
        "first-1200: no validation; background: the set meant for it, without any character of the "
        "one-shot runs (default: %(default)s)",
    )
    _add_images(source, "omniglot", DRAWINGS, METRIC_DRAWINGS)


def _add_published(sources: Any, name: str, about: str) -> None:
    source = add_command(sources, name, about)
    group = source.add_argument_group("images")
    group.add_argument(
        "--data", metavar="DIR", required=True, help="folder with one of the layouts in common use"
    )
    _add_images(source, name, BENCHMARKS, METRIC_BENCHMARKS)


def _add_folder(sources: Any) -> None:
    source = add_command(sources, "images", "a folder with a folder of images for each class")
    source.add_argument(
        "data",
        metavar="DIR",
        help="folder with a folder a class; or with folders train, val and test, which have these",
    )
    group = source.add_argument_group("images")
    group.add_argument(
        "--channels",
        type=positive,
        choices=(1, 3),
        default=3,
        help="1: grey, 3: colour (default: %(default)s)",
    )
    group.add_argument(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="resize to this height and width (default: they are all of one size already)",
    )
    _add_split(group)
    _add_images(source, "images", PHOTOS, METRIC_PHOTOS)


def _add_npz(sources: Any) -> None:
    source = add_command(sources, "npz", "a NumPy archive of images and labels")
    source.add_argument(
        "data",
        metavar="FILE",
        help="npz file: images uint8 [n, H, W] or [n, H, W, C], labels [n], perhaps names; or "
        "images [classes, n, H, W] or [classes, n, H, W, C] and names [classes]",
    )
    _add_split(source.add_argument_group("images"))
    _add_images(source, "npz", PHOTOS, METRIC_PHOTOS)


def _add_split(group: Any) -> None:
    group.add_argument(
        "--split",
        dest="split_file",
        metavar="JSON",
        help='names of the classes, {"train": [...], "val": [...], "test": [...]} (default: '
        "64, 16 and 20 %% of them)",
    )
    group.add_argument(
        "--split-seed",
        type=int,
        default=0,
        help="without --split: another choice; classes are ordered by the SHA-256 of 'seed:name' "
        "(default: %(default)s)",
    )


def _add_images(source: Any, name: str, gradient: dict[str, Any], metric: dict[str, Any]) -> None:
    gradient = {**gradient, "checkpoint": f"fastmeta-{name}.safetensors"}
    source.set_defaults(split_file=None)
    source.by_algorithm = defaults_by_algorithm(gradient, metric)
    _add_tasks(source)
    add_evaluation_tasks(source)
    _add_network(source)
    add_metric(source)
    add_training(source, gradient, CLASSIFIERS)


def _add_tasks(source: argparse.ArgumentParser) -> None:
    group = source.add_argument_group("tasks")
    group.add_argument("--ways", type=ways, help="classes a task (default: %(default)s)")
    for name, about in (("--shots", "support"), ("--queries", "query")):
        group.add_argument(
            name, type=positive, help=f"{about} images a class (default: %(default)s)"
        )
    group.add_argument(
        "--rotations",
        choices=("none", "classes", "random"),
        help="by quarter turns; classes: a class turned is another class; random: a class of a "
        "task is turned by one of the four (default: %(default)s)",
    )


def _add_network(source: argparse.ArgumentParser) -> None:
    group = source.add_argument_group("network")
    group.add_argument(
        "--model",
        choices=MODELS,
        help="conv4 halves the image by max-pooling; conv4-stride by strides, and ends in the mean "
        "over the image, as MAML's own for Omniglot; omniglot-fc has no convolutions "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--filters",
        type=positive,
        help="of conv4, or of the first block of resnet12, whose others grow alike "
        "(default: 32, for protonet, matchingnet and r2d2 64; resnet12: 64)",
    )
