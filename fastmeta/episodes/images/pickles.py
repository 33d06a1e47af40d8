"""Reading the pickles in which data sets are distributed, without running what they name."""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def read_pickle(path: str | Path) -> Any:
    """Return what a pickle holds: NumPy arrays, dicts, lists, strings, bytes and numbers.

    A pickle is a program. Here the only functions and classes that it can call are those that make
    up NumPy arrays and ordered dicts; whatever else it names is an error. Text of Python 2 is read
    as Latin-1.

    Raises:
        ValueError: the file is no pickle, is damaged, or names anything else.
        OSError: it cannot be opened.
    """
    with Path(path).open("rb") as file:
        try:
            return _DataUnpickler(file, encoding="latin1").load()
        # A damaged pickle is a damaged program: it can fail in any way.
        except Exception as error:
            raise ValueError(f"{path} cannot be read as a pickle of arrays: {error}") from error


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode(encoding)


def _function(reduced: Any) -> Callable[..., Any]:
    return reduced[0]


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _function(np.empty(0).__reduce__()),
    ("numpy.core.multiarray", "scalar"): _function(np.float64(0).__reduce__()),
    ("numpy.core.numeric", "_frombuffer"): _function(np.empty(0).__reduce_ex__(5)),
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 renamed its module.
        found = ALLOWED.get((module.replace("numpy._core.", "numpy.core."), name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no data")
        return found
