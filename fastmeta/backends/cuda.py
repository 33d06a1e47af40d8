"""The CUDA kernels: loads `fastmeta._cuda` where there is a GPU, or says why it cannot be had.

What they keep from a forward to its backward, and their scratch, are tensors of PyTorch's
allocator: nothing waits for the device, and CUDA graphs can capture the calls, but for the first
of an inner loop of some shapes, which plans it.

What a block does for a task is a program (csrc/cuda/). One kernel carries out any; with
FASTMETA_CUDA_PROGRAMS=compiled in the environment, plans made from then on have one compiled for
theirs alone.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backends.build_info import build_failure
from fastmeta.backends.kernels import Kernels
from fastmeta.backends.nvrtc import compile_cuda

__all__ = ["kernels", "native", "unavailable"]


class _Call:
    """A native call with what runs it, by device and by what is wanted of it."""

    def __init__(self, native_call: Any, new_plan: Callable[..., Any]) -> None:
        self.native = native_call
        self._new_plan = new_plan
        self._plans: dict[tuple[Any, ...], _Plan] = {}

    def plan(self, like: Tensor, device: int, *wanted: bool) -> Any:
        """The plan for (backward, fast, rates, support_x, query_x, loss, predictions, fast)."""
        key = (device, *wanted)
        known = self._plans.get(key)
        if known is None:  # of two threads the first one's stays, for both
            known = self._plans.setdefault(key, self._plan(like, device, wanted))
        if known.operations is not None:
            _keep_for_stream(known, _place(like)[1], device)
        return known.native

    def _plan(self, like: Tensor, device: int, wanted: tuple[bool, ...]) -> _Plan:
        if _captures():
            raise RuntimeError(
                "the first call of an inner loop of these shapes plans it, which a CUDA graph "
                "cannot capture: make one call before the capture"
            )
        plan = self._new_plan(self.native, *wanted, device)
        operations = plan.operations()
        if not operations:
            return _Plan(plan, None, 0)
        there = _bytes(like, len(operations), "what its kernels do")
        there.copy_(torch.frombuffer(bytearray(operations), dtype=torch.uint8))
        source = plan.source() if _compiles_programs() else ""
        if source:
            plan.put_code(compile_cuda(source, *_target(device)), device)
        plan.put_operations(there.data_ptr())
        return _Plan(plan, there, _place(like)[1])


class _Plan(NamedTuple):
    """A native plan, its operations on the device if it has any, and the stream that has them."""

    native: Any
    operations: Tensor | None
    stream: int


_PROGRAMS = "FASTMETA_CUDA_PROGRAMS"


def _compiles_programs() -> bool:
    programs = os.environ.get(_PROGRAMS, "interpreted")
    if programs not in ("interpreted", "compiled"):
        raise ValueError(f"{_PROGRAMS}={programs}: expected interpreted or compiled")
    return programs == "compiled"


def _target(device: int) -> tuple[tuple[int, int], str]:
    """The compute capability, and the version of CUDA that PyTorch has."""
    assert torch.version.cuda is not None
    return torch.cuda.get_device_capability(device), torch.version.cuda


# Operations that a CUDA graph may read for as long as it lives, which nobody is told of.
_in_graphs: dict[tuple[int, int], Tensor] = {}


def _keep_for_stream(plan: _Plan, stream: int, device: int) -> None:
    """Let nobody get the memory of the operations while a stream or a graph may read them."""
    there = plan.operations
    assert there is not None
    if _captures():
        _in_graphs[device, there.data_ptr()] = there
    elif stream != plan.stream:
        there.record_stream(torch.cuda.current_stream(device))


def unavailable() -> str | None:
    """Why the CUDA kernels cannot run here, or None."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def native() -> ModuleType:
    """The native module.

    Raises:
        RuntimeError: it cannot be had, with the reason.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


@cache
def kernels(dtype: str) -> Kernels:
    """The kernels of "float32" or "float64"."""
    module = native()
    new_call, new_plan = getattr(module, f"call_{dtype}"), getattr(module, f"plan_{dtype}")
    run_forward = getattr(module, f"forward_{dtype}")
    run_backward = getattr(module, f"backward_{dtype}")
    why_unfit = getattr(module, f"unfit_{dtype}")

    def call(*arguments: Any) -> _Call:
        return _Call(new_call(*arguments), new_plan)

    def forward(
        call: _Call, like: Tensor, addresses: list[int], keep: bool,
        predictions: int, loss: int, fast: Sequence[int],
    ) -> Tensor | None:  # fmt: skip
        device, stream = _place(like)
        with _current(device):
            plan = call.plan(like, device, False, bool(fast), *[False] * 6)
            record = _bytes(like, plan.record_bytes, "theta_1 .. theta_K") if keep else None
            kept = 0 if record is None else record.data_ptr()
            run_forward(
                call.native, plan, (device, stream), addresses, kept, predictions, loss, fast
            )
        return record

    def backward(
        call: _Call, like: Tensor, addresses: list[int], record: Tensor, grad_loss: int,
        grad_predictions: int, grad_fast: list[int], parameters: list[int], rates: list[int],
        support_x: int, query_x: int,
    ) -> None:  # fmt: skip
        device, stream = _place(like)
        wanted = (rates, support_x, query_x, grad_loss, grad_predictions, grad_fast)
        with _current(device):
            plan = call.plan(like, device, True, False, *map(bool, wanted))
            workspace = _bytes(like, plan.workspace_bytes, "partial sums")
            run_backward(
                call.native, plan, (device, stream), addresses, record.data_ptr(),
                workspace.data_ptr(), grad_loss, grad_predictions, grad_fast, parameters, rates,
                support_x, query_x,
            )  # fmt: skip

    def unfit(call: _Call, device: torch.device) -> str:
        index = device.index or 0
        with _current(index):
            return why_unfit(call.native, index)

    return Kernels(module.Chain, module.Loss, call, forward, backward, None, unfit, _empty)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return like.new_empty(shape)


def _current(device: int) -> AbstractContextManager[None]:
    """PyTorch's current device for the length of a native call, which counts on it."""
    if torch.cuda.current_device() == device:
        return nullcontext()
    return torch.cuda.device(device)


def _captures() -> bool:
    """Whether what is launched now goes into a CUDA graph."""
    return torch.cuda.is_current_stream_capturing()


def _place(like: Tensor) -> tuple[int, int]:
    """Device index and the stream that PyTorch is on there."""
    device = like.get_device()
    return device, torch.cuda.current_stream(device).cuda_stream


def _bytes(like: Tensor, size: int, what: str) -> Tensor:
    try:
        return like.new_empty(max(size, 16), dtype=torch.uint8)
    except torch.cuda.OutOfMemoryError as error:
        raise torch.cuda.OutOfMemoryError(
            f"fastmeta's inner loop needs {size:,} bytes for {what}: fewer tasks a call, or fewer "
            f"steps, need less in proportion ({error})"
        ) from error


@lru_cache(maxsize=1)
def _load() -> ModuleType | str:
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU here, or no driver for it"
    try:
        module = importlib.import_module("fastmeta._cuda")
    except ImportError as error:
        return f"the CUDA kernels did not load ({error}); {build_failure('cuda_error', 'error')}"
    try:
        module.devices()
    except RuntimeError as error:
        return f"the CUDA driver does not serve these kernels: {error}"
    return module
