"""Whether what a module's forward read from Python is watched from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fastmeta.inner_loop.reading.counters import Counters, are_unread
from fastmeta.inner_loop.reading.trace import Unknown
from fastmeta.watching.surroundings import Surroundings

__all__ = ["watched"]


@contextmanager
def watched(module: nn.Module, again: Callable[[], Any] | None = None) -> Iterator[Surroundings]:
    """For a block that reads a module's forward: what the reading depends on.

    again: reads it as something that can be compared. Without it the forward may count nothing.

    Raises:
        Unknown: nobody could tell later that all of it is as it was, or the forward changes it.
    """
    surroundings, counters = Surroundings(module), Counters(module)
    try:
        yield surroundings  # what keeps it from being read at all says more
        changed = surroundings.changed()
    finally:
        counted = counters.put_back()
    if surroundings.unwatched is not None:
        raise Unknown(surroundings.unwatched)
    names = ", ".join(dict.fromkeys([*changed, *(counter.name for counter in counted)]))
    # It may catch what says that a counter is read, or ask what is none of a number's types.
    if surroundings.catches is not None or surroundings.asks_types:
        again = None
    unread = not counted or (again is not None and are_unread(counted, again))
    if not unread or not surroundings.are_same():
        raise Unknown(f"its forward changes what it reads beside its input: {names}")
