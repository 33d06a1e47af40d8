"""What a program is made of, and why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["Fails", "NoRule", "Step", "Unreadable", "needed", "renumbered", "rows_of"]

Step = tuple[str, int, int, int, float, float, int]  # op, a, b, c, x, y, width: csrc/row_program.h

_MOST_STEPS = 4096  # as in csrc/network/spec.h


class Unreadable(Exception):
    """Why something is no program, as a sentence."""


class Fails(Unreadable):
    """It raises an error of its own."""


class NoRule(Unreadable):
    """It calls an operation of which there is no native form, whatever it is called with."""


def needed(steps: Sequence[Step], last: int, given: int) -> list[Step]:
    """The steps that row `last` is made by, which comes last then; the first rows are given."""
    found, stack = set(), [last]
    while stack:
        row = stack.pop()
        if row >= given and row not in found:
            found.add(row)
            stack += rows_of(steps[row - given])
    if not found:  # a row that is given
        return [("slice", last, 0, 0, 0.0, 0.0, 1)]
    new_row = {row: row for row in range(given)}
    new_row |= {row: i for i, row in enumerate(sorted(found), start=given)}
    chosen = [renumbered(steps[row - given], new_row) for row in sorted(found)]
    if len(chosen) > _MOST_STEPS:
        raise Unreadable(f"it takes {len(chosen)} steps, more than {_MOST_STEPS}")
    return chosen


def rows_of(step: Step) -> tuple[int, ...]:
    """The rows that a step reads, of its a, b and c the first."""
    op, *operands = step[:4]
    return tuple(operands[: _COUNTS.get(op, 1)])


_TWO = (
    "add", "subtract", "multiply", "divide", "larger", "smaller", "greater", "greater_equal",
    "equal", "choose", "join", "product",
)  # fmt: skip
_COUNTS = {"constant": 0, "parameter": 0, "select": 3, **dict.fromkeys(_TWO, 2)}


def renumbered(step: Step, new_row: Mapping[int, int]) -> Step:
    """The same step where rows have other numbers."""
    op, a, b, c, x, y, width = step
    rows = [new_row[row] for row in rows_of(step)]
    a, b, c = *rows, *(a, b, c)[len(rows) :]
    return op, a, b, c, x, y, width
