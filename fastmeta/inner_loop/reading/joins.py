"""Calls of a traced forward that make one result of several: sums, products, concatenations."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch.fx.node import Node

__all__ = ["Join", "is_spread", "join_of"]


class Join(NamedTuple):
    """What becomes of several results.

    Attributes:
        kind: "sum", "difference", "multiply" or "channels".
        operands: the nodes in their order.
        dim: of "channels", that along which they are put side by side.
        in_place: it is written over the first of them.
    """

    kind: str
    operands: tuple[Any, ...]
    dim: int = 0
    in_place: bool = False

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return _NAMES[self.kind]


_NAMES = {
    "sum": "a sum", "difference": "a difference", "multiply": "a product",
    "channels": "a concatenation",
}  # fmt: skip
_KINDS: dict[Any, str] = {
    operator.add: "sum", torch.add: "sum", "add": "sum",
    operator.sub: "difference", torch.sub: "difference", "sub": "difference",
    operator.mul: "multiply", torch.mul: "multiply", "mul": "multiply",
    torch.multiply: "multiply", "multiply": "multiply",
}  # fmt: skip
_KINDS_IN_PLACE: dict[Any, str] = {
    operator.iadd: "sum", "add_": "sum", operator.isub: "difference", "sub_": "difference",
    operator.imul: "multiply", "mul_": "multiply",
}  # fmt: skip
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def join_of(node: Node) -> Join | None:
    """The join that a call is, or None."""
    if node.op == "call_function" and node.target in _CONCATENATIONS:
        return _concatenation(*node.args, **node.kwargs)
    if node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
        return None
    kind = _KINDS.get(node.target) or _KINDS_IN_PLACE.get(node.target)
    in_place = node.target in _KINDS_IN_PLACE
    return None if kind is None else Join(kind, node.args, in_place=in_place)


def _concatenation(
    tensors: Any = None, dim: Any = 0, axis: Any = None, **others: Any
) -> Join | None:
    dim = dim if axis is None else axis
    if others or type(dim) is not int or not isinstance(tensors, (tuple, list)) or not tensors:
        return None
    return Join("channels", tuple(tensors), dim)


def is_spread(node: Node) -> bool:
    """Whether a call makes a tensor as large as another one that alone it is joined to."""
    return (
        node.op == "call_method"
        and node.target == "expand_as"
        and len(node.args) == 2
        and bool(node.users)
        and all(_spreads_anyway(user, *node.args, node) for user in node.users)
    )


def _spreads_anyway(user: Node, of: Any, to: Any, spread: Node) -> bool:
    join = join_of(user)
    return join is not None and join.kind != "channels" and {*join.operands} == {spread, to}
