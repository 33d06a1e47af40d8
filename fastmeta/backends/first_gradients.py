"""Leaves that only wait for their first gradient: looked at and given it, a native call each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmeta.backends import cpu

__all__ = ["fresh_gradients", "give_gradients"]

_native: Any = cpu.native if cpu.reads_tensors else None


def fresh_gradients(tensors: list[Tensor]) -> list[Tensor | None] | None:
    """For each that requires grad a tensor to write its gradient to, else None.

    None instead of the list if one of them may be no leaf, has hooks or a gradient, or is there
    twice.
    """
    return None if _native is None else _native.fresh_gradients(tensors)


def give_gradients(
    tensors: list[Tensor], gradients: list[Tensor | None]
) -> list[tuple[Tensor, Tensor]]:
    """Each becomes the .grad of a tensor that has none; returns those that are left."""
    if _native is not None:
        return _native.give_gradients(tensors, gradients)
    pairs = zip(tensors, gradients, strict=True)
    return [(tensor, gradient) for tensor, gradient in pairs if gradient is not None]
