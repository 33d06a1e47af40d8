"""Writes in place that one task's forward would see elsewhere, and that vmap loses."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.transforms import NotForManyTasks, is_wrapped

__all__ = ["Aliases", "asks_in_place"]

# What gives a view of a tensor where it can, else a copy.
_VIEWS_OR_COPIES = frozenset((
    Tensor.contiguous, Tensor.reshape, Tensor.reshape_as, Tensor.flatten, Tensor.ravel,
    torch.reshape, torch.flatten, torch.ravel,
))  # fmt: skip


class Aliases:
    """The tensors of a forward under vmap, and which of them might be one memory without it.

    `h.contiguous()` is `h` itself to one task, where all tasks' results of a convolution may lie
    in another order, and are copied.
    """

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Tensor]] = []
        self._apart: list[tuple[int, int]] = []  # the memory of a tensor and of what may be a view

    def before(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """NotForManyTasks if the call writes into what may be, for one task, somebody else's."""
        if not self._apart or not _writes(function, args, kwargs):
            return
        written = _first(args, kwargs)  # vmap itself refuses what is written to `out`
        memory = _memory(written) if isinstance(written, Tensor) else 0
        others = {there if here == memory else here
                  for here, there in self._apart if memory in (here, there)}  # fmt: skip
        if others and any(_memory(x) in others for x in self._alive()):
            raise NotForManyTasks(
                "its forward changes a tensor in place that it may read as a view of another one"
            )

    def after(
        self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Remember what a call gave."""
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self._seen.append(weakref.ref(x))
        if function in _VIEWS_OR_COPIES:
            source = _first(args, kwargs)
            here, there = _memory(source), _memory(result)
            if here != there:
                self._seen.append(weakref.ref(source))
                self._apart.append((here, there))

    def _alive(self) -> list[Tensor]:
        return [x for seen in self._seen if (x := seen()) is not None]


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs.get("input")


def _writes(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    name = getattr(function, "__name__", "")
    if name.endswith("__"):
        return name in _WRITING_OPERATORS
    return name.endswith("_") or asks_in_place(function, args, kwargs)


_WRITING_OPERATORS = {
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__",
    "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
}  # fmt: skip


def asks_in_place(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call says `inplace=True`, by the name or by its place: F.relu(x, True)."""
    if not any(value is True for value in (*args, kwargs.get("inplace"))):
        return False
    try:
        given: Mapping[str, Any] = inspect.signature(function).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # functions of torch itself, none of which take it
        given = kwargs
    return given.get("inplace") is True


def _memory(x: Tensor) -> int:
    while is_wrapped(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.untyped_storage().data_ptr()
