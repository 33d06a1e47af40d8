"""What a user's loss comes to: steps that make rows of numbers out of earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fastmeta.functional.row_programs import Step

__all__ = ["LossProgram"]


@dataclass(frozen=True)
class LossProgram:
    """A loss that can be called as before, and what it does.

    Row 0 are the predictions of a sample, row 1 its targets or its label, row i + 2 is what
    `steps[i]` makes of earlier ones. The last row is the sample's loss.

    Attributes:
        loss: the user's.
        predictions, targets: numbers in the rows of a sample.
        takes_labels: whether the target is an int64 label.
        adds: whether the samples' losses are added up instead of averaged.
    """

    loss: Callable[..., Tensor]
    predictions: int
    targets: int
    takes_labels: bool
    adds: bool
    steps: tuple[Step, ...]

    def __call__(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return self.loss(predictions, targets)

    def does_as(self, other: LossProgram | None) -> bool:
        """Whether it takes the same steps on the same rows."""
        return other is not None and replace(self, loss=other.loss) == other

    @property
    def __name__(self) -> str:
        return getattr(self.loss, "__name__", type(self.loss).__name__)
