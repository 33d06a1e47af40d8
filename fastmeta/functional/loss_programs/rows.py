"""The rows of a loss while it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fastmeta.functional.loss_programs.program import Label, Total
from fastmeta.functional.loss_programs.values import is_small_constant
from fastmeta.functional.row_programs import (
    NO_TOTAL,
    Rows,
    Step,
    Unreadable,
    Value,
    needed,
    rows_of,
)

__all__ = ["LossRows", "NeedsTotals"]


class NeedsTotals(Unreadable):
    """It takes a total of the targets, which rows have a place for if they are told so."""


class LossRows(Rows):
    """Row 0 are the predictions, row 1 the targets or the labels.

    "stacked" is a kind of value too: several numbers of each sample, one behind another for all
    samples, and "every" whether something holds for all of them.

    Attributes:
        columns_of: which rows are numbers of floating targets, by their first column.
        whole: what is taken for granted of those.
    """

    def __init__(
        self, predictions: Tensor, targets: Tensor, *weights: Tensor, totals: bool = False
    ) -> None:
        """weights: of samples, or none; totals: whether there may be any of targets and weights."""
        self._moves = [True, False]
        self._totals: list[tuple[bool, int]] | None = None
        self._total_rows: dict[tuple[bool, int], int] = {}
        super().__init__(len(predictions), predictions.dtype, (predictions, targets))
        first, width = 1, self.widths[1]
        if weights or totals:
            first = self._put_beside(targets, width, *weights)
        self.labels = None if targets.is_floating_point() else first
        self.columns_of = {first: 0} if self.labels is None else {}
        self.whole: dict[int, Label] = {}
        self._expanded: dict[int, int] = {}
        self._truths: list[int] = []

    def _put_beside(self, targets: Tensor, width: int, *weights: Tensor) -> int:
        """Read row 1 in parts: the targets, whose row is returned, then weights, then totals."""
        self._totals = []
        first = self.put("slice", 1, width=width)
        self.know(targets, Value("samples", first))
        for weight in weights:
            self.know(weight, Value("samples", self.put("slice", 1, x=width, width=1)))
        self._first_total = width + len(weights)
        return first

    def put(
        self, op: str, a: int = 0, b: int = 0, c: int = 0, *, x: float = 0.0, y: float = 0.0,
        width: int,
    ) -> int:  # fmt: skip
        row = super().put(op, a, b, c, x=x, y=y, width=width)
        self._moves.append(any(self._moves[read] for read in rows_of(self.steps[-1])))
        return row

    def moves(self, row: int) -> bool:
        """Whether it depends on the predictions."""
        return self._moves[row]

    def total(self, row: int, *, adds: bool) -> Value:
        """A row's sum over the samples, or its mean, where it does not depend on predictions."""
        if self._totals is None:
            raise NeedsTotals("it takes a total of the targets")
        key = adds, row
        if key not in self._total_rows:
            at = self._first_total + len(self._totals)
            self._totals.append(key)
            self._total_rows[key] = self.put("slice", 1, x=at, width=1)
        return Value("constant", self._total_rows[key])

    def totals(self) -> tuple[Total, ...]:
        found = self._totals or ()
        return tuple(Total(adds, tuple(needed(self.steps, row, 2))) for adds, row in found)

    def result(self, result: Any) -> tuple[list[Step], bool, tuple[Label, ...]]:
        """The steps that it is made by, whether it is a sum over the samples, and what must hold
        of the targets.
        """
        value = self.known(result)
        if value is None or value.kind not in ("mean", "sum") or result.dim():
            raise Unreadable(NO_TOTAL)
        if any(tensor._backward_hooks for tensor in self.kept):
            raise Unreadable("it hooks into gradients")
        row = self._guarded(value.row)
        labels = tuple(self.whole[column] for column in sorted(self.whole))
        return needed(self.steps, row, 2), value.kind == "sum", labels

    def know(self, tensor: Tensor, value: Value) -> None:
        if value.row >= 0 and not self._holds(tensor, value):
            raise Unreadable("it makes other numbers than those of each sample")
        super().know(tensor, value)

    def _holds(self, x: Tensor, value: Value) -> bool:
        """Whether a tensor has as many numbers as what it is known to be."""
        if value.kind in ("constant", "task"):
            return self.is_broadcast(x, value)
        each = self.samples if value.kind in ("samples", "stacked") else 1
        return x.numel() == self.widths[value.row] * each

    def assume(self, truth: Tensor) -> None:
        value = self.value(truth)
        if value.kind not in ("every", "samples", "task", "constant"):
            raise Unreadable("it depends on values")
        self._truths.append(value.row)

    def _guarded(self, row: int) -> int:
        """NaN, with gradients of NaN, for samples of which PyTorch would raise an error."""
        for truth in dict.fromkeys(self._truths):
            holds = self.all(truth)
            one = self.put("divide", holds, holds, width=1)
            row = self.put("multiply", row, one, width=1)
        return row

    def all(self, row: int) -> int:
        """Whether all truths of a row hold."""
        width = self.widths[row]
        if width == 1:
            return row
        return self.put("equal", self.sum(row), self.number(float(width)).row, width=1)

    # ---- numbers of the targets, and labels among them ---------------------------------------

    def take_as_whole(self, x: Tensor) -> None:
        """Its numbers are whole, or the loss is not what was read."""
        value = self.value(x)
        begin = self.columns_of.get(value.row)
        if value.kind != "samples" or begin is None:
            raise Unreadable("it rounds")
        for column in range(begin, begin + self.widths[value.row]):
            self.whole.setdefault(column, Label(column))

    def is_label(self, x: Tensor) -> bool:
        """Whether it is an int64 label, or a whole number of the targets."""
        value = self.value(x)
        if value.kind != "samples" or self.widths[value.row] != 1 or x.is_floating_point():
            return False
        return value.row == self.labels or value.row in self.columns_of

    def take_as_label(self, x: Tensor, classes: int, *, strict: bool) -> None:
        """It is in [0, classes); strict: PyTorch takes nothing else."""
        if not self.is_label(x):
            raise Unreadable("it picks by what is no label")
        column = self.columns_of.get(self.value(x).row, 0)
        known = self.whole.get(column, Label(column))
        self.whole[column] = replace(
            known, least=0, below=min(classes, known.below), strict=known.strict or strict
        )

    # ---- steps ---------------------------------------------------------------------------------

    def slice(self, x: Tensor, begin: int, width: int) -> Value:
        """Numbers of each sample, side by side."""
        row = self.value(x).row
        if width < 1 or self.value(x).kind != "samples":
            raise Unreadable("it takes nothing of a sample, or a part of a total")
        if row in self._expanded and width == 1:
            return Value("samples", self._expanded[row])
        part = self.put("slice", row, x=begin, width=width)
        if row in self.columns_of:
            self.columns_of[part] = self.columns_of[row] + begin
        return Value("samples", part)

    def expand(self, x: Tensor, out: Tensor) -> Value:
        """One number of each sample, or of all, as many times as `out` has numbers of a sample."""
        value = self.put_all("add", out, x, 0.0)
        if value.kind == "samples" and self.widths[self.value(x).row] == 1:
            self._expanded[value.row] = self.value(x).row
        return value

    def is_broadcast(self, out: Tensor, value: Value) -> bool:
        """Whether a tensor holds what is the same for all samples, again and again."""
        width = self.widths[value.row]
        if width == 1:
            return True
        return width == (self.columns(out) if self.has_samples(out, value) else out.numel())

    def is_zero(self, x: Any) -> bool:
        return self.value(x) == Value("constant", self._numbers.get((0.0).hex(), -1))

    def has_samples(self, x: Tensor, value: Value) -> bool:
        """What is the same for all samples may have been expanded to them."""
        expanded = x.dim() > 0 and len(x) > 0 and len(x) % self.samples == 0
        return value.kind == "samples" or (expanded and value.kind in ("task", "constant"))

    def is_own_constant(self, x: Tensor) -> bool:
        """Whether it is no tensor that an operation has made."""
        return self.known(x) is None and x.dim() == 1

    def of_unknown(self, x: Tensor) -> Value:
        """A few numbers beside the arguments, which are the same for every sample."""
        if not is_small_constant(x) or not x.numel():
            raise Unreadable("it reads a tensor of its own")
        if x.shape[:-1].numel() > 1:
            raise Unreadable("it reads a matrix of its own")
        return self.same_for_all(x.detach().reshape(-1).tolist())

    def same_for_all(self, numbers: Sequence[float]) -> Value:
        rows = [self.number(float(number)).row for number in numbers]
        if len(rows) == 1:
            return Value("constant", rows[0])
        return Value("task", self.side_by_side(rows))

    def side_by_side(self, rows: Sequence[int]) -> int:
        """Neighbours first, so that few numbers are copied."""
        while len(rows) > 1:
            pairs = [rows[i : i + 2] for i in range(0, len(rows), 2)]
            rows = [
                pair[0] if len(pair) == 1 else self.put(
                    "join", *pair, width=sum(self.widths[row] for row in pair)
                )
                for pair in pairs
            ]  # fmt: skip
        return rows[0]

    def join(self, tensors: Sequence[Tensor]) -> Value:
        """The numbers of each sample in several tensors, side by side."""
        values = [self.value(tensor) for tensor in tensors]
        if any(value.kind != "samples" for value in values):
            raise Unreadable("it joins what is not of samples")
        return Value("samples", self.side_by_side([value.row for value in values]))

    def like(self, op: str, values: Sequence[Value]) -> Value:
        """What is done to sums or means over samples can be done before."""
        totals = {value.kind for value in values if value.kind != "constant"}
        if totals <= {"samples", "task"}:
            return Value("samples" if "samples" in totals else "task")
        constants = [value.kind == "constant" for value in values]
        linear = (
            op == "negative" or (op == "multiply" and any(constants))
            or (op == "divide" and constants == [False, True])
            or (op in ("add", "subtract") and (totals == {"mean"} or not any(constants)))
        )  # fmt: skip
        if not linear or len(totals) > 1 or not totals <= {"mean", "sum"}:
            raise Unreadable(NO_TOTAL)
        return Value(totals.pop())
