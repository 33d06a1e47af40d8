"""What a forward of the past depended on, beside tensors, for a backward to compute it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from fastmeta.functional.loss_programs.program import LossProgram
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
    """Numbers, texts, functions and parts that a module and its parts have by name.

    Of what else there is, tensors for one, keeping it might keep the activations of each step.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [(own, _plain(own)) for own in _places(module)]

    @contextmanager
    def again(self) -> Iterator[None]:
        now = [(own, _plain(own)) for own, _ in self._kept]
        try:
            _put(self._kept)
            yield
        finally:
            _put(now)


def _places(module: nn.Module) -> Iterator[dict[str, Any]]:
    for part in module.modules():
        yield part.__dict__
        if part._modules:
            yield part._modules


def _plain(own: dict[str, Any]) -> dict[str, Any]:
    names = own.keys() - _OF_EVERY_MODULE
    return {n: v for n in names if type(v := own[n]) in _PLAIN or isinstance(v, nn.Module)}


_OF_EVERY_MODULE = OF_EVERY_MODULE - {"training"}
_PLAIN = frozenset((*ATOMS, FunctionType, BuiltinFunctionType))


def _put(values: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for own, plain in values:
        now = _plain(own)
        if now.keys() == plain.keys() and all([now[n] is v for n, v in plain.items()]):
            continue
        for name in now.keys() - plain.keys():
            del own[name]
        own.update(plain)


def _modules(loop: InnerLoop) -> list[nn.Module]:
    loss = loop.loss.loss if isinstance(loop.loss, LossProgram) else loop.loss
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
