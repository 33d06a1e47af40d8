"""What PyTorch's operations on shapes come to in a forward: views, turns, parts, sums."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from fastmeta.functional.row_programs import Rule, Unreadable, Value
from fastmeta.inner_loop.forward_rows import GONE, ForwardRows

__all__ = ["SHAPE_RULES", "of_rows", "part", "same"]


def of_rows(to: ForwardRows, x: Tensor) -> tuple[Value, tuple[int, ...]]:
    """What a tensor is, and the dimensions that each sample has in it."""
    value = to.value(x)
    if value.kind not in ("samples", "task"):
        raise Unreadable("it reshapes a weight")
    return value, to.sides(x)


# ---- views -------------------------------------------------------------------------------------


def same(to: ForwardRows, out: Tensor, x: Tensor, *args: Any, **options: Any) -> Value:
    """The same numbers in their order, or one number as often as wanted."""
    value, _ = of_rows(to, x)
    width, wanted = to.widths[value.row], to.columns(out)
    if wanted == width:
        return value if value.kind == "samples" else to.of_samples(out, value.row)
    if width != 1:
        raise Unreadable("it repeats the numbers of a sample")
    return to.of_samples(out, to.put("add", value.row, to.number(0.0).row, width=wanted))


def _squeezed(to: ForwardRows, out: Tensor, x: Tensor, *dims: Any) -> Value:
    over = dims[0] if dims else range(x.dim())
    over = [over] if isinstance(over, int) else over
    if out is x and (len(over) != 1 or over[0] < 0):  # its shape is the new one already
        raise Unreadable("it squeezes in place")
    at = to.dim_of_samples(x)
    if at is not None and any(dim % x.dim() == at for dim in over):
        if out is x:
            raise Unreadable("it would squeeze a lone sample")
        to.fewest = 2
    return same(to, out, x)


def _expanded(to: ForwardRows, out: Tensor, x: Tensor, *sizes: Any, **options: Any) -> Value:
    value, _ = of_rows(to, x)
    if to.widths[value.row] in (1, to.columns(out)):
        return same(to, out, x)
    value = to.broadcast(out, x, value)
    return value if value.kind == "samples" else to.of_samples(out, value.row)


def _repeated(to: ForwardRows, out: Tensor, x: Tensor, times: Sequence[int]) -> Value:
    value, sides = of_rows(to, x)
    sides = (*[1] * (len(times) - len(sides)), *sides)
    at, times = to.dim_of_samples(out), [*times]
    if value.kind == "samples" and at is not None and times[at] != 1:
        raise Unreadable("it repeats the samples")
    if value.kind == "task" and at is not None:
        times[at] //= to.samples
    row = value.row
    for dim in reversed(range(len(times))):
        behind = zip(sides[dim + 1 :], times[dim + 1 :], strict=True)
        row = to.repeated(row, times[dim], sides[dim] * prod(n * m for n, m in behind))
    if value.kind == "task":
        return to.of_samples(out, row)
    return Value("samples", row, value.before * prod(times[:at]))


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
    sides, at = to.sides(x), to.dim_of_samples(x)
    row = to.permuted(value.row, sides, order)
    if at is None:
        return Value("task", row)
    own = value.before // prod(sides[:at])  # of the dimension where the samples are
    return Value("samples", row, prod(sides[d] for d in order[: order.index(at)]) * own)


# ---- parts -------------------------------------------------------------------------------------


def part(to: ForwardRows, x: Tensor, dim: int, begin: int, count: int) -> Value:
    """Of a dimension those from `begin` on."""
    value, sides = of_rows(to, x)
    dim, at = dim % x.dim(), to.dim_of_samples(x)
    if dim == at:
        raise Unreadable("it picks samples")
    row, before = to.part(value.row, sides, dim, begin, count), value.before
    if at is not None and dim < at:
        before = before // sides[dim] * count
    return Value(value.kind, row, before)


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
    return part(to, x, dim, index % x.shape[dim], 1)


def _range(to: ForwardRows, out: Tensor, *bounds: Any, **options: Any) -> Value:
    """What may choose parts, by its first place."""
    places = out.tolist()
    if out.is_floating_point() or not places or places != [*range(places[0], places[-1] + 1)]:
        raise Unreadable("it makes a range that is not one of neighbours")
    return Value("places", places[0])


def _picked(to: ForwardRows, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> Value:
    given = [dim for dim, index in enumerate(indices) if index is not None]
    places = to.known(indices[given[0]]) if len(given) == 1 else None
    if places is None or places.kind != "places":
        raise Unreadable("it picks numbers by what is no range")
    return part(to, x, given[0], places.row, out.shape[given[0]])


def _embedded(
    to: ForwardRows, out: Tensor, weight: Tensor, index: Tensor, padding: int = -1, *options: Any
) -> Value:
    if padding >= 0:
        raise Unreadable("it embeds with a padding that does not learn")
    return _picked(to, out, weight, [index])


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
    return [part(to, x, dim, i, 1) for i in range(len(out))]


def _joined(to: ForwardRows, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Value:
    """Side by side, in a dimension that they have or in a new one."""
    values, dim, at = [to.value(one) for one in parts], dim % out.dim(), to.dim_of_samples(out)
    kinds, befores = {value.kind for value in values}, [value.before for value in values]
    if len(kinds) > 1 or not kinds <= {"samples", "task"}:
        raise Unreadable("it joins samples to what is none")
    if dim == at:
        raise Unreadable("it joins samples to samples")
    adds_up = at is not None and dim < at
    if not adds_up and len({*befores}) > 1:
        raise Unreadable("it mixes the samples")
    row = to.join([value.row for value in values], to.sides(out), dim)
    return Value(kinds.pop(), row, sum(befores) if adds_up else befores[0])


# ---- sums --------------------------------------------------------------------------------------


def _last(to: ForwardRows, x: Tensor, dims: Any) -> tuple[Value, list[int], list[int], int]:
    """A tensor with some dimensions behind the others: its sides then, the order of what were
    dimensions, and how many parts the others make, which is what the value is of.
    """
    value, sides = of_rows(to, x)
    dims, at = [dims] if isinstance(dims, int) else dims, to.dim_of_samples(x)
    over = {d % x.dim() for d in dims} if dims else {*range(x.dim())}
    if at in over or not over:
        raise Unreadable("it sums or normalises over samples")
    order = sorted(range(x.dim()), key=lambda d: (d in over, d))
    row = to.permuted(value.row, sides, order)
    kept = [sides[d] for d in range(x.dim()) if d not in over]
    gone = prod(sides[d] for d in over if at is not None and d < at)
    value = Value(value.kind, row, value.before // gone)
    return value, [sides[d] for d in order], order, prod(kept)


def _sum(mean: bool) -> Rule:
    def rule(
        to: ForwardRows, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False,
        dtype: Any = None,
    ) -> Value:  # fmt: skip
        value, *_, parts = _last(to, x, dims)
        return value._replace(row=(to.means if mean else to.sums)(value.row, parts))

    return rule


def _norm(
    to: ForwardRows, out: Tensor, x: Tensor, order: float = 2, dims: Any = None,
    keepdim: bool = False, *, dtype: Any = None,
) -> Value:  # fmt: skip
    """The Euclidean one, which PyTorch gives the slope 0 where it is 0."""
    if order != 2 or dtype is not None:
        raise Unreadable(f"it takes a norm of order {order}")
    value, *_, parts = _last(to, x, dims)
    square = to.step("multiply", value, value, width=to.widths[value.row])
    total = value._replace(row=to.sums(square.row, parts))
    nothing = to.step("equal", total, to.number(0.0), width=parts)
    total = to.step("select", nothing, to.number(1.0), total, width=parts)
    root = to.step("sqrt", total, width=parts)
    return to.step("select", nothing, to.number(0.0), root, width=parts)


def _log_sum_exp(
    to: ForwardRows, out: Tensor, x: Tensor, dims: Any, keepdim: bool = False
) -> Value:
    value, *_, parts = _last(to, x, dims)
    return value._replace(row=to.put("log_sum_exp", value.row, width=parts))


def _log_softmax(to: ForwardRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    value, sides, order, parts = _last(to, x, [dim])
    width = to.widths[value.row]
    total = to.put("log_sum_exp", value.row, width=parts)
    if parts > 1:
        total = to.repeated(total, width // parts, 1)
    row = to.put("subtract", value.row, total, width=width)
    back = sorted(range(len(order)), key=order.__getitem__)
    return to.value(x)._replace(row=to.permuted(row, sides, back))


def _softmax(to: ForwardRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("exp", _log_softmax(to, out, x, dim), width=to.columns(x))


SHAPE_RULES: dict[str, Rule] = {
    "t": _turned, "transpose": _turned, "permute": _turned, "numpy_T": _turned,
    "alias": same, "clone": same, "view": same, "_unsafe_view": same, "unsqueeze": same,
    "squeeze": _squeezed, "expand": _expanded, "repeat": _repeated,
    "slice": _slice, "select": _select, "arange": _range, "index": _picked, "embedding": _embedded,
    "split": _split, "split_with_sizes": _split, "unsafe_split": _split_apart,
    "unbind": _unbound, "cat": _joined, "stack": _joined,
    "sum": _sum(mean=False), "mean": _sum(mean=True),
    "linalg_vector_norm": _norm, "logsumexp": _log_sum_exp,
    "_log_softmax": _log_softmax, "_softmax": _softmax, "_safe_softmax": _softmax,
}  # fmt: skip
