"""What the build left behind to explain why native code is missing."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["build_failure"]

_BUILD_INFO = Path(__file__).parent.parent / "_build_info.json"


def build_failure(*errors: str) -> str:
    """What the build said under the first of these names that it gave, else all that it said."""
    try:
        info = json.loads(_BUILD_INFO.read_text())
    except (OSError, ValueError):
        return "this copy of fastmeta was never built: pip install it"
    said = next((info[name] for name in errors if info.get(name)), info)
    return f"the build said: {said}"
