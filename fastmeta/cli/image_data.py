"""Which images: from options to plain values, and from plain values to episodes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmeta.cli.device import chosen_device
from fastmeta.episodes import (
    ImageClasses,
    ImageEpisodes,
    ImageSplits,
    PixelScale,
    cifar_fs,
    fc100,
    mini_imagenet,
    omniglot,
    read_images,
)

# What a source is read with, beside its place on disk.
SETTINGS = {
    "omniglot": ("split",),
    "cifar-fs": (),
    "fc100": (),
    "mini-imagenet": (),
    "images": ("channels", "image_size", "split_seed"),
    "npz": ("split_seed",),
}
EPISODE = ("ways", "shots", "queries", "rotations", "eval_ways", "eval_shots")


@dataclass(frozen=True)
class ImageData:
    """Images with their split, and how episodes are drawn from them.

    Attributes:
        splits: the images.
        told: plain values that say which images and which episodes.
        places: where they lie; plain values too.
    """

    splits: ImageSplits
    told: dict[str, Any]
    places: dict[str, Any]

    def episodes(
        self, side: str, classes: ImageClasses, seed: int, *, ways: int, shots: int, queries: int
    ) -> ImageEpisodes:
        """Return episodes of the classes of one side of the split.

        Raises:
            ValueError: too few classes, or too few images of one.
        """
        turns = self.told["rotations"]
        try:
            return ImageEpisodes(
                classes,
                ways=ways,
                shots=shots,
                queries=queries,
                rotations=None if turns == "none" else turns,
                scale=self.scale,
                seed=seed,
            )
        except ValueError as error:
            raise ValueError(f"{side}: {error}") from error

    @property
    def scale(self) -> PixelScale:
        """How bytes become numbers."""
        return PixelScale(**self.told["scale"])


def data_of_options(options: argparse.Namespace) -> ImageData:
    """Read the images that the options name.

    Raises:
        ValueError, OSError: what the sources say of their files.
    """
    told = {"kind": options.source}
    told |= {name: getattr(options, name) for name in SETTINGS[options.source]}
    told |= {name: getattr(options, name) for name in EPISODE}
    places = {"data": _absolute(options.data), "split_file": _absolute(options.split_file)}
    splits = _read(told, places)
    told |= {
        "scale": _scale(splits.train),
        "fingerprint": [side.fingerprint() for side in splits],
    }
    return ImageData(splits, told, places)


def data_of_checkpoint(
    told: Mapping[str, Any], places: Mapping[str, Any], moved_to: str | None
) -> ImageData:
    """Read the images that a training read.

    Args:
        told, places: as that training had them.
        moved_to: where the data is now, if it is not where it was.

    Raises:
        ValueError: these are other images, or what the sources say of their files.
        OSError: they are not there.
    """
    places = {**places, "data": _absolute(moved_to) or places["data"]}
    splits = _read(told, places)
    if [side.fingerprint() for side in splits] != told["fingerprint"]:
        where = places["data"] or "what was downloaded"
        raise ValueError(f"{where} is not what this checkpoint was trained on")
    return ImageData(splits, dict(told), places)


def _read(told: Mapping[str, Any], places: Mapping[str, Any]) -> ImageSplits:
    return ImageSplits(*(side.to(chosen_device()) for side in _read_here(told, places)))


def _read_here(told: Mapping[str, Any], places: Mapping[str, Any]) -> ImageSplits:
    kind, path = told["kind"], places["data"]
    if kind == "omniglot":
        return omniglot(path, split=told["split"])
    published = {"cifar-fs": cifar_fs, "fc100": fc100, "mini-imagenet": mini_imagenet}
    if kind in published:
        return published[kind](path)
    if kind == "npz" and not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    how = {name: told[name] for name in ("channels", "image_size") if name in told}
    return read_images(path, **how, split=places["split_file"], seed=told["split_seed"])


def _scale(classes: ImageClasses) -> dict[str, list[float]]:
    """Drawings go to [0, 1]; colours are standardised over the images to learn from."""
    if classes.images.shape[1] == 1:
        return {"mean": [0.0], "std": [1.0]}
    mean, std = classes.mean_and_std()
    # A channel that is the same everywhere has no scale.
    return {"mean": list(mean), "std": [value or 1.0 for value in std]}


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())
