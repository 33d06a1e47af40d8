"""What a forward of the past depended on, beside tensors, for a backward to compute it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from fastmeta.functional.loss_programs.program import ReadLoss
from fastmeta.inner_loop.loop import InnerLoop
from fastmeta.watching.followed import OF_EVERY_MODULE
from fastmeta.watching.frozen import ATOMS

__all__ = ["Replay"]


class Replay:
    """Random numbers, autocast and attributes of the modules as they are now."""

    def __init__(self, loop: InnerLoop, device: torch.device) -> None:
        self._device = device.type
        self._autocast = torch.is_autocast_enabled(self._device)
        self._dtype = torch.get_autocast_dtype(self._device)
        self._generator = _generator(device) if loop.randomness else None
        self._state = None if self._generator is None else self._generator.get_state()
        self._attributes = [_Attributes(m) for m in _modules(loop)]

    def precision(self) -> torch.autocast:
        # Without the cache, which would hold the weights of every step.
        return torch.autocast(self._device, self._dtype, self._autocast, cache_enabled=False)

    @contextmanager
    def again(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.precision())
            for attributes in self._attributes:
                stack.enter_context(attributes.again())
            if self._generator is not None and self._state is not None:
                stack.enter_context(_at(self._generator, self._state))
            yield


class _Attributes:
    """What a module and its parts have by name: parts, parameters, buffers, hooks, and attributes.

    Of attributes numbers, texts, functions, lists and dicts of those, small constants: keeping what
    else there is, tensors with a graph for one, might keep the activations of each step. Globals,
    attributes of classes and what other objects hold are as they are when the backward comes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [_Part(part) for part in module.modules()]

    @contextmanager
    def again(self) -> Iterator[None]:
        now = [_Own(own) for part in self._kept for own in part.places()]
        try:
            for part in self._kept:
                part.put()
            yield
        finally:
            for own in now:
                own.put()


class _Own:
    """All that a dict holds, in its order."""

    def __init__(self, own: dict[str, Any]) -> None:
        self.own, self.items = own, dict(own)

    def put(self) -> None:
        """What is as it was is left alone: another thread may read it."""
        if [*self.own] != [*self.items]:
            self.own.clear()
            self.own.update(self.items)
        for name, value in self.items.items():
            if self.own[name] is not value:
                self.own[name] = value


class _Part:
    def __init__(self, part: nn.Module) -> None:
        self._own = part.__dict__
        names = self._own.keys() - _OF_EVERY_MODULE
        self._names = names
        self._plain = {n: _copied(v) for n in names if _is_kept(v := self._own[n])}
        self._tables = {n: _Own(table) for n in _TABLES if (table := self._own[n])}

    def places(self) -> Iterator[dict[str, Any]]:
        """The dicts that `put` may change."""
        yield self._own
        for name in _TABLES:
            yield self._own[name]
            if name in self._tables and self._tables[name].own is not self._own[name]:
                yield self._tables[name].own

    def put(self) -> None:
        for name in self._own.keys() - _OF_EVERY_MODULE - self._names:
            if _is_kept(self._own[name]):
                del self._own[name]
        for name, value in self._plain.items():
            if not _is_same(self._own.get(name, _NOTHING), value):
                self._own[name] = _copied(value)
        for name in _TABLES:
            table = self._tables.get(name)
            if table is None:
                self._own[name].clear()
                continue
            if self._own[name] is not table.own:
                self._own[name] = table.own
            table.put()


_TABLES = ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")
_OF_EVERY_MODULE = OF_EVERY_MODULE - {"training"}
_PLAIN = frozenset((*ATOMS, FunctionType, BuiltinFunctionType, MethodType, partial))
_MOST_BYTES = 4096  # of a constant


def _is_kept(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_simple, value))
    if type(value) is dict:
        return all(map(_is_simple, value.values()))
    return _is_simple(value)


def _is_simple(value: Any) -> bool:
    if type(value) is torch.Tensor:
        small = value.numel() * value.element_size() <= _MOST_BYTES
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(value)
        return small and not value.requires_grad and not wrapped
    return type(value) in _PLAIN or isinstance(value, nn.Module)


def _is_same(found: Any, value: Any) -> bool:
    if type(found) is type(value) and type(value) in (list, dict):
        pairs = [_parts(found), _parts(value)]
        return [*map(id, pairs[0])] == [*map(id, pairs[1])]
    return found is value


def _parts(value: Any) -> list[Any]:
    return value if type(value) is list else [x for pair in value.items() for x in pair]


_NOTHING = object()


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict) else value


def _modules(loop: InnerLoop) -> list[nn.Module]:
    loss = loop.loss.loss if isinstance(loop.loss, ReadLoss) else loop.loss
    return [loop.module, loss] if isinstance(loss, nn.Module) else [loop.module]


@contextmanager
def _at(generator: torch.Generator, state: torch.Tensor) -> Iterator[None]:
    current = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(current)


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    index = device.index or 0
    return torch.get_device_module(device).default_generators[index]
