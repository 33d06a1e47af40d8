"""What a module's forward does: layers and sums of two results, in the order they run."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.node import Node

from fastmeta.functional.forward import has_hooks, module_lock
from fastmeta.inner_loop.differs import differs
from fastmeta.inner_loop.layers import called, leaves_of
from fastmeta.inner_loop.parameter_calls import OF_PARAMETERS, Operands
from fastmeta.inner_loop.surroundings import Surroundings
from fastmeta.inner_loop.trace import (
    Unknown,
    check_traceable,
    is_layer,
    own_name,
    trace,
    watched,
)
from fastmeta.models import Sine

__all__ = ["Call", "Reshaped", "asks_types", "calls_of", "misread"]


@dataclass(frozen=True)
class Call:
    """A layer that runs, or a sum.

    Attributes:
        name: what to call it in a sentence.
        layer: None for the sum of both inputs. Of a function it may be one without values.
        parameters: the module's names of the layer's parameters, by the layer's own.
        inputs: the calls whose results it takes, -1 for the module's input.
        alone: at most one call reads its result.
        in_place: it writes its result over its first input.
    """

    name: str
    layer: Any
    parameters: Mapping[str, str]
    inputs: tuple[int, ...]
    alone: bool = True
    in_place: bool = False


def calls_of(module: nn.Module) -> list[Call] | str:
    """The calls of a forward whose last one makes the output, or a sentence why there are none."""
    for name, part in module.named_modules():
        if has_hooks(part):
            return f"{called(name, part)} has hooks, which the native kernels would not call"
    leaves = leaves_of(module)
    by_hand = next((leaf for leaf in leaves if not is_layer(leaf[1])), None)
    if by_hand is None:
        return [
            Call(
                called(prefix, layer), layer, _parameters(layer, prefix), (index - 1,),
                in_place=_works_in_place(layer),
            )
            for index, (prefix, layer) in enumerate(leaves)
        ]  # fmt: skip
    try:
        with module_lock, watched(module) as surroundings:
            check_traceable(surroundings)
            return _GraphReader(nn.Sequential(module)).read()
    except Unknown as unknown:
        reason = str(unknown)
    return (
        f"{called(*by_hand)} has a forward() written by hand, and {reason}: write it as an "
        "nn.Sequential of layers that the native kernels have, or let another engine run it, as "
        'engine="auto" does'
    )


def asks_types(module: nn.Module) -> bool:
    """Whether a forward written by hand does, to which a size that torch.fx gives is no number."""
    by_hand = not all(is_layer(layer) for _, layer in leaves_of(module))
    return by_hand and Surroundings(module).asks_types


def misread(module: nn.Module, sample: Sequence[int], samples: int = 2) -> str | None:
    """A sentence if a forward written by hand was read as what it is not."""
    if all(is_layer(layer) for _, layer in leaves_of(module)):
        return None
    own = dict(module.named_parameters())
    like = next(iter(own.values()), torch.empty(()))
    numbers = samples * math.prod(sample)
    x = torch.linspace(-2, 2, numbers, dtype=like.dtype, device=like.device).sin()
    try:
        return differs(module, own, x.reshape(samples, *sample))
    except RuntimeError as error:
        return f"its forward has no gradient: {str(error).splitlines()[0]}"


def _parameters(layer: nn.Module, prefix: str) -> dict[str, str]:
    return {name: f"{prefix}{name}" for name, _ in layer.named_parameters(recurse=False)}


def _works_in_place(layer: nn.Module) -> bool:
    return bool(getattr(layer, "inplace", False))


# ---- a graph -----------------------------------------------------------------------------------


class _GraphReader:
    """Turns the nodes of a graph into calls; raises Unknown."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.calls: list[Call] = []
        self.results: dict[Node, int] = {}
        self.multiples: dict[Node, tuple[Node, float]] = {}  # of results, for sines

    def read(self) -> list[Call]:
        for node in trace(self.root).nodes:
            if node.op == "placeholder":
                self.results[node] = -1
            elif node.op == "output":
                if self.results.get(node.args[0]) != len(self.calls) - 1:
                    raise Unknown("it returns something else than the last layer's result")
            elif not _is_size(node) and node.op != "get_attr":
                if not node.users:
                    raise Unknown("it computes something that it does not return")
                self._read(node)
        return self.calls

    def _read(self, node: Node) -> None:
        multiple = _multiple(node)
        if _is_sum(node):
            inputs = self._inputs(node, node.args, node.kwargs)
            self._add(node, "a sum", None, {}, inputs, node.target in _SUMS_IN_PLACE)
        elif node.op == "call_module":
            self._read_module(node)
        elif multiple is not None and [user.target in _SINES for user in node.users] == [True]:
            self.multiples[node] = multiple
        elif node.target in _SINES and node.args[:1] and node.args[0] in self.multiples:
            source, frequency = self.multiples[node.args[0]]  # type: ignore[index]
            self._add(node, "a sine", Sine(frequency), {}, self._inputs(node, (source,), {}))
        else:
            self._read_function(node)

    def _read_module(self, node: Node) -> None:
        layer: Any = self.root.get_submodule(str(node.target))
        name = called(own_name(node.target), layer)
        inputs = self._inputs(node, node.args, node.kwargs)
        if len(inputs) != 1:
            raise Unknown(f"it calls {name} with several inputs")
        self._add(node, name, layer, _parameters(layer, f"{own_name(node.target)}."), inputs)

    def _read_function(self, node: Node) -> None:
        inputs = self._inputs(node, node.args[:1], {})
        for layer, parameters in _layers_of_call(node, self.root):
            self._add(node, f"the call of {_name_of(node)}", layer, parameters, inputs)
            inputs = (self.results[node],)

    def _inputs(self, node: Node, args: Any, kwargs: Any) -> tuple[int, ...]:
        if kwargs or not args or not all(isinstance(a, Node) and a in self.results for a in args):
            raise Unknown(f"it calls {_name_of(node)} with what is no layer's result")
        return tuple(self.results[a] for a in args)

    def _add(
        self, node: Node, name: str, layer: Any, parameters: Mapping[str, str],
        inputs: tuple[int, ...], in_place: bool = False,
    ) -> None:  # fmt: skip
        self.results[node] = len(self.calls)
        in_place = in_place or _works_in_place(layer)
        if in_place and inputs[0] < 0:
            raise Unknown("it changes its input in place")
        self.calls.append(Call(name, layer, parameters, inputs, _readers(node) <= 1, in_place))


def _readers(node: Node) -> int:
    return sum(not _is_size(user) for user in node.users)


def _name_of(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


_SUMS_IN_PLACE = (operator.iadd, "add_")
_SUMS = (operator.add, torch.add, "add", *_SUMS_IN_PLACE)


def _is_sum(node: Node) -> bool:
    return node.target in _SUMS and len(node.args) == 2 and not node.kwargs


_SINES = (torch.sin, "sin")


def _multiple(node: Node) -> tuple[Node, float] | None:
    """A result and the number that it is multiplied by, or None."""
    if node.target not in (operator.mul, torch.mul, "mul") or node.kwargs or len(node.args) != 2:
        return None
    of, by = node.args if isinstance(node.args[0], Node) else node.args[::-1]
    if not isinstance(of, Node) or type(by) not in (int, float):
        return None
    return of, float(by)  # type: ignore[arg-type]


# ---- the number of samples, which a forward needs to flatten them --------------------------------


def _is_size(node: Node) -> bool:
    """x.shape, x.size(0) or x.shape[0], of which no layer is made."""
    return _is_shape(node) or _is_rows(node)


def _is_shape(node: Any) -> bool:
    return isinstance(node, Node) and node.target is getattr and node.args[1:] == ("shape",)


def _is_rows(node: Any) -> bool:
    if not isinstance(node, Node):
        return False
    if node.target == "size":
        return node.args[1:] == (0,) and not node.kwargs
    return node.target is operator.getitem and _is_shape(node.args[0]) and node.args[1:] == (0,)


class Reshaped(nn.Module):
    """The numbers of each sample in another shape."""

    def __init__(self, sample: Sequence[int]) -> None:
        super().__init__()
        self.sample = tuple(sample)


def _of_shape(*shape: Any) -> nn.Module:
    rows, *sample = shape[0] if len(shape) == 1 and not isinstance(shape[0], Node) else shape
    if _is_rows(rows) and sample == [-1]:
        return nn.Flatten()
    if not (_is_rows(rows) or rows == -1) or not all(type(n) is int and n > 0 for n in sample):
        raise ValueError("a shape that is not one of samples")
    return Reshaped(sample)


# ---- calls of functions and methods that are those of a layer ------------------------------------


def _flatten(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)


def _mean(dim: Any, keepdim: bool = False) -> nn.Module:
    if dim in (2, -1, (2,), (-1,), [2], [-1]):
        pool: nn.Module = nn.AdaptiveAvgPool1d(1)
    elif isinstance(dim, (tuple, list)) and sorted(d % 4 for d in dim) == [2, 3]:
        pool = nn.AdaptiveAvgPool2d(1)
    else:
        raise ValueError("a mean over something else than all pixels")
    return pool if keepdim else nn.Sequential(pool, nn.Flatten())


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    return nn.Dropout(p, inplace).train(training)


def _max_pool(kind: type[nn.MaxPool1d] | type[nn.MaxPool2d]) -> Callable[..., nn.Module]:
    def make(
        kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> nn.Module:  # fmt: skip
        return kind(kernel_size, stride or None, padding, dilation, return_indices, ceil_mode)

    return make


_METHODS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "sin": Sine,
    "flatten": _flatten,
    "mean": _mean,
    "view": _of_shape,
    "reshape": _of_shape,
}
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    **{getattr(torch, name): make for name, make in _METHODS.items() if name != "view"},
    F.relu: nn.ReLU,
    F.leaky_relu: nn.LeakyReLU,
    F.tanh: nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    F.gelu: nn.GELU,
    F.softplus: nn.Softplus,
    F.silu: nn.SiLU,
    F.elu: nn.ELU,
    F.selu: nn.SELU,
    F.mish: nn.Mish,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    F.dropout: _dropout,
    F.max_pool1d: _max_pool(nn.MaxPool1d),
    torch.max_pool1d: _max_pool(nn.MaxPool1d),
    F.max_pool2d: _max_pool(nn.MaxPool2d),
    torch.max_pool2d: _max_pool(nn.MaxPool2d),
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}


def _layers_of_call(node: Node, root: nn.Module) -> list[tuple[nn.Module, Mapping[str, str]]]:
    """The layers that do the same as a function or method with a tensor as its first argument."""
    given: dict[str, str] = {}
    table: Any = _METHODS if node.op == "call_method" else _FUNCTIONS
    make = table.get(node.target) if node.op in ("call_method", "call_function") else None
    if node.op == "call_function" and node.target in OF_PARAMETERS:
        make = functools.partial(OF_PARAMETERS[node.target], Operands(root, given))
    if make is None:
        raise Unknown(f"it calls {_name_of(node)}, which is none of their layers")
    try:
        layer = make(*node.args[1:], **node.kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise Unknown(f"its call of {_name_of(node)} is none of their layers: {error}") from error
    return [(own, given) for _, own in leaves_of(layer)]
