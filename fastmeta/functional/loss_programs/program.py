"""What a user's loss comes to: a known one, or steps that make rows out of earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from fastmeta.functional.row_programs import Step

__all__ = [
    "NO_LABEL", "NO_LOSS", "CrossEntropyAtPlaces", "Label", "LossProgram", "ReadLoss", "Total",
]  # fmt: skip


@dataclass(frozen=True)
class Label:
    """A number of the targets that a loss takes for a whole one, in [least, below).

    Attributes:
        column: where it is among a sample's targets.
        strict: whether PyTorch raises an error for whole numbers below that; above it does anyway.
    """

    column: int
    least: int = -(1 << 24)
    below: int = 1 << 24  # of float32 all whole numbers are exact up to there
    strict: bool = False

    @property
    def is_class(self) -> bool:
        return self.below < 1 << 24


@dataclass(frozen=True)
class ReadLoss:
    """A loss that can be called as before, of which it is known what it does.

    Attributes:
        loss: the user's.
    """

    loss: Callable[..., Tensor]

    def __call__(self, predictions: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
        return self.loss(predictions, targets, *weights)

    @property
    def __name__(self) -> str:
        return getattr(self.loss, "__name__", type(self.loss).__name__)


def _nothing(predictions: Tensor, labels: Tensor) -> Tensor:
    return predictions.new_zeros(())


# Of a module that only runs forward: of a label a sample, which costs nothing. Nobody asks for it.
NO_LOSS = ReadLoss(_nothing)


NO_LABEL = -(1 << 63)


@dataclass(frozen=True)
class CrossEntropyAtPlaces(ReadLoss):
    """The mean cross-entropy of a label at each of a sample's places.

    Attributes:
        classes: N.
        places: P, of predictions [S, N, P], or [S, P, N] if the classes come last.
        ignored: the label of places that do not count, or `NO_LABEL`.
        weights: those of the classes, by which the others count, or none.
    """

    classes: int
    places: int
    classes_last: bool
    ignored: int
    weights: tuple[float, ...] = ()


class Total(NamedTuple):
    """A number of a task that its targets and weights alone give, over all of its samples.

    Attributes:
        adds: whether it is a sum, not a mean.
        steps: what makes the number of a sample, of rows as those of a loss.
    """

    adds: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class LossProgram(ReadLoss):
    """A loss as a program.

    Row 0 are the predictions of a sample, row 1 its targets or its label, row i + 2 is what
    `steps[i]` makes of earlier ones. The last row is the sample's loss. Where there are weights or
    totals row 1 holds them as well, behind the targets: `with_totals` makes such rows.

    Attributes:
        predictions, targets: numbers in the rows of a sample.
        takes_labels: whether the target is an int64 label.
        adds: whether the samples' losses are added up instead of averaged.
        labels: what the targets must hold for the steps to be the loss.
        weighted: whether the loss takes weights of samples.
        totals: in the order in which they lie in row 1; a later one may read those before.
    """

    predictions: int
    targets: int
    takes_labels: bool
    adds: bool
    steps: tuple[Step, ...]
    labels: tuple[Label, ...] = ()
    weighted: bool = False
    totals: tuple[Total, ...] = ()

    def __call__(self, predictions: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
        if self.weighted and not weights:
            weights = (predictions.new_ones(len(predictions)),)
        return super().__call__(predictions, targets, *weights)

    @property
    def beside_targets(self) -> int:
        """How many numbers row 1 holds behind the targets."""
        return self.weighted + len(self.totals)

    def does_as(self, other: LossProgram | None) -> bool:
        """Whether it takes the same steps on the same rows, whatever it does with other labels."""
        return other is not None and replace(self, loss=other.loss, labels=other.labels) == other
