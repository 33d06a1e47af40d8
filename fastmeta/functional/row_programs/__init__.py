"""Functions of samples as programs of row operations, which native kernels run and differentiate.

What a function does is read by running it once and looking at what PyTorch's dispatcher is asked to
do, so that it does not matter how it is spelled.
"""

from fastmeta.functional.row_programs.functions import held
from fastmeta.functional.row_programs.lengths import lengths_as_sizes
from fastmeta.functional.row_programs.reader import Operation, operations, read, watched
from fastmeta.functional.row_programs.rows import NO_TOTAL, PAIRS, Rows, Value
from fastmeta.functional.row_programs.rules import RULES, Rule
from fastmeta.functional.row_programs.step import (
    Fails,
    NoRule,
    Step,
    Unreadable,
    needed,
    renumbered,
    rows_of,
)

__all__ = [
    "Fails", "NO_TOTAL", "NoRule", "Operation", "PAIRS", "RULES", "Rows", "Rule", "Step",
    "Unreadable", "Value", "held", "lengths_as_sizes", "needed", "operations", "read",
    "renumbered", "rows_of", "watched",
]  # fmt: skip
