"""Images of many classes, as bytes, once in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageClasses:
    """Images sorted by class; classes may differ in size.

    Attributes:
        images: uint8 [n, C, H, W], all images of the first class, then those of the second, ...
        offsets: int64 [classes + 1] on the CPU: class c is ``images[offsets[c]:offsets[c + 1]]``.
        names: the classes' names, each once.

    Raises:
        ValueError: shapes or offsets that are not as above, a class without images, a name twice.
        TypeError: images that are not uint8, or offsets that are not int64.
    """

    images: Tensor
    offsets: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype is not torch.uint8:
            raise TypeError(f"images must be uint8, not {self.images.dtype}")
        if self.images.dim() != 4:
            raise ValueError(f"images must be [n, C, H, W], not {list(self.images.shape)}")
        if self.offsets.dtype is not torch.int64 or self.offsets.device.type != "cpu":
            raise TypeError(
                f"offsets must be int64 on the CPU, not {self.offsets.dtype} "
                f"on {self.offsets.device}"
            )
        if self.offsets.shape != (len(self.names) + 1,):
            raise ValueError(
                f"{len(self.names)} names need offsets [{len(self.names) + 1}], "
                f"not {list(self.offsets.shape)}"
            )
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != len(self.images):
            raise ValueError(
                f"offsets go from {int(self.offsets[0])} to {int(self.offsets[-1])}, "
                f"but there are {len(self.images)} images"
            )
        for name, size in zip(self.names, self.sizes.tolist(), strict=True):
            if size < 1:
                raise ValueError(f"class {name!r} has {size} images")
        _check_once(self.names)

    @classmethod
    def of(cls, images_by_class: Mapping[str, Tensor]) -> ImageClasses:
        """From a tensor of images, uint8 [n, C, H, W], for each class by name."""
        if not images_by_class:
            raise ValueError("there are no classes")
        sizes = [len(images) for images in images_by_class.values()]
        return cls(torch.cat(list(images_by_class.values())), _offsets(sizes), (*images_by_class,))

    @classmethod
    def from_labels(
        cls, images: Tensor, labels: Sequence[int] | np.ndarray, names: Sequence[str] | None = None
    ) -> ImageClasses:
        """From images in any order.

        Args:
            images: uint8 [n, C, H, W].
            labels: n integers, not negative.
            names: name of each label; by default the label as text. Labels that no image has are
                left out.
        """
        label = np.asarray(labels)
        if label.ndim != 1 or label.dtype.kind not in "iu" or len(label) != len(images):
            raise ValueError(
                f"labels must be {len(images)} integers, one an image, "
                f"not {label.dtype} {list(label.shape)}"
            )
        present, sizes = np.unique(label, return_counts=True)
        if len(present) and (present[0] < 0 or (names is not None and present[-1] >= len(names))):
            known = "not negative" if names is None else f"in 0..{len(names) - 1}, as names are"
            raise ValueError(f"labels go from {present[0]} to {present[-1]}, but must be {known}")
        order = torch.from_numpy(label.argsort(kind="stable"))
        chosen = tuple(str(c) if names is None else str(names[c]) for c in present.tolist())
        return cls(images[order], _offsets(sizes.tolist()), chosen)

    def __len__(self) -> int:
        """How many classes there are."""
        return len(self.names)

    def __getitem__(self, name: str) -> Tensor:
        """The images of a class: uint8 [size, C, H, W]."""
        position = self._positions.get(name)
        if position is None:
            raise ValueError(f"there is no class {name!r} among {len(self)} classes")
        begin, end = self.offsets[position : position + 2].tolist()
        return self.images[begin:end]

    @property
    def sizes(self) -> Tensor:
        """int64 [classes]: how many images each class has."""
        return self.offsets.diff()

    def select(self, names: Iterable[str]) -> ImageClasses:
        """These classes, in this order, as a copy.

        Raises:
            ValueError: a name that no class has, or that comes twice.
        """
        chosen = tuple(names)
        if not chosen:
            return ImageClasses(self.images[:0], _offsets([]), ())
        _check_once(chosen)
        return ImageClasses.of({name: self[name] for name in chosen})

    def to(self, device: torch.device | str) -> ImageClasses:
        """With the images on another device."""
        return replace(self, images=self.images.to(device))

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of values scaled to [0, 1]."""
        if not len(self):
            raise ValueError("there are no images to measure")
        means, stds = [], []
        values = torch.arange(256, dtype=torch.float64) / 255
        for channel in self.images.unbind(1):
            # A histogram is exact, and takes no float copy of the images.
            share = torch.bincount(channel.flatten(), minlength=256).cpu() / channel.numel()
            mean = (share * values).sum()
            means.append(mean.item())
            stds.append((share * (values - mean).square()).sum().sqrt().item())
        return tuple(means), tuple(stds)

    def fingerprint(self) -> str:
        """SHA-256 of the names and the images."""
        told = (self.names, self.offsets.tolist(), tuple(self.images.shape))
        digest = hashlib.sha256(repr(told).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        sizes = self.sizes.tolist() or [0]
        shape = "x".join(map(str, self.images.shape[1:]))
        return (
            f"ImageClasses({len(self)} classes of {min(sizes)} to {max(sizes)} images, "
            f"{shape}, {self.images.device})"
        )

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}


class ImageSplits(NamedTuple):
    """Classes to learn from, to choose with, and to report on; `validation` may have none."""

    train: ImageClasses
    validation: ImageClasses
    test: ImageClasses


def _offsets(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0)


def _check_once(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"class {name!r} is named twice")
        seen.add(name)
