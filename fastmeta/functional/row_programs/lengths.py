"""`len(x)` of a tensor as a size, of which is known where it comes from."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["lengths_as_sizes"]


@contextmanager
def lengths_as_sizes(kind: type[Any]) -> Iterator[None]:
    """``len(x)`` of what is of a kind is ``x.size(0)``, which need not be a plain int."""

    thread = threading.get_ident()

    def length(of: Any) -> Any:
        if isinstance(of, kind) and threading.get_ident() == thread:
            return of.size(0)
        return _len(of)

    builtins.len = length  # other threads meet it, too, and get what they would
    try:
        yield
    finally:
        builtins.len = _len


_len = len
