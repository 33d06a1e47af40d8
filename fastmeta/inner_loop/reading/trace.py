"""What a module's forward does, as torch.fx traces it."""

from __future__ import annotations

import operator
import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.nn.utils import parametrize

from fastmeta.functional.row_programs import lengths_as_sizes
from fastmeta.inner_loop.randomness import random_state
from fastmeta.inner_loop.reading.layer_rules import LAYERS
from fastmeta.watching.surroundings import Surroundings
from fastmeta.watching.weight_norm import made_by_hooks

__all__ = [
    "DRAWS", "IN_PLACE", "Unknown", "check_traceable", "is_layer", "own_name", "trace",
]  # fmt: skip


DRAWS = "its forward draws random numbers, and would draw them once for all calls"


class Unknown(Exception):
    """Something that has no rule; says what."""


def trace(root: nn.Module, opens_parametrizations: bool = False) -> fx.Graph:
    """The calls of a module's forward down to layers; Unknown where torch.fx cannot tell them.

    opens_parametrizations: down to what makes the parameters of torch.nn.utils.parametrize and
        weight_norm.
    """
    buffers = [(part._buffers, dict(part._buffers)) for part in root.modules()]
    try:
        for _ in range(3):  # another thread may draw meanwhile
            before = random_state()
            with torch.enable_grad(), lengths_as_sizes(_Proxy):
                graph = _Tracer(opens_parametrizations).trace(root)
            if random_state() == before:
                return graph
        raise Unknown(DRAWS)
    except Unknown:
        raise
    except Exception as error:  # the forward is the user's, and may do anything to a proxy
        raise Unknown(_untraceable(error)) from error
    finally:
        for own, were in buffers:  # `self.buffer += 1` leaves a proxy there
            if any(isinstance(buffer, fx.Proxy) for buffer in own.values()):
                own.update(were)


def _untraceable(error: Exception) -> str:
    """The line of the forward that stumbles over a proxy: what is said of one misleads."""
    of_libraries = os.path.dirname(torch.__file__), os.path.dirname(__file__)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [at.line for at in frames if at.line and not at.filename.startswith(of_libraries)]
    if isinstance(error, fx.proxy.TraceError) and "iterated" not in str(error):
        said = f"torch.fx cannot trace its forward: {str(error).splitlines()[0]}"
        return f"{said}, in this line: {lines[-1]}" if lines else said
    if not lines:
        return "torch.fx cannot trace its forward"
    return f"torch.fx cannot trace this line of its forward: {lines[-1]}"


def _modes() -> tuple[Any, ...]:
    """What PyTorch does with a call beside its arguments, of which a graph tells nothing."""
    kinds = ("cpu", "cuda")
    autocast = [(torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds]
    return torch.is_grad_enabled(), autocast


_NUMPY_NUMBERS = (np.floating, np.integer)


class _Tracer(fx.Tracer):
    """Traces down to layers of torch.nn, in this thread alone."""

    proxy_buffer_attributes = True

    def __init__(self, opens_parametrizations: bool) -> None:
        super().__init__()
        self._opens_parametrizations = opens_parametrizations
        self._thread = threading.get_ident()
        self._modes = _modes()

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        # The forward of an autograd.Function, whose backward would be lost, is without gradients.
        if _modes() != self._modes:
            raise Unknown(
                "its forward computes under torch.no_grad(), autocast or in an autograd.Function"
            )
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        parametrized = type(m).__module__ == parametrize.__name__ or made_by_hooks(m)
        if self._opens_parametrizations and parametrized:
            return False
        return is_layer(m)

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        # While it traces, torch.fx stands in for every module's call in every thread.
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, (Tensor, nn.Module)) and not isinstance(a, nn.Parameter):
            raise Unknown(
                f"its forward uses a {type(a).__name__} that is neither its input nor one of its "
                "parameters and buffers"
            )
        # torch.fx writes a number into code, where nothing is called np.
        return super().create_arg(a.item() if isinstance(a, _NUMPY_NUMBERS) else a)

    def proxy(self, node: Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Strict:
    """Keeps `x += y` apart from `x = x + y`, which torch.fx does not, and tells no other numbers
    than a tensor or its size would.
    """

    __array_ufunc__ = None  # a number of NumPy leaves `number - x` to x, as it does for a tensor

    def __hash__(self) -> int:  # in a set or a dict it would never be found
        raise Unknown("its forward looks for a tensor or its size in a set or a dict")

    def __repr__(self) -> str:
        raise Unknown("its forward makes a text of a tensor or its size")

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)


class _Attribute(_Strict, fx.proxy.Attribute):
    pass


class _Proxy(_Strict, fx.Proxy):
    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


IN_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}
for _function in IN_PLACE:
    setattr(_Strict, f"__{_function.__name__}__", _in_place(_function))


def is_layer(module: nn.Module) -> bool:
    """Whether a graph has a module as one call."""
    return type(module) in LAYERS or (
        type(module).__module__.startswith("torch.") and not isinstance(module, nn.Sequential)
    )


def own_name(target: Any) -> str:
    """A name in the module, from that in the Sequential around it."""
    return str(target).removeprefix("0").removeprefix(".")


def check_traceable(surroundings: Surroundings) -> None:
    if surroundings.catches is not None:  # and those of torch.fx with them
        raise Unknown(f"{surroundings.catches} catches exceptions, or cleans up after them")
