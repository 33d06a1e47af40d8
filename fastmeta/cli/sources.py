"""Which module knows a source: each has `prepare` for training, and `evaluate`."""

from __future__ import annotations

import importlib
from types import ModuleType

IMAGES = ("omniglot", "cifar-fs", "fc100", "mini-imagenet", "images", "npz")


def module_of(source: str) -> ModuleType:
    """Return the module of a source by its name on the command line."""
    return importlib.import_module(f"fastmeta.cli.{'images' if source in IMAGES else source}")
