"""What every model refuses."""

from __future__ import annotations

from collections.abc import Sequence

from fastmeta.counts import whole_number

__all__ = ["check_positive", "check_sizes"]


def check_positive(**values: int) -> None:
    """ValueError naming the first argument that is not a whole number of at least 1."""
    for name, value in values.items():
        whole_number(name, value)


def check_sizes(sizes: Sequence[int]) -> None:
    """ValueError unless `sizes` are the widths of a network from its input to its output."""
    if len(sizes) < 2:
        raise ValueError(f"sizes must be two or more widths of at least 1, not {list(sizes)}")
    for size in sizes:
        whole_number("a width of sizes", size)
