"""Sums and means in a loss: over samples, over each sample's numbers, over what is stacked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.loss_programs.rows import LossRows
from fastmeta.functional.row_programs import NO_TOTAL, Rule, Unreadable, Value

__all__ = ["REDUCTION_RULES", "reduced"]


def _reduce(mean: bool) -> Rule:
    def rule(
        to: LossRows, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False,
        dtype: Any = None,
    ) -> Value:  # fmt: skip
        value = to.value(x)
        if value.kind == "all" and not dims and not mean:
            return Value("count")
        over = {d % x.dim() for d in dims} if dims else set(range(x.dim()))
        if value.kind == "samples" and not to.moves(value.row) and 0 in over:
            return _of_targets(to, x, value, over, mean)
        is_sum_of_each = value.kind == "samples" and 0 not in over and not mean
        may_be_read = x.is_floating_point() or is_sum_of_each  # of truths, which are 0 or 1
        if value.kind in ("nothing", "all", "every", "order") or not may_be_read:
            raise Unreadable("it counts")
        return _reduced_over(to, x, value, over, "mean" if mean else "sum")

    return rule


def _of_targets(to: LossRows, x: Tensor, value: Value, over: set[int], mean: bool) -> Value:
    """A number of the task, or one a column."""
    if len(over) == x.dim() or to.columns(x) == 1:
        return to.total((to.mean if mean else to.sum)(value.row), adds=not mean)
    columns = to.columns(x)
    if over != {0} or columns > _MOST_COLUMNS:
        raise Unreadable(NO_TOTAL)
    each = [to.put("slice", value.row, x=j, width=1) for j in range(columns)]
    return Value("task", to.side_by_side([to.total(row, adds=not mean).row for row in each]))


_MOST_COLUMNS = 64


def _reduced_over(to: LossRows, x: Tensor, value: Value, over: set[int], total: str) -> Value:
    every, width = set(range(x.dim())), to.widths[value.row]
    own = to.mean if total == "mean" else to.sum
    if value.kind == "stacked":
        return _of_stack(x, value, over, total, own, to.samples)
    if value.kind == "samples" and over == {0} and to.columns(x) == x[0].numel():
        return Value(total, value.row)  # a total a column
    if over == every and value.kind in ("task", "constant") and width == x.numel():
        return Value("constant", own(value.row))
    if over == every and value.kind in ("samples", "mean", "sum"):
        return Value(total if value.kind == "samples" else value.kind, own(value.row))
    if over == every - {0} and value.kind == "samples":
        return Value("samples", own(value.row))
    if value.kind in ("task", "constant"):
        raise Unreadable("it counts")
    raise Unreadable(NO_TOTAL)


def _of_stack(
    x: Tensor, value: Value, over: set[int], total: str, own: Callable[[int], int], samples: int
) -> Value:
    """Of [n, S], or of what was joined one sample behind another."""
    if over == set(range(x.dim())):
        return Value(total, own(value.row))
    if x.dim() == 2 and x.shape[1] == samples and over == {0}:
        return Value("samples", own(value.row))
    if x.dim() == 2 and x.shape[1] == samples and over == {1}:
        return Value(total, value.row)
    raise Unreadable(NO_TOTAL)


def _norm(
    to: LossRows, out: Tensor, x: Tensor, order: Any = 2, dims: Any = None, keepdim: bool = False,
    *, dtype: Any = None,
) -> Value:  # fmt: skip
    """Of a sample's numbers. PyTorch gives the Euclidean one the slope 0 where it is 0."""
    value, width = to.value(x), to.columns(x)
    over = {d % x.dim() for d in dims} if dims else set(range(x.dim()))
    if value.kind != "samples" or over != set(range(1, x.dim())):
        raise Unreadable("it takes a norm over samples, or over a part of a sample's numbers")
    if order not in (1, 2, None) or dtype is not None:
        raise Unreadable(f"it takes a norm of order {order}")
    if order == 1:
        return Value("samples", to.sum(to.step("absolute", value, width=width).row))
    total = Value("samples", to.sum(to.step("multiply", value, value, width=width).row))
    nothing = to.step("equal", total, to.number(0.0), width=1)
    root = to.step("sqrt", to.step("select", nothing, to.number(1.0), total, width=1), width=1)
    return to.step("select", nothing, to.number(0.0), root, width=1)


def _all(to: LossRows, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False) -> Value:
    value, dims = to.value(x), [dims] if isinstance(dims, int) else dims
    if value.kind not in ("samples", "task", "constant") or x.dtype is not torch.bool:
        raise Unreadable("it asks whether all of something that is no truth of each sample")
    if not dims:
        return Value("every", to.all(value.row))
    over = {d % x.dim() for d in dims}
    if value.kind == "constant":
        return value
    if value.kind != "samples" or over != set(range(1, x.dim())):
        raise Unreadable("it asks whether something holds for all samples")
    return Value("samples", to.all(value.row))


def reduced(to: LossRows, losses: Value, reduction: int) -> Value:
    """As PyTorch's losses do it: 0 not at all, 1 the mean over all numbers, 2 their sum."""
    if reduction == 0:
        return losses
    if reduction == 1:
        return Value("mean", to.mean(losses.row))
    return Value("sum", to.sum(losses.row))


REDUCTION_RULES: dict[str, Rule] = {
    "sum": _reduce(mean=False), "mean": _reduce(mean=True),
    "linalg_vector_norm": _norm, "norm": _norm, "all": _all, "_is_all_true": _all,
}  # fmt: skip
