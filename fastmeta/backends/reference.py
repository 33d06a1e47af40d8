"""Plain PyTorch: nothing to load."""

from __future__ import annotations


def unavailable() -> str | None:
    """Why this backend cannot run here; None, since it always can."""
    return None
