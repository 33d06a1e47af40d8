"""The device that a command runs on, chosen once at its start."""

from __future__ import annotations

import torch

from fastmeta.backends.device import find_device

_chosen = torch.device("cpu")


def choose_device(name: str) -> torch.device:
    """Run on the device of this name from now on.

    Raises:
        ValueError: no such device here, with the reason.
    """
    global _chosen
    _chosen = find_device(name)
    return _chosen


def chosen_device() -> torch.device:
    """The device that was chosen, or the CPU."""
    return _chosen
