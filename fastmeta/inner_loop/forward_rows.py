"""The rows of a forward while it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fastmeta.functional.row_programs import Rows, Step, Unreadable, Value, needed

__all__ = ["GONE", "ForwardRows"]

GONE = Value("gone")  # of a tensor that nobody is going to read again


class ForwardRows(Rows):
    """Row 0 is a sample. A parameter, or a buffer, is the weight of products, or a row that all
    samples share.

    "weight" and "turned" are kinds of values too: a parameter by its index, as it is and
    transposed. So is "series": the parts of samples' rows, [L, S, ...] or [L S, C].
    """

    def __init__(self, x: Tensor, parameters: Mapping[str, Tensor]) -> None:
        self._names = [*parameters]
        self._indices = {id(p): i for i, p in enumerate(parameters.values())}
        super().__init__(len(x), x.dtype, (x,))

    def result(self, y: Any) -> tuple[list[Step], list[str]]:
        """The steps that make y [S, O], and the parameters that they read by their index."""
        value = self.known(y) if isinstance(y, Tensor) else None
        is_row = value is not None and value.kind == "samples" and y.dim() == 2
        if value is None or not is_row or len(y) != self.samples:
            raise Unreadable("it does not make a row of each sample")
        steps = needed(self.steps, value.row, 1)
        products = [step for step in steps if step[0] == "linear"]
        rows = [step[2] for step in steps if step[0] == "parameter"]
        rows += [step[3] for step in products if step[3] >= 0]
        matrices = [step[2] for step in products]
        if {*rows} & {*matrices}:
            raise Unreadable("it reads a parameter both as a matrix and number by number")
        read = dict.fromkeys([*matrices, *rows])
        places = {index: place for place, index in enumerate(read)}
        return [_with_places(step, places) for step in steps], [self._names[i] for i in read]

    def columns(self, x: Tensor) -> int:
        return x.numel() // self.samples if self.dim_of_samples(x) is not None else x.numel()

    def dim_of_samples(self, x: Tensor) -> int | None:
        """Where the samples are, 0 or 1; None of what has none."""
        sides = [n % self.samples if n else 1 for n in x.shape[:2]]
        return sides.index(0) if 0 in sides else None

    def know(self, tensor: Tensor, value: Value) -> None:
        of_rows = value.kind in ("samples", "series", "task")
        if of_rows and not self._holds(tensor, value):
            raise Unreadable("it makes other numbers than those of each sample")
        super().know(tensor, value)

    def _holds(self, x: Tensor, value: Value) -> bool:
        """Whether a tensor's shape is one that such a value may have."""
        at = self.dim_of_samples(x)
        places: dict[str, tuple[int | None, ...]] = {
            "samples": (0,), "task": (None,), "series": (0, 1) if x.dim() == 2 else (1,)
        }  # fmt: skip
        return at in places[value.kind] and self.widths[value.row] == self.columns(x)

    def kind_of(self, op: str, values: Sequence[Value]) -> str:
        kinds = {value.kind for value in values} - {"constant"}
        if not kinds <= {"samples", "task"} and not kinds <= {"series", "task"}:
            raise Unreadable("it mixes the samples, or computes with a weight")
        return next((kind for kind in ("samples", "series") if kind in kinds), "task")

    def index(self, x: Any) -> int | None:
        """Of a parameter, or None."""
        return self._indices.get(id(x))

    def of_unknown(self, x: Tensor) -> Value:
        index = self.index(x)
        if index is None:
            return super().of_unknown(x)
        row = self.put("parameter", b=index, width=x.numel())
        self.know(x, Value("task", row))
        return Value("task", row)

    def part(self, value: Value, begin: int, width: int) -> Value:
        """Numbers side by side."""
        if width < 1:
            raise Unreadable("it takes nothing of a sample")
        if width == self.widths[value.row]:
            return value
        return Value(value.kind, self.put("slice", value.row, x=begin, width=width))

    def join(self, values: Sequence[Value]) -> Value:
        kind = self.kind_of("join", values)
        first, *others = values
        row = first.row
        for other in others:
            width = self.widths[row] + self.widths[other.row]
            row = self.put("join", row, other.row, width=width)
        return Value(kind, row)

    def check_own(self, x: Tensor) -> None:
        """Unreadable if another tensor that may be read again would change with x."""
        memory = x.untyped_storage().data_ptr()
        others = [t for t in self.kept if t is not x or self.value(x).row == 0]
        shared = [t for t in others if t.untyped_storage().data_ptr() == memory]
        met = any(self.known(t) != GONE and not _are_apart(x, t) for t in shared)
        if met or self.index(x) is not None:
            raise Unreadable("it changes in place what it reads elsewhere")

    def weight(self, x: Any) -> tuple[int, bool] | None:
        """The parameter that a matrix is, and whether it is as the parameter is; or None."""
        index = self.index(x)
        if index is not None and x.dim() == 2:
            return index, True
        value = self.known(x)
        of = value is not None and value.kind in ("weight", "turned")
        return (value.row, value.kind == "weight") if value is not None and of else None


def _are_apart(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are other columns of one matrix."""
    if x.dim() != 2 or x.stride() != y.stride() or x.stride(1) != 1:
        return False
    width = x.stride(0)
    begins = [t.storage_offset() % width for t in (x, y)] if width else [0, 0]
    ends = [begin + t.shape[1] for begin, t in zip(begins, (x, y), strict=True)]
    return max(ends) <= width and (ends[0] <= begins[1] or ends[1] <= begins[0])


def _with_places(step: Step, places: Mapping[int, int]) -> Step:
    op, a, b, c, x, y, width = step
    if op == "linear":
        return op, a, places[b], places.get(c, -1), x, y, width
    return (op, a, places[b], c, x, y, width) if op == "parameter" else step
