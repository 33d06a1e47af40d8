"""Forwards that are arithmetic on each sample's numbers, as the native kernels run them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.functional.forward import in_every_place, module_lock
from fastmeta.functional.row_programs import (
    Fails,
    NoRule,
    Step,
    Unreadable,
    lengths_as_sizes,
    read,
)
from fastmeta.inner_loop.arithmetic.forward_rows import ForwardRows, most_numbers
from fastmeta.inner_loop.arithmetic.forward_rules import FORWARD_RULES
from fastmeta.inner_loop.randomness import random_state
from fastmeta.inner_loop.reading.layers import unlike_parameters
from fastmeta.inner_loop.reading.trace import DRAWS, Unknown
from fastmeta.inner_loop.reading.watched import watched
from fastmeta.watching.frozen import frozen, is_flat
from fastmeta.watching.weight_norm import has_other_hooks

__all__ = ["Written", "read_head", "unwritten_for_any", "written_of"]

_MOST_TENSORS = 512  # as in csrc/call.h


@dataclass(frozen=True)
class Written:
    """A module as the native kernels see it, for samples of one shape.

    Attributes:
        inputs: numbers of a sample.
        shape: of what becomes of it.
        steps: row 0 is the sample, row i + 1 what `steps[i]` makes of earlier ones; the last one is
            the result. "linear" and "parameter" name parameters by their index.
        names: the module's parameters and buffers, in the order that those indices mean.
        buffers: those names that are of buffers.
        fewest: samples that a task must have.
        tables: the other buffers that it depends on, by name, as they are now.
    """

    inputs: int
    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    names: tuple[str, ...]
    buffers: tuple[str, ...]
    fewest: int = 1
    tables: tuple[tuple[str, Any], ...] = ()

    @property
    def outputs(self) -> int:
        return math.prod(self.shape)


def written_of(module: nn.Module, sample: Sequence[int]) -> Written | str:
    """The steps that a forward takes with samples of a shape, or a sentence why there are none."""
    def read() -> Written:
        return _Reader(module).read(sample)

    try:
        with module_lock, watched(module, again=read):
            return read()
    except (Unknown, Unreadable) as reason:
        return str(reason)


def read_head(head: nn.Module, sample: Sequence[int], names: Mapping[str, str]) -> Written:
    """`written_of` for what somebody else watches, by other names of its tensors.

    Raises:
        Unreadable: there are no such steps.
    """
    written = _Reader(head).read(sample)
    return replace(
        written,
        names=tuple(names[name] for name in written.names),
        buffers=tuple(names[name] for name in written.buffers),
        tables=tuple((names[name], table) for name, table in written.tables),
    )


def unwritten_for_any(module: nn.Module) -> str | None:
    """Why there are no steps for samples of any shape, a row or several; None if there are some."""
    def read() -> str | None:
        return _Reader(module).unreadable_for_any()

    try:
        with module_lock, watched(module, again=read):
            return read()
    except (Unknown, Unreadable) as reason:
        return str(reason)


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
    """Reads a forward by running it; raises Unknown and Unreadable.

    It runs with copies of its tensors, so that it changes none, and knows no other ones.
    """

    def __init__(self, module: nn.Module) -> None:
        if any(has_other_hooks(part) for part in module.modules()):
            raise Unreadable("it has hooks, which would not be called")
        self._module = module
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        self._buffers = [name for name, buffer in buffers.items() if buffer.is_floating_point()]
        own = parameters | {name: buffers[name] for name in self._buffers}
        _check_tensors(own.values())
        self._copies = {name: _copy(tensor) for name, tensor in (parameters | buffers).items()}
        self._own = {name: self._copies[name] for name in own}
        others = [name for name in buffers if name not in own and is_flat(buffers[name])]
        self._others = {name: self._copies[name] for name in others}
        self._frozen = {name: frozen(buffers[name]) for name in self._others}

    def unreadable_for_any(self) -> str | None:
        """NoRule where other samples would not change that."""
        said = ""
        for sample in _shapes(self._module):
            try:
                self.read(sample)
                return None
            except (NoRule, Unknown):
                raise
            except Fails as reason:
                if "'indices'" in str(reason):  # of nn.Embedding, which takes no real numbers
                    raise
            except Unreadable as reason:
                said = said or str(reason)
        return said or "no samples were found that it takes"

    def read(self, sample: Sequence[int]) -> Written:
        for _ in range(3):  # another thread may draw meanwhile
            before = random_state()
            reading = self._read_twice(sample)
            if random_state() == before:
                return self._written(sample, *reading)
        raise Unreadable(DRAWS)

    def _read_twice(self, sample: Sequence[int]) -> _Reading:
        """Of two numbers of samples, whose multiples no tensor has."""
        sides = {*sample, *(n for tensor in self._own.values() for n in tensor.shape)} - {0}
        first, second = [n for n in _SAMPLES if all(side % n for side in sides)][:2]
        reading = self._read(first, sample)
        if self._read(second, sample) != reading:
            if self._read(first, sample) != reading:
                raise Unreadable("it computes something else each time that it is called")
            raise Unreadable("it depends on the number of samples")
        return reading

    def _read(self, samples: int, sample: Sequence[int]) -> _Reading:
        dtype = next(iter(self._own.values()), torch.empty(())).dtype
        generator = torch.Generator().manual_seed(samples)
        x = torch.randn(samples, *sample, dtype=dtype, generator=generator)
        rows = ForwardRows(x, self._own, self._others)
        with _operations_of_pytorch(), lengths_as_sizes(Tensor):
            y, _ = read(self._forward, (x,), rows, FORWARD_RULES)
        return _Reading(*rows.result(y), y.shape[1:], rows.fewest, [*rows.tables.read])

    def _forward(self, x: Tensor) -> Any:
        everywhere = in_every_place(self._module, self._copies)
        return functional_call(self._module, everywhere, (x,), tie_weights=False)

    def _written(
        self, sample: Sequence[int], steps: list[Step], names: list[str], shape: torch.Size,
        fewest: int, tables: list[str],
    ) -> Written:  # fmt: skip
        buffers = [name for name in names if name in self._buffers]
        unlike = unlike_parameters(self._module, [n for n in names if n not in buffers])
        if unlike is not None:
            raise Unreadable(unlike)
        if len(names) > _MOST_TENSORS:
            raise Unreadable(f"it reads more than {_MOST_TENSORS} parameters")
        inputs = math.prod(sample)
        most = most_numbers(len(steps))
        if inputs + sum(step[6] for step in steps) > most:
            raise Unreadable(f"it makes more than {most} numbers of a sample")
        frozen_tables = tuple((name, self._frozen[name]) for name in tables)
        return Written(
            inputs, tuple(shape), tuple(steps), tuple(names), tuple(buffers), fewest, frozen_tables
        )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


class _Reading(NamedTuple):
    steps: list[Step]
    names: list[str]
    shape: torch.Size  # of what it makes of a sample
    fewest: int
    tables: list[str]  # buffers of whole numbers or truths that it depends on


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
    if {tensor.device.type for tensor in own} - {"cpu"}:
        raise Unreadable("its parameters are not on a CPU")
    dtypes = {tensor.dtype for tensor in own}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise Unreadable("its parameters are not all of one real type")
