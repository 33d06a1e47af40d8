"""Whether all that a module's forwards read from Python is as it was."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from fastmeta.watching import unchanged
from fastmeta.watching.followed import OF_EVERY_MODULE, Followed
from fastmeta.watching.frozen import UNFROZEN, Same, frozen
from fastmeta.watching.owners import Owner
from fastmeta.watching.unchanged import flat

__all__ = ["OF_EVERY_MODULE", "Surroundings"]


class Surroundings:
    """The values that a module's forwards may read, see `Followed`, as they are now.

    Attributes:
        unwatched: a sentence if there is something of which nobody could tell that it changes:
            what was made of the forwards must not be kept.
        catches: the name of a function of theirs that catches exceptions, if one does.
        asks_types: whether one of theirs asks for a type.
    """

    def __init__(self, module: nn.Module) -> None:
        followed = Followed(module)
        self.unwatched, self.catches = followed.unwatched, followed.catches
        self.asks_types = followed.asks_types
        self._dtype = torch.get_default_dtype() if followed.functions else None
        objects, items, keys = [], [], []
        self.seen: list[tuple[Owner, str, _Kept]] = []
        self._all: list[tuple[Owner, str, _Kept]] = []
        for owner, name in followed.places.values():
            value, kept = owner.get(name), _kept(owner.get(name))
            self._all.append((owner, name, kept))
            if type(owner) is not dict:
                self.seen.append((owner, name, kept))
            elif name not in owner:
                keys.append((owner, name, False))
            elif kept.like is None:
                objects.append((owner, name, value))
            elif _is_compared(value):
                items.append((owner, name, value))
            else:
                self.seen.append((owner, name, kept))
        self._native = ((), flat(objects), (), (), flat(items), flat(keys))

    def are_same(self) -> bool:
        if not unchanged.unchanged(*self._native):
            return False
        if self._dtype is not None and torch.get_default_dtype() is not self._dtype:
            return False
        return all([_is_same(owner.get(name), kept) for owner, name, kept in self.seen])

    def changed(self) -> list[str]:
        """Names of what is not as it was, where it has some."""
        names = [name for owner, name, kept in self._all if not _is_same(owner.get(name), kept)]
        return [*dict.fromkeys(filter(None, names))]


class _Kept(NamedTuple):
    value: Any
    like: Any  # what tells more than that it is the same object, or None


def _kept(value: Any) -> _Kept:
    like = None if value is None else _like(value)
    return _Kept(value, None if type(like) is Same else like)


def _like(value: Any) -> Any:
    try:
        return frozen(value)
    except UNFROZEN:
        return Same(value)


def _is_same(found: Any, kept: _Kept) -> bool:
    if kept.like is None:
        return found is kept.value
    return bool(_like(found) == kept.like)


def _is_compared(value: Any) -> bool:
    """Whether the native code compares it as `frozen` does: zeros it takes for equal."""
    if type(value) is tuple:
        return all(map(_is_compared, value))
    return type(value) in (bool, int, str, type(None)) or (type(value) is float and value != 0)
