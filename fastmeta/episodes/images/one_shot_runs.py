"""The 20 runs of 20-way one-shot classification that were published with Omniglot."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastmeta.episodes.images.classes import ImageClasses
from fastmeta.episodes.images.scale import PixelScale
from fastmeta.tasks import TaskBatch


class OneShotRun(NamedTuple):
    """Twenty characters of an alphabet, each drawn by one person, and again by another."""

    alphabet: str
    characters: tuple[int, ...]
    support_drawer: int
    query_drawer: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The characters' names, in the order of their labels."""
        return tuple(f"{self.alphabet}/character{number:02d}" for number in self.characters)


# Two runs an alphabet: the characters, then support and query drawer of either run. From
# python/one-shot-classification/all_runs.zip of github.com/brendenlake/omniglot (MIT licence).
_ALPHABETS: tuple[tuple[str, tuple[int, ...], tuple[tuple[int, int], tuple[int, int]]], ...] = (
    (
        "Atlantean",
        (1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 14, 16, 19, 20, 21, 22, 23, 24, 25, 26),
        ((5, 8), (3, 2)),
    ),
    (
        "Ge_ez",
        (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 15, 16, 17, 18, 20, 21, 23, 24, 25),
        ((3, 7), (4, 2)),
    ),
    (
        "Glagolitic",
        (1, 2, 3, 5, 6, 7, 14, 17, 18, 19, 20, 21, 26, 28, 31, 34, 36, 37, 40, 43),
        ((6, 4), (3, 2)),
    ),
    (
        "Gurmukhi",
        (3, 6, 7, 8, 9, 13, 14, 15, 16, 17, 31, 22, 25, 26, 29, 32, 33, 38, 43, 44),
        ((5, 2), (8, 3)),
    ),
    (
        "Kannada",
        (1, 3, 5, 8, 11, 12, 13, 14, 19, 20, 21, 23, 25, 26, 27, 28, 33, 35, 40, 41),
        ((2, 1), (8, 3)),
    ),
    (
        "Malayalam",
        (2, 4, 5, 9, 13, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 29, 30, 37, 43, 46),
        ((3, 7), (4, 2)),
    ),
    (
        "Manipuri",
        (3, 4, 6, 8, 9, 11, 12, 13, 15, 17, 19, 21, 22, 25, 29, 33, 35, 36, 37, 39),
        ((8, 4), (7, 3)),
    ),
    (
        "Old_Church_Slavonic_(Cyrillic)",
        (2, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 23, 24, 25, 30, 33, 41, 44, 45),
        ((4, 8), (1, 2)),
    ),
    (
        "Tengwar",
        (1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 16, 18, 19, 20, 21, 22, 23, 24, 25),
        ((1, 4), (8, 7)),
    ),
    (
        "Tibetan",
        (1, 2, 3, 5, 6, 7, 8, 9, 11, 13, 14, 15, 21, 22, 24, 33, 35, 36, 38, 41),
        ((1, 3), (8, 5)),
    ),
)
ONE_SHOT_RUNS: tuple[OneShotRun, ...] = tuple(
    OneShotRun(alphabet, characters, *drawers)
    for alphabet, characters, both in _ALPHABETS
    for drawers in both
)


def one_shot_runs(characters: ImageClasses, scale: PixelScale | None = None) -> TaskBatch:
    """The 20 published runs as tasks: support and query [20, 20, 1, H, W], labels 0 to 19.

    `ONE_SHOT_RUNS` tells the alphabet and the characters of each. Queries are in the order of
    their labels; the published files are in another order, on which no accuracy depends.

    A network that is tested on them should not have been trained on their characters, which all
    are of the evaluation set: see the split "background" of `split_omniglot`.

    Args:
        characters: all of Omniglot, or at least the characters of the runs, with 20 drawings each.
        scale: from bytes to the numbers that a network sees, as in training.

    Raises:
        ValueError: a character is missing or has fewer drawings.
    """
    scale = scale or PixelScale()

    def drawn_by(run: OneShotRun, drawer: int) -> Tensor:
        return torch.stack([_drawing(characters, name, drawer) for name in run.classes])

    support = torch.stack([drawn_by(run, run.support_drawer) for run in ONE_SHOT_RUNS])
    query = torch.stack([drawn_by(run, run.query_drawer) for run in ONE_SHOT_RUNS])
    labels = torch.arange(20, device=support.device).repeat(len(ONE_SHOT_RUNS), 1)
    return TaskBatch(scale(support), labels, scale(query), labels.clone())


def _drawing(characters: ImageClasses, name: str, drawer: int) -> Tensor:
    drawings = characters[name]
    if len(drawings) < drawer:
        raise ValueError(f"{name} has {len(drawings)} drawings, and number {drawer} is needed")
    return drawings[drawer - 1]
