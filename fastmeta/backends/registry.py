"""Which backend is asked for, and which of them can load here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fastmeta.words import one_of

__all__ = ["BACKENDS", "available_backends", "requested_backend", "use_backend"]

# Each is a module of this package with `unavailable() -> str | None`: the reason, or None.
BACKENDS = ("reference", "cpu", "cuda", "triton")

_VARIABLE = "FASTMETA_BACKEND"
_requested: ContextVar[str | None] = ContextVar("requested_backend", default=None)
_from_environment = os.environ.get(_VARIABLE) or None


def available_backends() -> dict[str, bool | str]:
    """Every backend by name: True, or the reason why it cannot run here.

    "reference" is plain PyTorch, one task after another, differentiable to any order; "cpu" is the
    native code, "cuda" that for NVIDIA GPUs; "triton" are the kernels for single operations there.
    """
    reasons = {name: importlib.import_module(f"{__package__}.{name}") for name in BACKENDS}
    return {name: module.unavailable() or True for name, module in reasons.items()}


def requested_backend() -> str | None:
    """The backend of the innermost `use_backend`, else of FASTMETA_BACKEND, else None.

    The variable is read once, when fastmeta is imported.

    Raises:
        ValueError: FASTMETA_BACKEND names no backend.
    """
    requested = _requested.get()
    if requested is None and _from_environment is not None:
        _check_name(_VARIABLE, _from_environment)
        return _from_environment
    return requested


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Demand one backend for all that this thread (or asyncio task) runs inside the block.

    "reference" makes every algorithm run plain PyTorch, one task after another, differentiable to
    any order. "cpu" and "cuda" demand the native code for tensors there, "triton" the layered
    engine with its Triton kernels: what they cannot run is an error that says why.

    Raises:
        ValueError: no backend has this name.
    """
    _check_name("name", name)
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def _check_name(source: str, name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(one_of(source, name, BACKENDS))
