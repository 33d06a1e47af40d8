"""The rows of a program while a loss is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastmeta.functional.loss_programs.program import Step, Unreadable

__all__ = ["NO_TOTAL", "Rows", "Value"]

MOST_STEPS = 1024  # as in csrc/loss_binding.h
NO_TOTAL = "it is not a mean or a sum over the samples"


class Value(NamedTuple):
    """What a tensor of the loss is.

    "samples" has a row a sample, "constant" is a number, "mean" and "sum" are those over samples of
    a row; "nothing" and "all" are masks of samples, "count" is the number of samples.
    """

    kind: str
    row: int = -1


class Rows:
    """The steps so far, and which row of theirs each tensor of the loss is."""

    def __init__(self, predictions: Tensor, targets: Tensor) -> None:
        self.samples = len(predictions)
        self.dtype = predictions.dtype
        self.labels = None if targets.is_floating_point() else 1
        self.classes = predictions.shape[-1]
        self.steps: list[Step] = []
        self.widths = [self.columns(predictions), self.columns(targets)]
        self._numbers: dict[float, int] = {}
        self._kept: list[Tensor] = []  # so that no id is that of another
        self._values: dict[int, Value] = {}
        self.know(predictions, Value("samples", 0))
        self.know(targets, Value("samples", 1))

    def needed(self, result: Any) -> tuple[list[Step], bool]:
        """The steps that the result is made by, and whether it is a sum over the samples."""
        value = self._values.get(id(result))
        if value is None or value.kind not in ("mean", "sum") or result.dim():
            raise Unreadable(NO_TOTAL)
        if any(tensor._backward_hooks for tensor in self._kept):
            raise Unreadable("it hooks into gradients")
        steps = _needed(self.steps, value.row)
        if len(steps) > MOST_STEPS:
            raise Unreadable(f"it takes {len(steps)} steps, more than {MOST_STEPS}")
        return steps, value.kind == "sum"

    def know(self, tensor: Tensor, value: Value) -> None:
        self._kept.append(tensor)
        self._values[id(tensor)] = value

    def value(self, x: Any) -> Value:
        if isinstance(x, Tensor):
            value = self._values.get(id(x))
            if value is None:
                raise Unreadable("it reads a tensor of its own")
            return value
        if isinstance(x, (int, float)):
            return Value("count") if x and x % self.samples == 0 else self.number(float(x))
        raise Unreadable(f"it computes with a {type(x).__name__}")

    def columns(self, x: Tensor) -> int:
        """The numbers that each sample has in a tensor of samples, in their order."""
        shape = x.shape
        if shape and shape[0] == self.samples:
            return x.numel() // self.samples
        if len(shape) == 1 and shape[0] % self.samples == 0:
            return shape[0] // self.samples
        raise Unreadable("it mixes the samples")

    def put(
        self, op: str, a: int = 0, b: int = 0, c: int = 0, *, x: float = 0.0, y: float = 0.0,
        width: int,
    ) -> int:  # fmt: skip
        self.steps.append((op, a, b, c, x, y, width))
        self.widths.append(width)
        return len(self.widths) - 1

    def sum(self, row: int) -> int:
        """The row with the sum of another one's numbers."""
        return row if self.widths[row] == 1 else self.put("sum", row, width=1)

    def mean(self, row: int) -> int:
        width = self.widths[row]
        if width == 1:
            return row
        return self.put("multiply", self.sum(row), self.number(1 / width).row, width=1)

    def slice(self, x: Tensor, begin: int, width: int) -> Value:
        """Numbers of each sample, side by side."""
        if width < 1 or self.value(x).kind != "samples":
            raise Unreadable("it takes nothing of a sample, or a part of a total")
        return Value("samples", self.put("slice", self.value(x).row, x=begin, width=width))

    def put_all(
        self, op: str, out: Tensor, *operands: Any, x: float = 0.0, y: float = 0.0
    ) -> Value:
        """A step whose row has as many numbers as `out`, of operands that are broadcast."""
        values = [self.value(operand) for operand in operands]
        kinds = {value.kind for value in values} - {"constant"}
        if not kinds:
            kind, width = "constant", 1
        elif kinds == {"samples"}:
            kind, width = "samples", self.columns(out)
        else:
            kind, width = self.kind_of_total(op, values), out.numel()
        if any(self.widths[value.row] not in (1, width) for value in values):
            raise Unreadable("it pairs the numbers of a sample with one another")
        return Value(kind, self.put(op, *(v.row for v in values), x=x, y=y, width=width))

    def kind_of_total(self, op: str, values: Sequence[Value]) -> str:
        """Of what is done to sums or means over samples; it can be done before."""
        totals = {value.kind for value in values if value.kind != "constant"}
        constants = [value.kind == "constant" for value in values]
        linear = (
            op == "negative" or (op == "multiply" and any(constants))
            or (op == "divide" and constants == [False, True])
            or (op in ("add", "subtract") and (totals == {"mean"} or not any(constants)))
        )  # fmt: skip
        if not linear or len(totals) > 1 or not totals <= {"mean", "sum"}:
            raise Unreadable(NO_TOTAL)
        return totals.pop()

    def number(self, x: float) -> Value:
        row = self._numbers.get(x)
        if row is None:
            row = self._numbers[x] = self.put("constant", x=x, width=1)
        return Value("constant", row)

    def step(self, op: str, *values: Value, width: int) -> Value:
        if any(value.kind not in ("samples", "constant") for value in values):
            raise Unreadable(NO_TOTAL)
        alike = width == 1 and all(value.kind == "constant" for value in values)
        kind = "constant" if alike else "samples"
        return Value(kind, self.put(op, *(v.row for v in values), width=width))


def _needed(steps: Sequence[Step], last: int) -> list[Step]:
    """The steps that row `last` is made by, which comes last then."""
    needed, stack = set(), [last]
    while stack:
        row = stack.pop()
        if row >= 2 and row not in needed:
            needed.add(row)
            stack += _operands(steps[row - 2])
    if not needed:  # the predictions themselves
        return [("slice", last, 0, 0, 0.0, 0.0, 1)]
    new_row = {0: 0, 1: 1} | {row: i for i, row in enumerate(sorted(needed), start=2)}
    return [_renumbered(steps[row - 2], new_row) for row in sorted(needed)]


def _operands(step: Step) -> tuple[int, ...]:
    op, a, b, c = step[:4]
    if op == "constant":
        return ()
    return (a, b, c)[: 3 if op == "select" else 2 if op in _OF_TWO else 1]


_OF_TWO = {
    "add", "subtract", "multiply", "divide", "larger", "smaller", "greater", "greater_equal",
    "equal", "choose",
}  # fmt: skip


def _renumbered(step: Step, new_row: dict[int, int]) -> Step:
    op, a, b, c, x, y, width = step
    rows = [new_row[row] for row in _operands(step)]
    a, b, c = (*rows, *(a, b, c)[len(rows) :]) if op != "constant" else (0, 0, 0)
    return op, a, b, c, x, y, width
