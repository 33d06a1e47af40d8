"""Fast, exact meta-learning for PyTorch: thousands of inner loops in one call."""

from fastmeta import episodes, functional, models
from fastmeta.algorithms import ANIL, MAML, MetaSGD, Reptile, explain
from fastmeta.backends import available_backends, use_backend
from fastmeta.tasks import Adapted, MetaOutput, TaskBatch

__version__ = "0.1.0"

__all__ = [
    "ANIL",
    "MAML",
    "Adapted",
    "MetaOutput",
    "MetaSGD",
    "Reptile",
    "TaskBatch",
    "available_backends",
    "episodes",
    "explain",
    "functional",
    "models",
    "use_backend",
]
