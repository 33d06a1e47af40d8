"""Counters: numbers that a forward changes in its module, and on which no result of it depends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from torch import nn

from fastmeta.functional.row_programs import Unreadable
from fastmeta.inner_loop.reading.trace import Unknown, is_layer

__all__ = ["Counters", "are_unread", "counters_put_back"]


class Counter(NamedTuple):
    """An attribute of a module that changed from one plain number to another."""

    own: dict[str, Any]  # the module's
    name: str
    before: Any
    was_there: bool  # else the class has it

    def put(self, value: Any) -> None:
        self.own[self.name] = value

    def put_back(self) -> None:
        if self.was_there:
            self.own[self.name] = self.before
        else:
            self.own.pop(self.name, None)


class Counters:
    """Finds which numbers change from now on in a module and its parts."""

    def __init__(self, module: nn.Module) -> None:
        self._parts = [(part, _state(part)) for part in module.modules()]

    def put_back(self) -> list[Counter]:
        """Those that changed, as they were; none where something else changed with them."""
        found = [_counter(part, name, before) for part, name, before in self._changes()]
        counters = [counter for counter in found if counter is not None]
        if len(counters) < len(found):
            return []
        for counter in counters:
            counter.put_back()
        return counters

    def _changes(self) -> Iterator[tuple[nn.Module, Any, dict[Any, Any]]]:
        for part, before in self._parts:
            now = _state(part)
            for name in {**before, **now}:
                if not _is_same(before.get(name, _NOTHING), now.get(name, _NOTHING)):
                    yield part, name, before


@contextmanager
def counters_put_back(module: nn.Module) -> Iterator[None]:
    """For a block that runs a module on trial."""
    counters = Counters(module)
    try:
        yield
    finally:
        counters.put_back()


def are_unread(counters: list[Counter], read: Callable[[], Any]) -> bool:
    """Whether a module is read as the same thing whatever these numbers are.

    The first reading sees what no sample of numbers would: `if self.calls == 500`.
    """
    try:
        readings = [_reading(counters, value, read) for value in (_Unread, _far, _zero, _as_it_is)]
    except (Unknown, Unreadable):
        return False
    return all(reading == readings[0] for reading in readings)


def _reading(
    counters: list[Counter], value: Callable[[Any], Any], read: Callable[[], Any]
) -> Any:
    try:
        for counter in counters:
            counter.put(value(counter.before))
        return read()
    finally:
        for counter in counters:
            counter.put_back()


def _far(number: Any) -> Any:
    return number + 10_000


def _zero(number: Any) -> Any:
    return type(number)(0)


def _as_it_is(number: Any) -> Any:
    return number


class _Unread:
    """A number that can be counted on, and of which nothing can be asked."""

    def __init__(self, number: Any) -> None:
        pass

    def _counted(self, other: Any) -> Any:
        return self if type(other) in (int, float, _Unread) else NotImplemented

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _counted
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _counted
    __pow__ = __rpow__ = _counted

    def _asked(self, *others: Any) -> NoReturn:
        raise Unknown("it asks for a counter")

    __bool__ = __eq__ = __ne__ = __hash__ = __repr__ = __str__ = __format__ = _asked


_NOTHING = object()
_HELD = ("_parameters", "_buffers", "_modules")


def _state(part: nn.Module) -> dict[Any, Any]:
    own = vars(part)
    held = {(key, name): value for key in _HELD for name, value in dict(own.get(key, ())).items()}
    return {**own, **held}


def _is_same(x: Any, y: Any) -> bool:
    return x is y or (_is_number(x) and type(x) is type(y) and x == y)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _counter(part: nn.Module, name: Any, before: dict[Any, Any]) -> Counter | None:
    """None for what is none: no reading looks into PyTorch's layers, which depend on theirs."""
    number = before.get(name, getattr(type(part), str(name), None))
    is_one = _is_number(number) and _is_number(vars(part).get(name)) and not is_layer(part)
    return Counter(vars(part), name, number, name in before) if is_one else None
