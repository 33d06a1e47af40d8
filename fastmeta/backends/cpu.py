"""The native CPU kernels: loads `fastmeta._native`, or says why it cannot be had."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

# PyTorch comes first: the kernels run on the threads of the OpenMP runtime that it loads.
import torch  # noqa: F401

__all__ = ["native", "release_memory", "unavailable"]

native: ModuleType | None
try:
    native = importlib.import_module("fastmeta._native")
except ImportError as error:
    native = None
    _load_error = str(error)

_BUILD_INFO = Path(__file__).parent.parent / "_build_info.json"


def unavailable() -> str | None:
    """Why the native kernels cannot run here, or None."""
    if native is not None:
        return None
    return f"the native kernels did not load ({_load_error}); {_build_failure()}"


def release_memory() -> None:
    """Give back the memory that the native kernels keep from call to call."""
    if native is not None:
        native.release_memory()


def _build_failure() -> str:
    try:
        info = json.loads(_BUILD_INFO.read_text())
    except (OSError, ValueError):
        return "this copy of fastmeta was never built: pip install it"
    return f"the build said: {info.get('error') or info}"
