"""The Triton kernels: whether they can run here, and on which tensors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastmeta.backends.operation import FakeTensor
from fastmeta.backends.registry import requested_backend

__all__ = ["DTYPES", "interprets", "on_their_device", "refusal", "takes", "unavailable"]

_Run = TypeVar("_Run", bound=Callable[..., Any])

_OLDEST = (3, 4)  # earlier ones take no small products
_CAPABILITY = (8, 0)
DTYPES = (torch.float32, torch.float64)


def unavailable() -> str | None:
    """Why no Triton kernel can run here, or None."""
    return _without_triton() or (None if interprets() else _without_gpu())


def interprets() -> bool:
    """Whether Triton runs kernels in Python, on CPU tensors: for tests.

    Triton reads the variable when it is imported; this module only asks what it will have read.
    """
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def refusal(
    *tensors: Tensor | None, precision: str = "fp32", dtypes: Collection[torch.dtype] = DTYPES
) -> str | None:
    """None if Triton kernels can take these, with products in a precision; else why not.

    dtypes: of the kernels, where they are not float32 and float64 alone.
    """
    on_cpu = interprets()
    if precision == "bf16" and on_cpu:
        return "Triton's interpreter has no products in bfloat16"
    for tensor in tensors:
        if tensor is None:
            continue
        if not (tensor.is_cpu if on_cpu else tensor.is_cuda):
            device = "cpu" if on_cpu else "cuda"
            return f"the tensors are on {tensor.device}, and the kernels run on {device}"
        if tensor.dtype not in dtypes:
            return f"the tensors are {tensor.dtype}; the kernels are float32 and float64"
        if tensor.numel() == 0:
            return "a tensor is empty"
        if tensor.is_neg():
            return "a tensor is a view with the sign turned, which resolve_neg makes plain"
        if precision != "fp32" and tensor.dtype is not torch.float32:
            return f"the tensors are {tensor.dtype}, which no other precision than fp32 is for"
    return _without_triton() or (None if on_cpu else _without_gpu())


def takes(
    *tensors: Tensor | None, precision: str = "fp32", dtypes: Collection[torch.dtype] = DTYPES
) -> bool:
    """Whether the Triton kernels are to run on these: where they can, on a GPU or by demand.

    Raises:
        ValueError: the backend "triton" is demanded, or a precision that only it has, and it cannot
            run this; with the reason.
    """
    requested = requested_backend()
    first = tensors[0]
    if requested is None and precision == "fp32" and first is not None and not first.is_cuda:
        return False  # soon: small calls on the CPU come here too
    reason: str | None = None
    if requested not in (None, "triton"):
        reason = f'the backend "{requested}" is in force'
    elif requested is None and not all(tensor is None or tensor.is_cuda for tensor in tensors):
        reason = "the tensors are not on a GPU"
    else:
        reason = refusal(*tensors, precision=precision, dtypes=dtypes)
    if reason is not None and requested == "triton":
        raise ValueError(f'the backend "triton" was demanded but cannot run this: {reason}')
    if reason is not None and precision != "fp32":
        raise ValueError(f'precision "{precision}" needs the Triton kernels: {reason}')
    return reason is None


def on_their_device(run: _Run) -> _Run:
    """Let `run` start kernels on the device of its first argument: Triton takes the current one.

    That argument is a tensor, or a tuple that begins with one. Where it is fake no kernel starts.
    """

    @wraps(run)
    def start(first: Any, *args: Any, **kwargs: Any) -> Any:
        tensor = first if isinstance(first, Tensor) else first[0]
        if type(tensor) is FakeTensor:
            with _no_launches():
                return run(first, *args, **kwargs)
        if tensor.is_cuda and tensor.get_device() == torch.cuda.current_device():
            return run(first, *args, **kwargs)
        with torch.cuda.device_of(tensor):
            return run(first, *args, **kwargs)

    return start  # type: ignore[return-value]


@contextmanager
def _no_launches() -> Iterator[None]:
    """Kernels do not start on fake tensors; on others they do, as another thread's may be."""
    from triton.runtime.jit import KernelInterface

    launcher = KernelInterface.__getitem__

    def launch(kernel: Any, grid: Any) -> Callable[..., Any]:
        start = launcher(kernel, grid)
        return lambda *args, **options: (
            None if FakeTensor in map(type, args) else start(*args, **options)
        )

    KernelInterface.__getitem__ = launch
    try:
        yield
    finally:
        KernelInterface.__getitem__ = launcher


@cache
def _without_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    found = version("triton")
    if tuple(int(part) for part in found.split(".")[:2]) < _OLDEST:
        return f"triton is {found}, and the kernels need {'.'.join(map(str, _OLDEST))}"
    return None


@cache
def _without_gpu() -> str | None:
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "no NVIDIA GPU; TRITON_INTERPRET=1 runs the kernels slowly on the CPU"
    best = max(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
    if best < _CAPABILITY:
        return f"the GPU's compute capability is {best}, and the kernels need {_CAPABILITY}"
    return None
