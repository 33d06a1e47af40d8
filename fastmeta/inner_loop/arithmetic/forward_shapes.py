"""What PyTorch's operations on shapes come to in a forward: views, turns, parts, sums."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.row_programs import Rule, Unreadable, Value
from fastmeta.inner_loop.arithmetic.forward_rows import GONE, ForwardRows

__all__ = ["SHAPE_RULES", "of_rows", "part", "same"]


def of_rows(to: ForwardRows, x: Tensor) -> tuple[Value, tuple[int, ...]]:
    """What a tensor is, and the dimensions that each sample has in it."""
    value = to.value(x)
    if value.kind not in ("samples", "task"):
        raise Unreadable("it reshapes what is of no sample")
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


def _viewed(to: ForwardRows, out: Tensor, x: Tensor, *args: Any) -> Value:
    value = same(to, out, x)
    to.know(x, GONE)  # the view may change in place
    return value


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
    row = to.part(value.row, sides, dim, begin, count)
    return _resized(to, x, value, dim, count)._replace(row=row)


def gathered(to: ForwardRows, x: Tensor, dim: int, places: Sequence[int]) -> Value:
    """Of a dimension those places, in that order: runs of neighbours side by side."""
    value, sides = of_rows(to, x)
    dim, at = dim % x.dim(), to.dim_of_samples(x)
    if dim == at:
        raise Unreadable("it picks samples")
    runs = _runs(places)
    if not 1 <= len(runs) <= _MOST_RUNS:
        raise Unreadable(f"it picks nothing, or more than {_MOST_RUNS} numbers one by one")
    rows = [to.part(value.row, sides, dim, begin, count) for begin, count in runs]
    row = to.join(rows, [*sides[:dim], len(places), *sides[dim + 1 :]], dim)
    return _resized(to, x, value, dim, len(places))._replace(row=row)


_MOST_RUNS = 64


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours among places, by the first of them and how many they are."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and place == sum(runs[-1]):
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((place, 1))
    return runs


def _resized(to: ForwardRows, x: Tensor, value: Value, dim: int, size: int) -> Value:
    """What a tensor is with another size of a dimension."""
    at, own = to.dim_of_samples(x), to.sides(x)[dim]
    if at is None or dim > at:
        return value
    return value._replace(before=value.before // own * size)


def _slice(
    to: ForwardRows, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    if out.shape == x.shape and step == 1:
        return to.value(x)
    places = range(x.shape[dim])[start:end:step]  # as Python counts from the end
    if step != 1:
        return gathered(to, x, dim, places)
    return part(to, x, dim, places.start, out.shape[dim])


def _select(to: ForwardRows, out: Tensor, x: Tensor, dim: int, index: int) -> Value:
    return part(to, x, dim, index % x.shape[dim], 1)


def _picked(to: ForwardRows, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> Value:
    given = [dim for dim, index in enumerate(indices) if index is not None]
    table = to.table_of(indices[given[0]]) if len(given) == 1 else None
    truths = table is not None and table.dtype is torch.bool
    if table is None or table.is_floating_point() or (truths and table.dim() != 1):
        raise Unreadable("it picks numbers by what is no list of places")
    places = table.nonzero() if truths else table % x.shape[given[0]]
    return gathered(to, x, given[0], places.reshape(-1).tolist())


def _flipped(to: ForwardRows, out: Tensor, x: Tensor, dims: Sequence[int]) -> Value:
    return _one_by_one(to, x, [(dim, range(x.shape[dim])[::-1]) for dim in dims])


def _rolled(
    to: ForwardRows, out: Tensor, x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()
) -> Value:
    if len(dims) != len(shifts):
        raise Unreadable("it rolls all samples at once")
    given = zip(dims, shifts, strict=True)
    turned = [(dim, [(i - by) % x.shape[dim] for i in range(x.shape[dim])]) for dim, by in given]
    return _one_by_one(to, x, turned)


def _one_by_one(
    to: ForwardRows, x: Tensor, orders: Sequence[tuple[int, Sequence[int]]]
) -> Value:
    """The numbers of one dimension after another in another order."""
    for dim, places in orders:
        value = gathered(to, x, dim, places)
        x = x.clone()
        to.know(x, value)
    return to.value(x)


def _padded(
    to: ForwardRows, out: Tensor, x: Tensor, pad: Sequence[int], number: float = 0
) -> Value:
    value, given = of_rows(to, x)
    sides, at = [*given], to.dim_of_samples(x)
    for i, (left, right) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = x.dim() - 1 - i
        if (left or right) and dim == at:
            raise Unreadable("it pads the samples")
        kept = sides[dim] + min(left, 0) + min(right, 0)
        row = to.part(value.row, sides, dim, -min(left, 0), kept)
        sides[dim] = kept + max(left, 0) + max(right, 0)
        each = prod(sides) // sides[dim]
        rows = [
            to.put("constant", x=float(number), width=n * each) for n in (left, right) if n > 0
        ]
        rows.insert(int(left > 0), row)
        value = _resized(to, x, value, dim, sides[dim])
        value = value._replace(row=to.join(rows, sides, dim))
    return value


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


SHAPE_RULES: dict[str, Rule] = {
    "t": _turned, "transpose": _turned, "permute": _turned, "numpy_T": _turned,
    "alias": same, "clone": same, "view": same, "_unsafe_view": _viewed, "unsqueeze": same,
    "squeeze": _squeezed, "expand": _expanded, "repeat": _repeated,
    "slice": _slice, "select": _select, "index": _picked, "embedding": _embedded,
    "split": _split, "split_with_sizes": _split, "unsafe_split": _split_apart,
    "unbind": _unbound, "cat": _joined, "stack": _joined,
    "flip": _flipped, "roll": _rolled, "constant_pad_nd": _padded,
}  # fmt: skip
