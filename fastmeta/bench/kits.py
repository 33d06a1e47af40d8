"""The families of single operations: each file says what is computed, by whom, and what is right.

A kit has `FAMILY`, `POINT` (the class of its points), `OPERATIONS` (points by name) and the
functions `contestants`, `make_arrays` and `exact_result`.
"""

from __future__ import annotations

from types import ModuleType

from fastmeta.bench import encoders, operations, prototypes
from fastmeta.bench.encoders import Episodes
from fastmeta.bench.operations import Operation
from fastmeta.bench.prototypes import Prototypes

__all__ = ["KITS", "Single", "kit_of", "single_operations"]

Single = Operation | Prototypes | Episodes

KITS: tuple[ModuleType, ...] = (operations, prototypes, encoders)


def kit_of(point: Single) -> ModuleType:
    return next(kit for kit in KITS if isinstance(point, kit.POINT))


def single_operations() -> dict[str, Single]:
    """All of them, by name."""
    return {name: point for kit in KITS for name, point in kit.OPERATIONS.items()}
