"""Functions of users that write out a loss which has a name, such as ``((p - y) ** 2).mean()``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch.fx import Graph, Proxy
from torch.fx.node import Node
from torch.fx.proxy import GraphAppendingTracer

__all__ = ["written_out"]


def written_out(loss: Any) -> str | None:
    """The name of the loss that a function of predictions and targets computes, or None.

    Only of functions that can do nothing else: they name what is PyTorch's, and no other variable.
    """
    if not isinstance(loss, FunctionType):
        return None
    code, name = _known.get(loss, (None, None))
    if code is not loss.__code__:
        name = _read(loss) if _is_plain(loss) else None
        _known[loss] = loss.__code__, name
    return name


_known: WeakKeyDictionary[FunctionType, tuple[CodeType, str | None]] = WeakKeyDictionary()
_NAMES = {
    "torch", "nn", "functional", "F", "mse_loss", "cross_entropy",
    "binary_cross_entropy_with_logits", "sub", "pow", "square", "mean",
}  # fmt: skip
_VARIADIC_OR_ASYNCHRONOUS = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200


def _is_plain(loss: FunctionType) -> bool:
    code = loss.__code__
    if loss.__defaults__ or loss.__kwdefaults__ or code.co_flags & _VARIADIC_OR_ASYNCHRONOUS:
        return False
    plain = code.co_argcount == 2 and not code.co_kwonlyargcount and {*code.co_names} <= _NAMES
    constants = all(
        c in (None, ("reduction",)) or type(c) in (int, float, str) for c in code.co_consts
    )
    return plain and constants and all(map(_is_of_torch, _outside(loss)))


def _outside(loss: FunctionType) -> Iterator[Any]:
    """What it names; of a closure, whose variables may change, None but for modules."""
    own = loss.__globals__
    yield from (own[name] for name in loss.__code__.co_names if name in own)
    yield from map(_module_in, loss.__closure__ or ())


def _module_in(cell: CellType) -> ModuleType | None:
    try:
        return cell.cell_contents if isinstance(cell.cell_contents, ModuleType) else None
    except ValueError:  # it is empty
        return None


def _is_of_torch(value: Any) -> bool:
    name = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return str(name).partition(".")[0] == "torch"


def _read(loss: FunctionType) -> str | None:
    graph = Graph()
    given = [graph.placeholder(name) for name in ("predictions", "targets")]
    recorder = GraphAppendingTracer(graph)  # alone: a Tracer changes nn.Module while it traces
    try:
        value = loss(*(Proxy(node, recorder) for node in given))
    except (RuntimeError, TypeError, ValueError, AttributeError):  # no arithmetic of two tensors
        return None
    if not isinstance(value, Proxy):
        return None
    meanings: dict[Node, Any] = dict(zip(given, _BOTH, strict=True))
    for node in graph.nodes:
        meanings.setdefault(node, _meaning(node, meanings))
    return _NAMED.get(meanings[value.node])


def _meaning(node: Node, meanings: dict[Node, Any]) -> Any:
    function = _FUNCTIONS.get(node.target)
    kwargs = {key: value for key, value in node.kwargs.items() if value != _DEFAULTS.get(key)}
    if function is None or kwargs:
        return None
    return function(*(meanings.get(a) if isinstance(a, Node) else a for a in node.args))


def _power(x: Any, exponent: Any = 2) -> Any:
    return ("square", x) if exponent == 2 else None


def _product(x: Any, y: Any) -> Any:
    return ("square", x) if x == y else None


def _difference(x: Any, y: Any) -> Any:
    return ("difference",) if (x, y) in (_BOTH, _BOTH[::-1]) else None


def _mean(x: Any, *dims: Any) -> Any:
    return None if dims else ("mean", x)


def _of_both(name: str) -> Callable[..., Any]:
    def loss(x: Any = None, y: Any = None, *more: Any) -> Any:
        fits = (x, y) == _BOTH or (name == "mse" and (y, x) == _BOTH)
        return (name,) if fits and not more else None

    return loss


_BOTH = ("argument", 0), ("argument", 1)
_DEFAULTS = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0}  # else None
_NAMED: dict[Any, str] = {
    ("mean", ("square", ("difference",))): "mse",
    ("mse",): "mse",
    ("bce",): "bce",
    ("cross_entropy",): "cross_entropy",
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.sub: _difference,
    torch.sub: _difference,
    "sub": _difference,
    operator.pow: _power,
    torch.pow: _power,
    "pow": _power,
    torch.square: _power,
    "square": _power,
    operator.mul: _product,
    torch.mean: _mean,
    "mean": _mean,
    F.mse_loss: _of_both("mse"),
    F.binary_cross_entropy_with_logits: _of_both("bce"),
    F.cross_entropy: _of_both("cross_entropy"),
}
