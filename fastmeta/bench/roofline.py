"""Where fastmeta's time goes: arithmetic, data, threads, and Python."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastmeta.backends import cpu
from fastmeta.bench.rivals import FASTMETA, Step
from fastmeta.bench.timing import measure, seconds_of
from fastmeta.bench.workloads import Problem

_KERNELS = "forward_", "backward_", "step_", "scale_"


class _Stopwatch:
    """Stands in for the native module and adds up the seconds spent in its kernels."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._native, name)
        return self._timed(attribute) if name.startswith(_KERNELS) else attribute

    def _timed(self, kernel: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return kernel(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def native_share(problem: Problem, seconds: float) -> float | None:
    """The share of fastmeta's step that the native kernels take; the rest is Python and autograd.

    None where the native module is not loaded.
    """
    if cpu.native is None:
        return None
    with _stopwatch() as stopwatch:
        step = FASTMETA.build(problem)
        step()  # plans are made here, with the kernels under the stopwatch
        stopwatch.seconds = total = 0.0
        while total < seconds:
            total += seconds_of(step)
    return stopwatch.seconds / total


def autograd_seconds(problem: Problem, seconds: float) -> float:
    """Median seconds of a step that computes nothing, on PyTorch's way to the same gradients.

    No `autograd.Function` of Python can take less.
    """
    parameters = [value.clone().requires_grad_() for value in problem.parameters.values()]

    def step() -> None:
        _Nothing.apply(*parameters).mean().backward()
        for parameter in parameters:
            parameter.grad = None

    return measure({"step": step}, seconds)["step"].median


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.gradients = [torch.empty_like(parameter) for parameter in parameters]
        return parameters[0].new_empty(1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(ctx.gradients)


def one_thread_seconds(step: Step, seconds: float) -> float:
    """Median seconds of a step on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure({"step": step}, seconds)["step"].median
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _stopwatch() -> Iterator[_Stopwatch]:
    native = cpu.native
    stopwatch = _Stopwatch(native)
    cpu.native = stopwatch  # type: ignore[assignment]
    cpu.kernels.cache_clear()
    try:
        yield stopwatch
    finally:
        cpu.native = native
        cpu.kernels.cache_clear()
