"""The native CPU kernels: loads `fastmeta._native`, or says why it cannot be had."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

# PyTorch comes first: the kernels run on the threads of the OpenMP runtime that it loads.
import torch
from torch import Tensor, nn

from fastmeta.backends.build_info import build_failure
from fastmeta.backends.kernels import Kernels, Step
from fastmeta.backends.registry import requested_backend

__all__ = [
    "empty", "kernels", "native", "reads_tensors", "refusal", "release_memory", "takes",
    "unavailable", "usable_cores",
]  # fmt: skip

native: ModuleType | None
try:
    native = importlib.import_module("fastmeta._native")
except ImportError as error:
    native = None
    _load_error = str(error)


def _reads_tensors() -> bool:
    """Whether the native module reads and makes tensors itself: newer PyTorch tells it how."""
    api = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if native is None or api is None:
        return False
    return bool(native.learn_tensors(api, Tensor, nn.Parameter))


reads_tensors = _reads_tensors()


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
        if tensor._is_zerotensor():
            return "a tensor is zeros that lie nowhere"
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
    return Kernels(
        native.Chain, native.Loss, new_call, forward, backward, _step(dtype),
        lambda call, device: "", empty,
    )


def _step(dtype: str) -> Step:
    run_step = getattr(native, f"step_{dtype}")
    multiply = getattr(native, f"scale_{dtype}")
    threads = torch.get_num_threads

    def run(call: Any, addresses: Sequence[int], *outputs: Any) -> None:
        run_step(call, threads(), addresses, *outputs)

    def scale(tensors: Sequence[Tensor | None], factor: float) -> None:
        multiply(tensors, factor, threads())

    return Step(run, getattr(native, f"common_value_{dtype}"), scale)


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """`like.new_empty(shape)` in less time; if it is large, in memory that is kept when it is gone.

    `release_memory` gives back what is kept. As of all tensors that come through DLPack, the memory
    cannot be resized: `resize_` to more elements is an error.
    """
    made = native.new_empty(like, shape) if reads_tensors else None  # type: ignore[union-attr]
    return like.new_empty(shape) if made is None else made


def release_memory() -> None:
    """Give back the memory that the native kernels keep from call to call."""
    if native is not None:
        native.release_memory()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
