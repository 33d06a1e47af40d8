"""Fast, exact meta-learning for PyTorch: thousands of inner loops in one call."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmeta import episodes, functional, models, training
    from fastmeta.algorithms import (
        ANIL,
        MAML,
        R2D2,
        MatchingNet,
        MetaSGD,
        ProtoMAML,
        ProtoNet,
        Reptile,
    )
    from fastmeta.algorithms.explain import explain
    from fastmeta.backends import available_backends, use_backend
    from fastmeta.tasks import Adapted, MetaOutput, TaskBatch

__version__ = "0.1.0"

__all__ = [
    "ANIL",
    "MAML",
    "R2D2",
    "Adapted",
    "MatchingNet",
    "MetaOutput",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "TaskBatch",
    "available_backends",
    "episodes",
    "explain",
    "functional",
    "models",
    "training",
    "use_backend",
]

# Torch takes more than a second to import: `fastmeta --help` and `--version` do without.
_HOME = {
    "fastmeta.algorithms": (
        "ANIL", "MAML", "MatchingNet", "MetaSGD", "ProtoMAML", "ProtoNet", "R2D2", "Reptile",
        "explain",
    ),  # fmt: skip
    "fastmeta.backends": ("available_backends", "use_backend"),
    "fastmeta.tasks": ("Adapted", "MetaOutput", "TaskBatch"),
}
_SUBMODULES = (
    "algorithms", "backends", "episodes", "functional", "inner_loop", "models", "tasks",
    "training",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _SUBMODULES:
        return import_module(f"fastmeta.{name}")
    for module, names in _HOME.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module 'fastmeta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
