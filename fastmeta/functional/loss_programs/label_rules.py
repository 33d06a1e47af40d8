"""What comes of labels in a loss: numbers that they pick, classes that they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.loss_programs.reductions import reduced
from fastmeta.functional.loss_programs.rows import LossRows
from fastmeta.functional.row_programs import RULES, Rule, Unreadable, Value

__all__ = ["LABEL_RULES", "equal"]

_ORDER = Value("order")  # 0, 1, 2, ...: each sample's place
_WHOLE = (torch.int64, torch.int32)


def _cast(to: LossRows, out: Tensor, x: Tensor, **options: Any) -> Value:
    if out.dtype is torch.bool and x.dtype is not torch.bool:
        return RULES["logical_not"](to, out, to.put_all("equal", out, x, 0.0))
    if not out.is_floating_point() and x.dtype not in (out.dtype, torch.bool):
        if out.dtype not in _WHOLE:
            raise Unreadable(f"it rounds to {out.dtype}")
        if x.is_floating_point():
            to.take_as_whole(x)
    return to.value(x)


def equal(to: LossRows, out: Tensor, x: Any, y: Any) -> Value:
    if isinstance(x, Tensor) and isinstance(y, int) and y < 0 and to.is_label(x):
        to.take_as_label(x, 1 << 24, strict=False)
        return Value("nothing")
    return to.put_all("equal", out, x, y)


def _not_equal(to: LossRows, out: Tensor, x: Any, y: Any) -> Value:
    return RULES["logical_not"](to, out, equal(to, out, x, y))


def _remainder(to: LossRows, out: Tensor, x: Any, y: Any) -> Value:
    """That of 1, by which PyTorch asks whether numbers are whole."""
    if y != 1 or not isinstance(x, Tensor):
        raise Unreadable("it takes remainders")
    if x.is_floating_point():
        to.take_as_whole(x)
    return to.number(0.0)


def _arange(to: LossRows, out: Tensor, *bounds: Any, **options: Any) -> Value:
    if out.numel() and out.numel() % to.samples == 0:
        if len(bounds) > 1 or out.numel() != to.samples:
            raise Unreadable("it counts samples in another way than one by one")
        return _ORDER
    if not 0 < out.numel() <= _MOST:
        raise Unreadable(f"it counts to more than {_MOST}")
    return to.same_for_all(out.tolist())


_MOST = 64


# ---- picking -----------------------------------------------------------------------------------


def _chosen(to: LossRows, x: Tensor, label: Tensor, classes: int, *, strict: bool) -> Value:
    value = to.value(x)
    if value.kind not in ("samples", "task") or to.widths[value.row] != classes:
        raise Unreadable("it picks from what is no row of numbers")
    to.take_as_label(label, classes, strict=strict)
    return to.step("choose", value, to.value(label), width=1)


def _gather(to: LossRows, out: Tensor, x: Tensor, dim: int, index: Tensor, **options: Any) -> Value:
    if x.dim() != 2 or dim % 2 != 1 or len(x) != to.samples:
        raise Unreadable("it picks samples, or from samples of more than one dimension")
    return _chosen(to, x, index, x.shape[1], strict=True)


def _index(to: LossRows, out: Tensor, x: Tensor, indices: Sequence[Any]) -> Value:
    """x[torch.arange(n), labels], or w[labels] of the same numbers for all samples."""
    of_samples = x.dim() == 2 and len(indices) == 2 and to.known(indices[0]) == _ORDER
    of_all = x.dim() == 1 and len(indices) == 1 and to.value(x).kind == "task"
    if not of_samples and not of_all:
        raise Unreadable("it picks samples, or by what is no label")
    label = indices[-1]
    if label is None or label.shape != out.shape:
        raise Unreadable("it picks by what is no label")
    return _chosen(to, x, label, x.shape[-1], strict=False)


def _scatter(to: LossRows, out: Tensor, x: Tensor, dim: int, index: Tensor, value: Any) -> Value:
    """A number at the place of each sample's label."""
    if x.dim() != 2 or dim % 2 != 1 or index.shape != (to.samples, 1) or isinstance(value, Tensor):
        raise Unreadable("it writes to what is no place of a label")
    to.take_as_label(index, x.shape[1], strict=True)
    there = to.put_all("equal", out, index, _counted(to, x.shape[1]))
    return to.step("select", there, to.number(float(value)), to.value(x), width=x.shape[1])


def _counted(to: LossRows, n: int) -> Tensor:
    if n > _MOST:
        raise Unreadable(f"it tells more than {_MOST} classes apart")
    places = torch.arange(n)
    to.know(places, to.same_for_all(places.tolist()))
    return places


def _scatter_in_place(to: LossRows, out: Tensor, x: Tensor, *args: Any) -> Value:
    to.check_own(x)
    return _scatter(to, out, x, *args)


def _nll(
    to: LossRows, out: Any, x: Tensor, label: Tensor, weight: Any, reduction: int, ignored: int
) -> tuple[Value]:
    if ignored >= 0:
        raise Unreadable("it ignores a class")
    if x.dim() != 2:
        raise Unreadable("it takes several labels of a sample")
    losses = to.step("negative", _chosen(to, x, label, x.shape[1], strict=False), width=1)
    if weight is not None:
        share = _chosen(to, weight, label, weight.shape[0], strict=False)
        losses = to.step("multiply", losses, share, width=1)
        if reduction == 1:
            shares = to.total(share.row, adds=True)
            return (Value("sum", to.step("divide", losses, shares, width=1).row),)
    return (reduced(to, losses, reduction),)


LABEL_RULES: dict[str, Rule] = {
    "_to_copy": _cast, "eq": equal, "ne": _not_equal, "remainder": _remainder, "arange": _arange,
    "gather": _gather, "index": _index, "scatter": _scatter, "scatter_": _scatter_in_place,
    "nll_loss_forward": _nll,
}  # fmt: skip
