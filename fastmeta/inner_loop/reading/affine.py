"""Arithmetic of a forward's values with numbers of Python, as activations: scale x + shift."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx.node import Node

__all__ = ["Activation", "Affine", "affine_of", "arithmetic_of", "composed"]

Activation = tuple[str, float, float]  # name and constants, as the native kernels have them
_Constants = tuple[float, float]  # scale and shift


class Affine(nn.Module):
    """scale x + shift."""

    def __init__(self, scale: float, shift: float, inplace: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.shift = shift
        self.inplace = inplace


def affine_of(node: Node) -> tuple[Node, Affine] | None:
    """Whose result a call takes beside a number, and what it makes of it; None of other calls."""
    name = arithmetic_of(node)
    if name is None or node.kwargs or not 1 <= len(node.args) <= 2:
        return None
    of = next((arg for arg in node.args if isinstance(arg, Node)), None)
    numbers = [arg for arg in node.args if type(arg) in (int, float)]
    rule = _RULES.get((name, *("x" if arg is of else "n" for arg in node.args)))
    if of is None or rule is None or len(numbers) != len(node.args) - 1:
        return None
    try:
        scale, shift = map(float, rule(*numbers))
    except (ZeroDivisionError, OverflowError):
        return None
    if not (math.isfinite(scale) and math.isfinite(shift)):
        return None
    return of, Affine(scale, shift, inplace=node.target in _IN_PLACE)


def arithmetic_of(node: Node) -> str | None:
    """Which of the four operations a call is, however it is spelled, "rsub" or "neg"."""
    return _NAMES.get(node.target)


def composed(first: Activation | None, then: Activation) -> Activation | None:
    """One activation that does what both do, one after the other, or None."""
    if first is None or first[0] != "affine":
        return None
    (_, scale, shift), (kind, a, b) = first, then
    both = a * scale, a * shift + b
    if kind == "affine" and all(map(math.isfinite, both)):
        return kind, *both
    return (kind, a * scale, b) if kind == "sine" and shift == 0 else None


# By the name of a call and where the number stands.
_RULES: dict[tuple[str, ...], Callable[..., _Constants]] = {
    ("add", "x", "n"): lambda n: (1, n),
    ("add", "n", "x"): lambda n: (1, n),
    ("sub", "x", "n"): lambda n: (1, -n),
    ("sub", "n", "x"): lambda n: (-1, n),
    ("rsub", "x", "n"): lambda n: (-1, n),
    ("mul", "x", "n"): lambda n: (n, 0),
    ("mul", "n", "x"): lambda n: (n, 0),
    ("div", "x", "n"): lambda n: (1 / n, 0),
    ("neg", "x"): lambda: (-1, 0),
}
_SPELLED = {
    "add": ("add",),
    "sub": ("sub", "subtract"),
    "rsub": ("rsub",),
    "mul": ("mul", "multiply"),
    "div": ("div", "divide", "true_divide"),
    "neg": ("neg", "negative"),
}
_OPERATORS: dict[Any, str] = {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.truediv: "div",
    operator.neg: "neg",
}  # fmt: skip
_OPERATORS_IN_PLACE: dict[Any, str] = {
    operator.iadd: "add", operator.isub: "sub", operator.imul: "mul", operator.itruediv: "div",
}  # fmt: skip
_SPELLINGS = [(name, spelling) for name, spellings in _SPELLED.items() for spelling in spellings]
_METHODS_IN_PLACE: dict[Any, str] = {f"{spelling}_": name for name, spelling in _SPELLINGS}
_IN_PLACE = {*_OPERATORS_IN_PLACE, *_METHODS_IN_PLACE}
_NAMES: dict[Any, str] = {
    **_OPERATORS,
    **_OPERATORS_IN_PLACE,
    **_METHODS_IN_PLACE,
    **{spelling: name for name, spelling in _SPELLINGS},
    **{getattr(torch, spelling): name for name, spelling in _SPELLINGS if hasattr(torch, spelling)},
}
