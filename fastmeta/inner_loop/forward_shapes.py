"""What PyTorch's operations on shapes come to in a forward: views, turns, parts, sums."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from fastmeta.functional.row_programs import Rule, Unreadable, Value
from fastmeta.inner_loop.forward_rows import GONE, KINDS, ForwardRows

__all__ = ["SHAPE_RULES", "last", "log_softmax", "of_rows", "part", "same", "softmax"]


def of_rows(to: ForwardRows, x: Tensor) -> tuple[Value, tuple[int, ...]]:
    """What a tensor is, and the dimensions that each sample has in it."""
    value = to.value(x)
    if value.kind not in KINDS.values():
        raise Unreadable("it reshapes a weight")
    return value, to.sides(x, value)


# ---- views -------------------------------------------------------------------------------------


def same(to: ForwardRows, out: Tensor, x: Tensor, *args: Any, **options: Any) -> Value:
    """The same numbers in their order, or one number as often as wanted."""
    value, _ = of_rows(to, x)
    width, wanted = to.widths[value.row], to.columns(out)
    at = to.dim_of_samples(out)
    if value.kind == "series" and not _keeps_series(to, x, out):
        raise Unreadable("it reshapes what is one part after the other")
    if value.kind == "samples" and at != 0:
        raise Unreadable("it mixes the samples")
    kind = KINDS[at] if value.kind == "task" else value.kind
    if wanted == width:
        return Value(kind, value.row)
    if width != 1:
        raise Unreadable("it repeats the numbers of a sample")
    return Value(kind, to.put("add", value.row, to.number(0.0).row, width=wanted))


def _keeps_series(to: ForwardRows, x: Tensor, out: Tensor) -> bool:
    if x.dim() < 2 or out.dim() < 2:
        return False
    first = x.shape[0] == out.shape[0] and to.dim_of_samples(x) == to.dim_of_samples(out) == 1
    return first or out.shape[-1] == x.shape[-1]


def _squeezed(to: ForwardRows, out: Tensor, x: Tensor, *dims: Any) -> Value:
    over = dims[0] if dims else range(x.dim())
    over = [over] if isinstance(over, int) else over
    at = to.dim_of_samples(x)
    if at is not None and (not dims or any(dim % x.dim() == at for dim in over)):
        raise Unreadable("it would squeeze a lone sample")
    return same(to, out, x)


def _expanded(to: ForwardRows, out: Tensor, x: Tensor, *sizes: Any, **options: Any) -> Value:
    value, _ = of_rows(to, x)
    kind = KINDS[to.dim_of_samples(out)] if value.kind == "task" else value.kind
    if to.widths[value.row] in (1, to.columns(out)):
        return same(to, out, x)
    return Value(kind, to.broadcast(out, x, value))


def _repeated(to: ForwardRows, out: Tensor, x: Tensor, times: Sequence[int]) -> Value:
    value, sides = of_rows(to, x)
    kind, times = value.kind, list(times)
    if kind == "task" and to.dim_of_samples(out) == 0 and times[0] % to.samples == 0:
        kind, times[0] = "samples", times[0] // to.samples
    elif kind != "task" and times[0] != 1:
        raise Unreadable("it repeats the samples")
    sides = (*[1] * (len(times) - len(sides)), *sides)
    row = value.row
    for dim in reversed(range(len(times))):
        behind = zip(sides[dim + 1 :], times[dim + 1 :], strict=True)
        row = to.repeated(row, times[dim], sides[dim] * prod(n * m for n, m in behind))
    return Value(kind, row)


# ---- turns -------------------------------------------------------------------------------------


def _turned(to: ForwardRows, out: Tensor, x: Tensor, *dims: Any) -> Value:
    """`dims`: none, two that change places, or a list of all in their new order."""
    order = [*range(x.dim())]
    if not dims:
        order.reverse()
    elif isinstance(dims[0], int):
        a, b = (d % x.dim() for d in dims)
        order[a], order[b] = b, a
    else:
        order = [d % x.dim() for d in dims[0]]
    of = to.weight(x)
    if of is not None and out.dim() == 2:
        index, as_it_is = of
        return Value("weight" if as_it_is != (order == [1, 0]) else "turned", index)
    value, _ = of_rows(to, x)
    if out is x:  # its shape is the new one already
        x = x.permute([order.index(d) for d in range(x.dim())])
    return _permuted(to, value, x, order)


def _permuted(to: ForwardRows, value: Value, x: Tensor, order: Sequence[int]) -> Value:
    sides = to.sides(x, value)
    if value.kind == "task":
        return Value("task", to.permuted(value.row, sides, order))
    at = next(d for d, n in enumerate(x.shape) if n != sides[d])
    # [L S, C] has the samples behind L, else they come before what is left of their dimension.
    behind = value.kind == "series" and at == 0
    place = order.index(at)
    if place > 1 or (behind and place):
        raise Unreadable("it puts the samples behind several dimensions")
    kind = "series" if behind or place else "samples"
    return Value(kind, to.permuted(value.row, sides, order))


# ---- parts -------------------------------------------------------------------------------------


def part(to: ForwardRows, x: Tensor, dim: int, begin: int, count: int) -> Value:
    """Of a dimension those from `begin` on."""
    value, sides = of_rows(to, x)
    dim %= x.dim()
    if x.shape[dim] != sides[dim]:
        raise Unreadable("it picks samples")
    return to.part(value, sides, dim, begin, count)


def _alone(to: ForwardRows, x: Tensor, dim: int, index: int) -> Value:
    """One of a dimension that is gone then: a part of a series is that of each sample."""
    value = part(to, x, dim, index, 1)
    gone = value.kind == "series" and dim % x.dim() == 0
    return Value("samples", value.row) if gone else value


def _slice(
    to: ForwardRows, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    if out.shape == x.shape and step == 1:
        return to.value(x)
    if step != 1:
        raise Unreadable("it takes every few of a sample's numbers")
    begin = range(x.shape[dim])[start:].start  # as Python counts from the end
    return part(to, x, dim, begin, out.shape[dim])


def _select(to: ForwardRows, out: Tensor, x: Tensor, dim: int, index: int) -> Value:
    return _alone(to, x, dim, index % x.shape[dim])


def _split(to: ForwardRows, out: Any, x: Tensor, sizes: Any, dim: int = 0) -> list[Value]:
    values, begin = [], 0
    for one in out:
        values.append(part(to, x, dim, begin, one.shape[dim]))
        begin += one.shape[dim]
    return values


def _split_apart(to: ForwardRows, out: Any, x: Tensor, sizes: Any, dim: int = 0) -> list[Value]:
    values = _split(to, out, x, sizes, dim)
    to.know(x, GONE)  # parts may change in place
    return values


def _unbound(to: ForwardRows, out: Any, x: Tensor, dim: int = 0) -> list[Value]:
    return [_alone(to, x, dim, i) for i in range(len(out))]


def _joined(to: ForwardRows, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Value:
    values = [to.value(one) for one in parts]
    kind = to.kind_of("join", values)
    if any(value.kind != kind for value in values):
        raise Unreadable("it joins samples to what is none")
    sides, dim = to.sides(out, Value(kind)), dim % out.dim()
    if sides[dim] != out.shape[dim]:
        raise Unreadable("it joins samples to samples")
    return to.join(values, prod(sides[:dim]), prod(sides[dim + 1 :]))


def _stacked(to: ForwardRows, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Value:
    values, dim = [to.value(one) for one in parts], dim % out.dim()
    if {value.kind for value in values} != {"samples"}:
        raise Unreadable("it stacks what are no samples")
    if dim == 0:
        return Value("series", to.join(values).row)
    sides = to.sides(out, Value("samples"))
    return to.join(values, prod(sides[:dim]), prod(sides[dim + 1 :]))


# ---- sums --------------------------------------------------------------------------------------


def last(to: ForwardRows, x: Tensor, dims: Any) -> tuple[Value, list[int], list[int], int]:
    """A tensor with some dimensions behind the others: its sides then, the order of what were
    dimensions, and how many parts the others make.
    """
    value, sides = of_rows(to, x)
    dims = [dims] if isinstance(dims, int) else dims
    over = {d % x.dim() for d in dims} if dims else {*range(x.dim())}
    if any(x.shape[d] != sides[d] for d in over) or not over:
        raise Unreadable("it sums or normalises over samples")
    order = sorted(range(x.dim()), key=lambda d: (d in over, d))
    row = to.permuted(value.row, sides, order)
    kept = [sides[d] for d in range(x.dim()) if d not in over]
    return Value(value.kind, row), [sides[d] for d in order], order, prod(kept)


def _sum(mean: bool) -> Rule:
    def rule(
        to: ForwardRows, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False,
        dtype: Any = None,
    ) -> Value:  # fmt: skip
        value, *_, parts = last(to, x, dims)
        summed = to.means if mean else to.sums
        gone = value.kind == "series" and out.dim() and to.dim_of_samples(out) == 0
        kind = "samples" if gone else value.kind
        return Value(kind, summed(value.row, parts))

    return rule


def _log_sum_exp(
    to: ForwardRows, out: Tensor, x: Tensor, dims: Any, keepdim: bool = False
) -> Value:
    value, *_, parts = last(to, x, dims)
    return Value(value.kind, to.put("log_sum_exp", value.row, width=parts))


def log_softmax(to: ForwardRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    value, sides, order, parts = last(to, x, [dim])
    width = to.widths[value.row]
    total = to.put("log_sum_exp", value.row, width=parts)
    if parts > 1:
        total = to.repeated(total, width // parts, 1)
    row = to.put("subtract", value.row, total, width=width)
    back = sorted(range(len(order)), key=order.__getitem__)
    return Value(value.kind, to.permuted(row, sides, back))


def softmax(to: ForwardRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("exp", log_softmax(to, out, x, dim), width=to.columns(x))


SHAPE_RULES: dict[str, Rule] = {
    "t": _turned, "transpose": _turned, "permute": _turned, "numpy_T": _turned,
    "alias": same, "clone": same, "view": same, "_unsafe_view": same, "unsqueeze": same,
    "squeeze": _squeezed, "expand": _expanded, "repeat": _repeated,
    "slice": _slice, "select": _select,
    "split": _split, "split_with_sizes": _split, "unsafe_split": _split_apart,
    "unbind": _unbound, "cat": _joined, "stack": _stacked,
    "sum": _sum(mean=False), "mean": _sum(mean=True),
    "logsumexp": _log_sum_exp, "_log_softmax": log_softmax, "_softmax": softmax,
    "_safe_softmax": softmax,
}  # fmt: skip
