"""A user's loss as a program of row operations, which native kernels run and differentiate.

A loss that is a mean or a sum over samples of something that each sample's own predictions and
targets give is read by running it once and looking at what PyTorch's dispatcher is asked to do, so
that it does not matter how it is spelled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.functional.loss_programs.places import at_places
from fastmeta.functional.loss_programs.program import (
    NO_LABEL,
    NO_LOSS,
    CrossEntropyAtPlaces,
    Label,
    LossProgram,
    ReadLoss,
    Total,
)
from fastmeta.functional.loss_programs.rows import LossRows, NeedsTotals
from fastmeta.functional.loss_programs.rules import LOSS_RULES
from fastmeta.functional.loss_programs.totals import with_totals
from fastmeta.functional.loss_programs.trial import miscomputed
from fastmeta.functional.loss_programs.values import unknown_value, values_read
from fastmeta.functional.row_programs import (
    Operation,
    Step,
    Unreadable,
    lengths_as_sizes,
    operations,
    read,
)

__all__ = [
    "NO_LABEL", "NO_LOSS", "CrossEntropyAtPlaces", "Label", "LossProgram", "ReadLoss",
    "Unreadable", "classes_of", "read_loss", "takes_labels", "values_read", "with_totals",
]  # fmt: skip


def takes_labels(loss: Any) -> bool:
    """Whether labels outside their classes are an error, of a name or a loss that was read."""
    if isinstance(loss, LossProgram):
        return loss.takes_labels
    return loss in ("cross_entropy", NO_LOSS) or isinstance(loss, CrossEntropyAtPlaces)


def classes_of(loss: Any, output: Sequence[int]) -> int:
    """N of the labels of a loss that takes any, by the shape of a sample's predictions."""
    if isinstance(loss, CrossEntropyAtPlaces):
        return loss.classes
    return output[0 if loss == "cross_entropy" else -1] if output else 1


def read_loss(
    loss: Any, predictions: Tensor, targets: Tensor, queries: int = 1, weighted: bool = False
) -> ReadLoss | str:
    """The name or the program of a loss of one task's predictions, [S, ...], and its targets.

    queries: another number of samples that will come.
    weighted: whether it is given weights of samples.

    Only shapes and dtypes of the two are looked at. A label is taken to be one of its classes. What
    the loss reads beside them is taken to stay: `values_read` tells whether it has.

    Raises:
        Unreadable: it has neither.
    """
    values = values_read(loss)
    if values is None:
        raise Unreadable(f"it reads what may change unseen: {unknown_value(loss)}")
    if not predictions.dim() or predictions.dtype not in (torch.float32, torch.float64):
        raise Unreadable("the predictions are no float32 or float64 [S, ...]")
    labels = targets.dtype is torch.int64
    if not labels and targets.dtype is not predictions.dtype:
        raise Unreadable(
            f"the targets are {targets.dtype}, neither of the predictions' dtype nor int64 labels"
        )
    look = _Look(
        (len(predictions), queries), predictions.shape[1:], targets.shape[1:], predictions.dtype,
        labels, weighted,
    )  # fmt: skip
    found = _name_or_program(loss, values, look)
    if isinstance(found, Unreadable):
        raise found
    return found


class _Look(NamedTuple):
    samples: tuple[int, ...]  # as many as there may be
    output: torch.Size
    target: torch.Size
    dtype: torch.dtype
    labels: bool
    weighted: bool = False

    def draw(self, n: int) -> tuple[Tensor, ...]:
        """Predictions, targets and, if there are any, weights of n samples."""
        generator = torch.Generator().manual_seed(n)
        predictions = torch.randn(n, *self.output, dtype=self.dtype, generator=generator)
        if self.labels:
            targets = torch.zeros(n, *self.target, dtype=torch.int64)  # of any number of classes
        else:
            # Above 0 and below 1: cut off, they are labels of any number of classes.
            targets = torch.rand(n, *self.target, dtype=self.dtype, generator=generator)
        weights = [torch.rand(n, dtype=self.dtype, generator=generator)] * self.weighted
        return predictions.requires_grad_(), targets, *weights


@functools.lru_cache(maxsize=256)
def _name_or_program(loss: Any, values: Hashable, look: _Look) -> ReadLoss | str | Unreadable:
    plain = not look.labels or (not look.target and len(look.output) == 1)
    try:
        if not plain:
            return _at_places(loss, look)
        program = _program(loss, look)
    except Unreadable as reason:
        if plain and look.labels:
            try:  # with classes that weigh more or less, or are ignored
                return _at_places(loss, look)
            except Unreadable:
                pass
        if not isinstance(reason, NeedsTotals):
            return reason
        try:
            program = _program(loss, look, totals=True)
        except Unreadable as other:
            return other
    for known, name in _OF_LABELS if look.labels else _OF_NUMBERS:
        if program.does_as(_program_or_none(known, look._replace(samples=()))):
            return name
    return program


def _at_places(loss: Any, look: _Look) -> CrossEntropyAtPlaces:
    if look.weighted:
        raise Unreadable("it weighs samples of several labels, or labels that it may ignore")
    return at_places(loss, look.output, look.target, look.samples, _FEW, look.dtype)


_OF_LABELS: list[tuple[Any, str]] = [(F.cross_entropy, "cross_entropy")]
_OF_NUMBERS: list[tuple[Any, str]] = [
    (F.mse_loss, "mse"),
    (lambda p, y: F.mse_loss(y, p), "mse"),
    (F.binary_cross_entropy_with_logits, "bce"),
]


@functools.lru_cache(maxsize=256)
def _program_or_none(loss: Any, look: _Look) -> LossProgram | None:
    try:
        return _program(loss, look)
    except Unreadable:
        return None


def _program(loss: Callable[..., Tensor], look: _Look, totals: bool = False) -> LossProgram:
    sizes = [n for n in _MANY if n not in (*look.output, *look.target)][:2]
    first, second = (_read(loss, look.draw(n), totals or look.weighted) for n in sizes)
    numbers = look.output.numel() + look.target.numel() + sum(step[-1] for step in first.steps)
    if numbers > _MOST_NUMBERS:
        raise Unreadable(f"it makes {numbers:,} numbers of a sample, of {_MOST_NUMBERS:,} at most")
    if first[:4] != second[:4]:
        raise Unreadable("it depends on the number of samples, or on values")
    # What is done for few samples must be the same, whatever it is.
    for n in (*_FEW, *look.samples):
        run = operations(loss, look.draw(n))
        pairs = zip(first.operations, run, strict=False)
        alike = [one.is_like(other, sizes[0], n) for one, other in pairs]
        if len(run) != len(first.operations) or not all(alike):
            raise Unreadable("it does something else for other numbers of samples")
    beside = look.weighted + len(first.totals)
    program = LossProgram(
        loss, look.output.numel(), look.target.numel() + beside, look.labels, first.adds,
        tuple(first.steps), first.labels, look.weighted, first.totals,
    )  # fmt: skip
    if any(miscomputed(program, *look.draw(n)) for n in _TRIED):
        raise Unreadable("what was read of it makes other numbers")
    return program


class _Reading(NamedTuple):
    steps: list[Step]
    adds: bool
    labels: tuple[Label, ...]
    totals: tuple[Total, ...]
    operations: list[Operation]


def _read(loss: Callable[..., Tensor], given: tuple[Tensor, ...], totals: bool) -> _Reading:
    rows = LossRows(*given, totals=totals)
    with lengths_as_sizes(Tensor):
        result, operations = read(loss, given, rows, LOSS_RULES)
    return _Reading(*rows.result(result), rows.totals(), operations)


_MOST_NUMBERS = 1 << 17  # of which the kernels keep 64 at once, in each thread: 32 MB of float32
_TRIED = 1, 6
_FEW = 1, 2, 3, 4, 5, 7, 8, 10, 16, 25, 32, 50, 64, 100, 128
_MANY = 211, 223, 227, 229, 233  # primes: as good as never another size
