"""Sizes that a traced forward asks for: numbers of which layers are made, and that none makes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from torch.fx.node import Node, map_arg

__all__ = ["ROWS", "asked_of", "asks", "evaluated", "is_rows", "is_size"]


class _Rows:
    """The number of samples, of which nothing else is made."""

    def __repr__(self) -> str:
        return "the number of samples"


ROWS = _Rows()

_ARITHMETIC = (operator.getitem, operator.mul, operator.floordiv, operator.add, operator.sub)


def asks(node: Node) -> bool:
    """Whether a node is the shape of a tensor or one of its sides."""
    if node.target is getattr:
        return node.args[1:] == ("shape",)
    return node.op == "call_method" and node.target == "size"


def is_size(node: Node, before: Container[Node]) -> bool:
    """Whether a node is a size, or made of those before it."""
    inputs = node.all_input_nodes
    return asks(node) or (bool(inputs) and all(each in before for each in inputs))


def is_rows(node: Any) -> bool:
    """Whether a size is the number of samples, whatever the shape."""
    if node.op == "call_method":
        return node.target == "size" and _asked_dims(node) == [0]
    of = node.args[0] if node.target is operator.getitem else None
    return isinstance(of, Node) and asks(of) and not _asked_dims(of) and node.args[1] == 0


def asked_of(node: Node) -> Iterator[Node]:
    """The tensors whose shapes a size is made of."""
    for each in node.all_input_nodes:
        yield from (each,) if asks(node) else asked_of(each)


def evaluated(
    arguments: Any, sizes: Container[Node], shape_of: Callable[[Node], Sequence[Any]]
) -> Any:
    """Arguments of a call with the numbers that sizes are; the shapes begin with `ROWS`."""
    return map_arg(arguments, lambda n: _size(n, sizes, shape_of) if n in sizes else n)


def _size(node: Node, sizes: Container[Node], shape_of: Callable[[Node], Sequence[Any]]) -> Any:
    if is_rows(node):
        return ROWS
    if asks(node):
        of: Any = node.args[0]
        shape, dims = tuple(shape_of(of)), _asked_dims(node)
        return shape[dims[0]] if dims else shape
    given = evaluated(node.args, sizes, shape_of)
    if node.target in _ARITHMETIC:
        return node.target(*given)
    if node.target == "numel" and all(type(n) is int for n in given[0]):
        return math.prod(given[0])
    raise ValueError("a size that it computes")


def _asked_dims(node: Node) -> list[Any]:
    return [] if node.target is getattr else [*node.args[1:], *node.kwargs.values()]
