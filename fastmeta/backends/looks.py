"""What tensors look like, as a key: a call like one that was checked need not be checked again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.backends import cpu

__all__ = ["described", "looks", "looks_and_addresses", "plain_looks"]


def _nothing(tensors: list[Any]) -> None:
    return None


def _native_functions() -> tuple[Callable[..., Any], ...]:
    """Those of the native module, or what tells that it cannot: they read through DLPack."""
    native = cpu.native
    if native is None or not cpu.reads_tensors:
        return _nothing, _nothing
    return native.looks, native.looks_and_addresses


_native_looks, _native_looks_and_addresses = _native_functions()


def looks(tensors: list[Any]) -> Hashable:
    """Shapes, dtypes, devices, which are contiguous and which require grad; None if one is none."""
    if torch.compiler.is_compiling():
        return _looks(tensors)
    return _native_looks(tensors) or _looks(tensors)


def plain_looks(tensors: list[Any]) -> Hashable:
    """`looks`, but None too where one is not of PyTorch's own types, or it takes long to tell."""
    return None if torch.compiler.is_compiling() else _native_looks(tensors)


def looks_and_addresses(tensors: list[Tensor]) -> tuple[Hashable, list[int]]:
    """Shapes, dtypes, devices and which are plain and contiguous; and where the numbers are."""
    return _native_looks_and_addresses(tensors) or (described(tensors), _addresses(tensors))


def described(tensors: Sequence[Tensor]) -> Hashable:
    """As `looks_and_addresses` tells it of tensors that are not of PyTorch's own types."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return tuple([(_look(tensor), wrapped(tensor)) for tensor in tensors])


def _addresses(tensors: list[Tensor]) -> list[int]:
    """None where torch.func has left a wrapper, whose looks are not known."""
    if any([torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors]):
        return []
    return [tensor.data_ptr() for tensor in tensors]


def _looks(tensors: list[Any]) -> Hashable:
    if not all([isinstance(tensor, Tensor) for tensor in tensors]):
        return None
    return tuple([(_look(t), t.requires_grad) for t in tensors])


def _look(tensor: Tensor) -> Hashable:
    dense = tensor.layout is torch.strided and tensor.is_contiguous() and not tensor.is_neg()
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout, dense
