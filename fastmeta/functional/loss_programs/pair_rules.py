"""PyTorch's losses of pairs of numbers, as steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastmeta.functional.loss_programs.reductions import reduced
from fastmeta.functional.loss_programs.rows import LossRows
from fastmeta.functional.row_programs import Rule, Unreadable, Value

__all__ = ["PAIR_RULES"]


def _of_pairs(losses: Callable[..., Value]) -> Rule:
    """The rule of a loss of PyTorch, by its losses of pairs of numbers."""

    def rule(to: LossRows, out: Tensor, x: Tensor, y: Tensor, *args: Any) -> Value:
        if x.shape != y.shape:
            raise Unreadable("it broadcasts predictions against targets")
        width = to.columns(x)

        def step(op: str, *values: Value) -> Value:
            return to.step(op, *values, width=width)

        return losses(to, step, to.value(x), to.value(y), *args)

    return rule


def _squared(to: LossRows, step: Any, x: Value, y: Value, reduction: int = 1) -> Value:
    error = step("subtract", x, y)
    return reduced(to, step("multiply", error, error), reduction)


def _huber(
    to: LossRows, step: Any, x: Value, y: Value, reduction: int = 1, delta: float = 1.0
) -> Value:
    error = step("absolute", step("subtract", x, y))
    return reduced(to, _bounded(to, step, error, delta), reduction)


def _bounded(to: LossRows, step: Any, error: Value, bound: float) -> Value:
    """error^2 / 2 up to the bound, linear from there on; an infinite error has a slope, too."""
    small = Value("samples", to.put("clamp", error.row, y=bound, width=to.widths[error.row]))
    half = step("multiply", small, to.number(0.5))
    return step("multiply", small, step("subtract", error, half))


def _smooth_l1(
    to: LossRows, step: Any, x: Value, y: Value, reduction: int = 1, beta: float = 1.0
) -> Value:
    error = step("absolute", step("subtract", x, y))
    if beta == 0:
        return reduced(to, error, reduction)
    losses = step("divide", _bounded(to, step, error, beta), to.number(beta))
    return reduced(to, losses, reduction)


def _binary_cross_entropy(
    to: LossRows, step: Any, x: Value, y: Value, weight: Any = None, of_ones: Any = None,
    reduction: int = 1,
) -> Value:  # fmt: skip
    for_one = step("multiply", y, step("softplus", step("negative", x)))
    if of_ones is not None:
        for_one = step("multiply", for_one, to.value(of_ones))
    for_zero = step("multiply", step("subtract", to.number(1.0), y), step("softplus", x))
    losses = step("add", for_one, for_zero)
    if weight is not None:
        losses = step("multiply", losses, to.value(weight))
    return reduced(to, losses, reduction)


def _soft_margin(to: LossRows, step: Any, x: Value, y: Value, reduction: int = 1) -> Value:
    far = step("exp", step("multiply", step("negative", y), x))
    return reduced(to, step("log1p", far), reduction)


PAIR_RULES: dict[str, Rule] = {
    "mse_loss": _of_pairs(_squared), "huber_loss": _of_pairs(_huber),
    "smooth_l1_loss": _of_pairs(_smooth_l1), "soft_margin_loss": _of_pairs(_soft_margin),
    "binary_cross_entropy_with_logits": _of_pairs(_binary_cross_entropy),
}  # fmt: skip
