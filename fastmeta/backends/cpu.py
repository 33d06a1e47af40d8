"""The native CPU kernels: loads `fastmeta._native`, or says why it cannot be had."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

# PyTorch comes first: the kernels run on the threads of the OpenMP runtime that it loads.
import torch
from torch import Tensor

from fastmeta.backends.build_info import build_failure
from fastmeta.backends.kernels import Kernels, Step
from fastmeta.backends.operation import FakeTensor
from fastmeta.backends.registry import requested_backend

__all__ = [
    "empty", "empty_like", "kernels", "native", "refusal", "release_memory", "takes", "unavailable",
    "usable_cores",
]  # fmt: skip

native: ModuleType | None
try:
    native = importlib.import_module("fastmeta._native")
except ImportError as error:
    native = None
    _load_error = str(error)


def unavailable() -> str | None:
    """Why the native kernels cannot run here, or None."""
    if native is not None:
        return None
    return f"the native kernels did not load ({_load_error}); {build_failure('error')}"


def refusal(*tensors: Tensor | None) -> str | None:
    """None if the kernels of single operations take these, else the reason why not."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"the tensors are on {tensor.device}, and these kernels are for the CPU"
        if tensor.dtype not in (torch.float32, torch.float64):
            return f"the tensors are {tensor.dtype}; the kernels are float32 and float64"
        if tensor.numel() == 0:
            return "a tensor is empty"
        if tensor.is_neg():
            return "a tensor is a view with the sign turned, which resolve_neg makes plain"
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return "a tensor is a wrapper that torch.func has left"
    return unavailable()


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernels of single operations are to run on these: where they can, if allowed."""
    return requested_backend() != "reference" and refusal(*tensors) is None


@cache
def kernels(dtype: str) -> Kernels:
    """The kernels of "float32" or "float64"."""
    assert native is not None
    run_forward = getattr(native, f"forward_{dtype}")
    run_backward = getattr(native, f"backward_{dtype}")
    threads = torch.get_num_threads

    def forward(call: Any, like: Tensor, addresses: Sequence[int], *outputs: Any) -> Any:
        return run_forward(call, threads(), addresses, *outputs)

    def backward(call: Any, like: Tensor, addresses: Sequence[int], *others: Any) -> None:
        run_backward(call, threads(), addresses, *others)

    new_call = getattr(native, f"call_{dtype}")
    return Kernels(native.Chain, new_call, forward, backward, _step(dtype), lambda call, device: "")


def _step(dtype: str) -> Step:
    run_step = getattr(native, f"step_{dtype}")
    multiply = getattr(native, f"scale_{dtype}")
    threads = torch.get_num_threads

    def run(call: Any, addresses: Sequence[int], *outputs: Any) -> None:
        run_step(call, threads(), addresses, *outputs)

    def scale(tensors: Sequence[tuple[int, int]], factor: float) -> None:
        multiply(tensors, factor, threads())

    return Step(run, getattr(native, f"common_value_{dtype}"), scale)


_LARGE = 1 << 17  # bytes: from here on malloc may give pages back, and take fresh ones


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """`like.new_empty(shape)`, if it is large in memory that is kept when the tensor is gone.

    Fresh pages cost as much as writing to them. `release_memory` gives back what is kept.
    """
    size = math.prod(shape) * like.element_size()
    if native is None or type(like) is FakeTensor or size < _LARGE:
        return like.new_empty(shape)
    flat = torch.frombuffer(native.Buffer(size), dtype=like.dtype)
    no_view = like.new_empty(0).set_(flat.untyped_storage())
    return no_view.resize_(shape)


def empty_like(x: Tensor) -> Tensor:
    """`empty(x.shape, x)`, of a contiguous x in less time."""
    small = x.numel() * x.element_size() < _LARGE
    return torch.empty_like(x) if small else empty(x.shape, x)


def release_memory() -> None:
    """Give back the memory that the native kernels keep from call to call."""
    if native is not None:
        native.release_memory()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
