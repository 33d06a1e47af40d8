"""Tensors of a forward that depend on no sample and no parameter: masks, places, lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.row_programs import Unreadable
from fastmeta.watching.frozen import is_flat

__all__ = ["Tables", "neighbours"]

# What makes tensors of nothing but numbers.
_MADE = (
    "arange", "eye", "full", "linspace", "ones", "scalar_tensor", "tril_indices", "triu_indices",
    "zeros",
)  # fmt: skip
# What makes them after the shape of another one.
_MADE_LIKE = ("full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
_WRITTEN = "lift_fresh"  # what Python's numbers have become


class Tables:
    """Which tensors have been made of such alone.

    Attributes:
        owned: those that the module has, and others of the user's.
        read: names of the buffers among them that something depends on.
    """

    def __init__(
        self, buffers: Mapping[str, Tensor], has_samples: Callable[[Tensor], bool]
    ) -> None:
        self._has_samples = has_samples
        self._names = {id(buffer): name for name, buffer in buffers.items()}
        self._tensors = {id(buffer): buffer for buffer in buffers.values()}
        self.owned = [*buffers.values()]
        self.read: dict[str, None] = {}

    def has(self, x: Any) -> bool:
        return id(x) in self._tensors

    def add(self, x: Tensor) -> None:
        self._tensors[id(x)] = x

    def note(self, x: Tensor) -> Tensor:
        """The tensor, whose numbers something depends on now."""
        if id(x) in self._names:
            self.read[self._names[id(x)]] = None
        return x

    def made(self, name: str, func: Any, args: Any, kwargs: Any) -> tuple[Any] | None:
        """What an operation makes of tables; None if it does not, or makes no table."""
        given = [*_tensors((*args, *kwargs.values()))]
        of_tables = bool(given) and all(map(self.has, given))
        if not of_tables and name not in ((*_MADE_LIKE, _WRITTEN) if given else _MADE):
            return None
        out = func(*args, **kwargs)
        found = [*_tensors((out,))]
        if any(self._has_samples(t) or t.requires_grad for t in found):
            return None
        for table in given if of_tables else ():
            self.note(table)
        for table in found:
            self.add(table)
        return (out,)

    def adopt(self, x: Tensor) -> bool:
        """Whether a tensor that the forward has from elsewhere is a table, which it is then.

        Those that are small enough are compared in each call, as all that a forward reads.
        """
        if not is_flat(x) or self._has_samples(x):
            return False
        self.add(x)
        self.owned.append(x)
        return True


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def neighbours(table: Tensor) -> list[tuple[float, int]]:
    """The numbers of a table, each with how many neighbours are the same."""
    runs: list[tuple[float, int]] = []
    for number in table.detach().to(torch.float64).reshape(-1).tolist():
        if runs and number.hex() == runs[-1][0].hex():
            runs[-1] = number, runs[-1][1] + 1
        else:
            runs.append((number, 1))
    if not 1 <= len(runs) <= _MOST_RUNS:
        raise Unreadable(f"it reads a table of nothing, or of more than {_MOST_RUNS} numbers")
    return runs


_MOST_RUNS = 256
