"""The rows of a loss while it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmeta.functional.loss_programs.values import is_small_constant
from fastmeta.functional.row_programs import NO_TOTAL, Rows, Step, Unreadable, Value, needed

__all__ = ["LossRows"]


class LossRows(Rows):
    """Row 0 are the predictions, row 1 the targets or the labels."""

    def __init__(self, predictions: Tensor, targets: Tensor) -> None:
        super().__init__(len(predictions), predictions.dtype, (predictions, targets))
        self.labels = None if targets.is_floating_point() else 1
        self.classes = predictions.shape[-1]

    def result(self, result: Any) -> tuple[list[Step], bool]:
        """The steps that the result is made by, and whether it is a sum over the samples."""
        value = self.known(result)
        if value is None or value.kind not in ("mean", "sum") or result.dim():
            raise Unreadable(NO_TOTAL)
        if any(tensor._backward_hooks for tensor in self.kept):
            raise Unreadable("it hooks into gradients")
        return needed(self.steps, value.row, 2), value.kind == "sum"

    def slice(self, x: Tensor, begin: int, width: int) -> Value:
        """Numbers of each sample, side by side."""
        if width < 1 or self.value(x).kind != "samples":
            raise Unreadable("it takes nothing of a sample, or a part of a total")
        return Value("samples", self.put("slice", self.value(x).row, x=begin, width=width))

    def of_unknown(self, x: Tensor) -> Value:
        """A few numbers beside the arguments, which are the same for every sample."""
        alike = is_small_constant(x) and x.dtype is self.dtype and x.numel() > 0
        if not alike or x.shape[:-1].numel() > 1:
            raise Unreadable("it reads a tensor of its own")
        numbers = x.detach().reshape(-1).tolist()
        value = self.number(numbers[0])
        for width, number in enumerate(numbers[1:], start=2):
            both = value.row, self.number(number).row
            value = Value("task", self.put("join", *both, width=width))
        return value

    def join(self, tensors: Sequence[Tensor]) -> Value:
        """The numbers of each sample in several tensors, side by side."""
        values = [self.value(tensor) for tensor in tensors]
        if any(value.kind != "samples" for value in values):
            raise Unreadable("it joins what is not of samples")
        row, width = values[0].row, self.widths[values[0].row]
        for value in values[1:]:
            width += self.widths[value.row]
            row = self.put("join", row, value.row, width=width)
        return Value("samples", row)

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
