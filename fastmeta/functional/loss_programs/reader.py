"""Reads a loss by running it: PyTorch's dispatcher is asked for each of its operations."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta.functional.loss_programs.program import Step, Unreadable
from fastmeta.functional.loss_programs.rows import Rows, Value
from fastmeta.functional.loss_programs.rules import RULES

__all__ = ["Reading", "operations", "read"]


class Reading(NamedTuple):
    steps: list[Step]
    adds: bool
    operations: list[str]


def read(loss: Any, given: tuple[Tensor, Tensor]) -> Reading:
    """What the loss does with these predictions and targets.

    Raises:
        Unreadable: it is not a mean or a sum over samples of what rules are there for.
    """
    rows = Rows(*given)
    reader = _Reader(rows)
    with torch.enable_grad(), reader:
        result = _run(loss, given)
    return Reading(*rows.needed(result), reader.operations)


def operations(loss: Any, given: tuple[Tensor, Tensor]) -> list[str]:
    """Which operations run."""
    names = _Names()
    with torch.enable_grad(), names:
        _run(loss, given)
    return names.operations


def _run(loss: Any, given: tuple[Tensor, Tensor]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that are nobody's
            return loss(*given)
    except Unreadable:
        raise
    except Exception as error:  # of the user's code, which other numbers may suit
        raise Unreadable(f"it does not run: {type(error).__name__}") from error


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to keep the compiler out, PyTorch would import it: a second


class _Names(_Mode):
    """Notes which operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


class _Reader(_Mode):
    """Makes steps of each operation that runs."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.operations: list[str] = []
        self._rows = rows

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations.append(str(func))
        rows = self._rows
        name = func.overloadpacket.__name__
        rule = RULES.get(name)
        if rule is None:
            raise Unreadable(f"it calls {name}, of which there is no native form")
        if not torch.is_grad_enabled():
            raise Unreadable("it switches gradients off")
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.is_floating_point() and out.dtype is not rows.dtype:
            raise Unreadable(f"it computes in {out.dtype}")
        value = rule(rows, out, *args, **kwargs)
        if isinstance(value, Value):
            rows.know(out, value)
        else:
            for part, its_value in zip(out, value, strict=False):
                rows.know(part, its_value)
        return out
