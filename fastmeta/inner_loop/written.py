"""Forwards that are arithmetic on each sample's numbers, as the native kernels run them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from fastmeta.functional.forward import has_hooks, module_lock
from fastmeta.functional.row_programs import NoRule, Step, Unreadable, read
from fastmeta.inner_loop.calls import check_attributes
from fastmeta.inner_loop.forward_rows import MOST_NUMBERS, ForwardRows
from fastmeta.inner_loop.forward_rules import FORWARD_RULES
from fastmeta.inner_loop.layers import unlike_parameters
from fastmeta.inner_loop.trace import Unknown, trace

__all__ = ["Written", "written_for_some", "written_of"]

_MOST_TENSORS = 512  # as in csrc/call.h


@dataclass(frozen=True)
class Written:
    """A module as the native kernels see it, for samples of one shape.

    Attributes:
        inputs, outputs: numbers of a sample, and of what becomes of it.
        steps: row 0 is the sample, row i + 1 what `steps[i]` makes of earlier ones; the last one is
            the result. "linear" and "parameter" name parameters by their index.
        names: the module's parameters and buffers, in the order that those indices mean.
        buffers: those names that are of buffers.
    """

    inputs: int
    outputs: int
    steps: tuple[Step, ...]
    names: tuple[str, ...]
    buffers: tuple[str, ...]
    fewest: ClassVar[int] = 1  # samples that a task must have


def written_of(module: nn.Module, sample: Sequence[int]) -> Written | str:
    """The steps that a forward takes with samples of a shape, or a sentence why there are none."""
    try:
        with module_lock:
            return _Reader(module).read(sample)
    except (Unknown, Unreadable) as reason:
        return str(reason)


def written_for_some(module: nn.Module) -> bool:
    """Whether there are steps for samples of some shape, a row or several."""
    with module_lock:
        try:
            reader = _Reader(module)
        except (Unknown, Unreadable):
            return False
        try:
            return any(map(reader.can_read, _shapes(module)))
        except NoRule:
            return False


def _shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of samples that a forward with such tensors may be for, the likely ones first."""
    shapes = [tensor.shape for tensor in (*module.parameters(), *module.buffers())]
    sides = sorted({n for shape in shapes for n in shape})
    less = {n - m for n in sides for m in sides if n > m}  # where something is joined to a sample
    widths = [*dict.fromkeys([*sides, *range(1, 9), *sorted(less)])]
    yield from ((width,) for width in widths[:_MOST_WIDTHS])
    parts = (n // m for n in sides for m in sides if n > m > 1 and n % m == 0)
    rows = [*dict.fromkeys([5, *sides, *(n - 1 for n in sides if n > 1), *parts])]
    few = [n for n in rows if n <= _LONGEST]  # what works for none of them would be tried for all
    yield from product(few[:_MOST_ROWS], widths[:_MOST_ROWS])


_MOST_WIDTHS, _MOST_ROWS, _LONGEST = 40, 16, 64


class _Reader:
    """Reads a forward by running what torch.fx traces of it; raises Unknown and Unreadable."""

    def __init__(self, module: nn.Module) -> None:
        check_attributes(module)
        if any(has_hooks(part) for part in module.modules()):
            raise Unreadable("it has hooks, which would not be called")
        root = nn.Sequential(module)
        self._module = module
        self._run = fx.GraphModule(root, trace(root))
        self._buffers = {n: b for n, b in module.named_buffers() if b.is_floating_point()}
        self._own: dict[str, Tensor] = {**dict(module.named_parameters()), **self._buffers}
        _check_tensors(self._own.values())

    def can_read(self, sample: Sequence[int]) -> bool:
        """NoRule where other samples would not change that."""
        try:
            return bool(self.read(sample).steps)
        except NoRule:
            raise
        except Unreadable:
            return False

    def read(self, sample: Sequence[int]) -> Written:
        sides = {*sample, *(n for tensor in self._own.values() for n in tensor.shape)}
        first, second = [n for n in _SAMPLES if n not in sides][:2]
        steps, names = self._steps(first, sample)
        if self._steps(second, sample) != (steps, names):
            raise Unreadable("it depends on the number of samples")
        buffers = [name for name in names if name in self._buffers]
        unlike = unlike_parameters(self._module, [n for n in names if n not in buffers])
        if unlike is not None:
            raise Unreadable(unlike)
        if len(names) > _MOST_TENSORS:
            raise Unreadable(f"it reads more than {_MOST_TENSORS} parameters")
        inputs = math.prod(sample)
        if inputs + sum(step[6] for step in steps) > MOST_NUMBERS:
            raise Unreadable(f"it makes more than {MOST_NUMBERS} numbers of a sample")
        return Written(inputs, steps[-1][6], tuple(steps), tuple(names), tuple(buffers))

    def _steps(self, samples: int, sample: Sequence[int]) -> tuple[list[Step], list[str]]:
        dtype = next(iter(self._own.values())).dtype
        generator = torch.Generator().manual_seed(samples)
        x = torch.randn(samples, *sample, dtype=dtype, generator=generator)
        rows = ForwardRows(x, self._own)
        # forward, not the call, which would print where it raises
        with _operations_of_pytorch():
            y, _ = read(self._run.forward, (x,), rows, FORWARD_RULES)
        return rows.result(y)


@contextmanager
def _operations_of_pytorch() -> Iterator[None]:
    """No LSTM is one call of oneDNN, as it would be in float32."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # for all threads, which then get the same more slowly
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


_SAMPLES = tuple(n for n in range(211, 2000) if all(n % k for k in range(2, 45)))  # primes


def _check_tensors(own: Iterable[Tensor]) -> None:
    if {type(tensor) for tensor in own} - {Tensor, nn.Parameter}:
        raise Unreadable("its parameters are of a type of their own")
    if {tensor.device.type for tensor in own} != {"cpu"}:
        raise Unreadable("its parameters are not on a CPU")
    dtypes = {tensor.dtype for tensor in own}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise Unreadable("its parameters are not all of one real type")
