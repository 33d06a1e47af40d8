"""The rows of a program while it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.functional.row_programs.step import Step, Unreadable

__all__ = ["NO_TOTAL", "PAIRS", "Rows", "Value"]

PAIRS = "it pairs the numbers of a sample with one another"
NO_TOTAL = "it is not a mean or a sum over the samples"


class Value(NamedTuple):
    """What a tensor is.

    "samples" has a row a sample, "constant" is a number. Of a loss, "mean" and "sum" are those over
    samples of a row, "nothing" and "all" are masks of samples, "count" is the number of samples. Of
    a forward, "task" is a row that all samples share, "total" is a sum over samples, of which a
    gradient may be taken and nothing else. "unknown" may be made, but not read.

    Attributes:
        before: of samples in a forward, how many of a sample's numbers lie before one another with
            all samples in between: L of a tensor [L, S, C], whose row is [L, C].
    """

    kind: str
    row: int = -1
    before: int = 1


class Rows:
    """The steps so far, and which row of theirs each tensor is."""

    def __init__(self, samples: int, dtype: torch.dtype, given: Sequence[Tensor]) -> None:
        self.samples = samples
        self.dtype = dtype
        self.steps: list[Step] = []
        self.widths = [self.columns(tensor) for tensor in given]
        self._numbers: dict[str, int] = {}
        self.kept: list[Tensor] = []  # so that no id is that of another
        self._values: dict[int, Value] = {}
        self._same: dict[int, int] = {}
        self._given = len(given)
        for row, tensor in enumerate(given):
            self.know(tensor, Value("samples", row))

    def like(self, op: str, values: Sequence[Value]) -> Value:
        """What a step is, but for its row, whose operands are these, not all of them constants."""
        raise NotImplementedError

    def of_unknown(self, x: Tensor) -> Value:
        """What a tensor is that no operation has made."""
        raise Unreadable("it reads a tensor of its own")

    def table(self, name: str, func: Any, args: Any, kwargs: Any) -> tuple[Any] | None:
        """What an operation makes if it depends on nothing that may change, and is no step."""
        return None

    def assume(self, truth: Tensor) -> None:
        """PyTorch raises an error where the truth is none."""
        raise Unreadable("it depends on values")

    def may_be_variable(self, x: Tensor) -> bool:
        """Whether a function may take gradients of its own by a tensor."""
        return False

    def read(self, values: Any) -> None:
        """Note what the function itself gives an operation."""

    def recognise(self, values: Any) -> None:
        """Know what autograd gives an operation in a gradient of the function's own."""
        raise Unreadable("it takes a gradient of its own")

    def check_own(self, x: Tensor) -> None:
        """Unreadable if what is changed in place may be read elsewhere."""
        memory, same = x.untyped_storage().data_ptr(), self._same.get(id(x), id(x))
        others = [
            t for i, t in enumerate(self.kept)
            if self._same.get(id(t), id(t)) != same or i < self._given
        ]  # fmt: skip
        shared = any(t.untyped_storage().data_ptr() == memory for t in others)
        if shared or self.known(x) is None:
            raise Unreadable("it changes in place what it reads elsewhere")

    def know_again(self, tensor: Tensor, other: Tensor) -> None:
        """That autograd has made of another one, which nobody is given beside it."""
        self._same[id(tensor)] = self._same.get(id(other), id(other))

    def forget(self, tensor: Tensor) -> None:
        """That nobody has it any more."""

    def moved(self, before: Value, value: Value) -> Value:
        """What a tensor is that changes in place where gradients are off: its slope stays."""
        width = self.widths[value.row]
        way = self.step("stop", self.step("subtract", value, before, width=width), width=width)
        return self.step("add", before, way, width=width)

    def know(self, tensor: Tensor, value: Value) -> None:
        self.kept.append(tensor)
        self._values[id(tensor)] = value

    def known(self, x: Any) -> Value | None:
        return self._values.get(id(x))

    def value(self, x: Any) -> Value:
        if isinstance(x, Tensor):
            return self.known(x) or self.of_unknown(x)
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

    def has_samples(self, x: Tensor, value: Value) -> bool:
        return value.kind == "samples"

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

    def operand(self, out: Tensor, x: Any) -> Value:
        """What x is as an operand of numbers as many as those of `out`."""
        return self.value(x)

    def put_all(
        self, op: str, out: Tensor, *operands: Any, x: float = 0.0, y: float = 0.0
    ) -> Value:
        """A step whose row has as many numbers as `out`, of operands that are broadcast."""
        values = [self.operand(out, operand) for operand in operands]
        if all(value.kind == "constant" for value in values):
            like, width = Value("constant"), 1
        else:
            like = self.like(op, values)
            width = self.columns(out) if self.has_samples(out, like) else out.numel()
        if any(self.widths[value.row] not in (1, width) for value in values):
            raise Unreadable(PAIRS)
        return like._replace(row=self.put(op, *(v.row for v in values), x=x, y=y, width=width))

    def number(self, x: float) -> Value:
        key = float(x).hex()  # 0.0 equals -0.0, but divides otherwise
        row = self._numbers.get(key)
        if row is None:
            row = self._numbers[key] = self.put("constant", x=x, width=1)
        return Value("constant", row)

    def step(self, op: str, *values: Value, width: int) -> Value:
        if any(value.kind not in ("samples", "constant", "task") for value in values):
            raise Unreadable(NO_TOTAL)
        of_all = op in ("sum", "log_sum_exp", "choose")
        if not of_all and any(self.widths[value.row] not in (1, width) for value in values):
            raise Unreadable(PAIRS)
        if all(value.kind == "constant" for value in values):
            like = Value("constant" if width == 1 else "samples")
        else:
            like = self.like(op, values)
        return like._replace(row=self.put(op, *(v.row for v in values), width=width))
