"""What measuring on a GPU needs beside a CPU's: waiting for it, its memory, its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

CPU = torch.device("cpu")

# Calls of the CUDA runtime that hand the GPU something to do.
_LAUNCHES = (
    "cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync",
)  # fmt: skip


def waits_for(device: torch.device) -> Callable[[], None]:
    """A function that returns when all work given to the device is done."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@dataclass
class Peak:
    """``bytes``: allocated at the peak of a block beyond what was there before; None on a CPU."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watch the GPU memory that PyTorch allocates inside the block."""
    peak = Peak()
    if device.type != "cuda":
        yield peak
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield peak
    torch.cuda.synchronize(device)
    peak.bytes = torch.cuda.max_memory_allocated(device) - before


class Work(NamedTuple):
    """What one step does on a GPU.

    ``launches``: calls that hand the GPU something to do, a whole CUDA graph being one.
    ``kernels``: that ran, and ``busy_s``: seconds in which one did, summed.
    """

    launches: int
    kernels: int
    busy_s: float


def work_of(step: Callable[[], Any], device: torch.device) -> Work | None:
    """Count one call of a warm step with PyTorch's profiler; None on a CPU."""
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize(device)
    return count_work(profile.events())


def count_work(events: Iterable[Any]) -> Work:
    """Count the profiler's events of one step."""
    launches, kernels, busy_us = 0, 0, 0.0
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if not event.name.startswith(("Memcpy", "Memset")):
                kernels += 1
                busy_us += event.time_range.elapsed_us()
        elif event.name.startswith(_LAUNCHES):
            launches += 1
    return Work(launches, kernels, busy_us / 1e6)


@contextmanager
def ieee_products() -> Iterator[None]:
    """Float32 products in float32 for everyone: PyTorch convolves in TF32 unless told not to."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
