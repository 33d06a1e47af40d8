"""Products with matrices that are computed from parameters, made cheaper.

A matrix that a parameter is but for scales of its rows or columns, as with weight norm, needs no
numbers of its own: x @ (w * s) is (x @ w) * s where s scales what comes out, and (x * s) @ w where
it scales what goes in. What is transposed is read the other way round, sums of products are
products themselves, and a product with nothing but a parameter is a linear layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fastmeta.functional.row_programs import Step, renumbered, rows_of

__all__ = ["with_fewer_matrices"]

_FEWEST_OF_SUM = 16  # each product is called for
_FEWEST = 8  # numbers of an input: with fewer a matrix is no larger than what comes of its samples


def with_fewer_matrices(steps: Sequence[Step], shapes: Sequence[Sequence[int]]) -> list[Step]:
    """Steps that come to the same, of which some may not be needed; row 0 is a sample.

    Args:
        shapes: of the parameters.
    """
    return _Rewriter(steps, shapes).rewritten()


class _Scale(NamedTuple):
    op: str
    row: int
    of_outputs: bool


class _Shape(NamedTuple):
    """Of so many matrices, each of `times` rows of k numbers, which become rows of n."""

    matrices: int
    times: int
    k: int
    n: int

    @property
    def width(self) -> int:
        return self.matrices * self.times * self.n


class _Rewriter:
    def __init__(self, steps: Sequence[Step], shapes: Sequence[Sequence[int]]) -> None:
        self._steps = steps
        self._shapes = shapes
        self._uses = Counter(row for step in steps for row in rows_of(step))
        self._of_task = [False]
        for step in steps:
            self._of_task.append(all(self._of_task[row] for row in rows_of(step)))
        self._new: list[Step] = []
        self._place = {0: 0}  # of the rows there were

    def rewritten(self) -> list[Step]:
        for row, step in enumerate(self._steps, start=1):
            if step[0] == "product" and step[2]:
                self._place[row] = self._product(step)
            elif step[0] == "sum" and (factors := self._factors(step)):
                left, right = (self._place[factor] for factor in factors)
                parts = step[6]
                product = ("product", left, right, 1, float(parts), 1.0, parts)
                self._place[row] = self._put(product)
            else:
                self._place[row] = self._put(renumbered(step, self._place))
        return self._new

    def _put(self, step: Step) -> int:
        self._new.append(step)
        return len(self._new)

    def _width(self, row: int) -> int:
        return self._steps[row - 1][6]

    def _factors(self, step: Step) -> tuple[int, int] | None:
        """Rows whose products, which nothing else reads, are summed."""
        row = step[1]
        op, left, right, *_, width = self._steps[row - 1] if row else step
        few = width < _FEWEST_OF_SUM * step[6]
        if op != "multiply" or few or self._uses[row] != 1 or not left or not right:
            return None
        return (left, right) if self._width(left) == self._width(right) == width else None

    def _product(self, step: Step) -> int:
        _, left, row, turned, count, times, width = step
        n = int(width / (count * times))
        k = self._width(row) // (int(count) * n)
        shape = _Shape(int(count), int(times), k, n)
        scales: list[_Scale] = []
        scalable = self._of_task[row] and not self._of_task[left] and count == 1 and k >= _FEWEST
        while row:
            op, a, _, c, x, y, _ = self._steps[row - 1]
            scalable = scalable and self._uses[row] == 1  # else its numbers are worth having
            found = self._scaled(row, shape, turned) if scalable else None
            if op == "turn" and (c, x, y) == ((1, k, n) if turned else (1, n, k)):
                row, turned = a, 1 - turned
            elif found is not None:
                row, scale = found
                scales.append(scale)
            else:
                break
        return self._multiplied(self._place[left], row, shape, turned, scales)

    def _scaled(self, row: int, shape: _Shape, turned: int) -> tuple[int, _Scale] | None:
        """The matrix that one is but for a scale."""
        op, a, b, *_ = self._steps[row - 1]
        if op not in ("multiply", "divide"):
            return None
        for matrix, by in ((a, b), (b, a)) if op == "multiply" else ((a, b),):
            of_outputs = self._side(by, shape, turned)
            if of_outputs is not None and self._width(matrix) == shape.k * shape.n:
                source = by if self._width(by) == 1 else self._steps[by - 1][1]
                return matrix, _Scale(op, source, of_outputs)
        return None

    def _side(self, row: int, shape: _Shape, turned: int) -> bool | None:
        """Whether a row scales outputs, or inputs; None: neither."""
        if self._width(row) == 1:
            return True
        op, source, _, _, inner, _, width = self._steps[row - 1]
        rows, columns = (shape.n, shape.k) if turned else (shape.k, shape.n)
        if op != "repeat" or width != rows * columns:
            return None
        of = self._width(source) if source else 0
        if (inner, of) == (1, rows):
            return bool(turned)
        return not turned if inner == of == columns else None

    def _multiplied(
        self, left: int, row: int, shape: _Shape, turned: int, scales: Sequence[_Scale]
    ) -> int:
        count, times, k, n = shape
        for scale in scales:
            if not scale.of_outputs:
                left = self._rescaled(left, scale, times, k)
        weight = self._weight(row, shape, turned)
        if weight is None:
            right = self._place[row]
            made: Step = ("product", left, right, turned, float(count), float(times), shape.width)
        else:
            index, as_it_is = weight
            made = ("linear", left, index, -1, float(as_it_is), float(times), shape.width)
        result = self._put(made)
        for scale in scales:
            if scale.of_outputs:
                result = self._rescaled(result, scale, times, n)
        return result

    def _weight(self, row: int, shape: _Shape, turned: int) -> tuple[int, bool] | None:
        """The parameter that a matrix is, where it has that shape, and whether it is [k, n]."""
        op, _, index, *_ = self._steps[row - 1] if row else ("", 0, 0)
        if op != "parameter" or shape.matrices != 1 or len(self._shapes[index]) < 2:
            return None
        lies_alike = 1 in (shape.k, shape.n)  # transposed or not
        for as_it_is in (not turned, bool(turned)) if lies_alike else (not turned,):
            if self._shapes[index][0] == (shape.k if as_it_is else shape.n):
                return index, as_it_is
        return None

    def _rescaled(self, row: int, scale: _Scale, times: int, each: int) -> int:
        by, width = self._place[scale.row], times * each
        if times > 1 and self._width(scale.row) > 1:
            by = self._put(("repeat", by, 0, 0, float(each), 0.0, width))
        return self._put((scale.op, row, by, 0, 0.0, 0.0, width))
