"""Which kernels compute prototypes: one of the modules that have the raw functions, or none."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from fastmeta.backends import prototypes, triton, triton_prototypes
from fastmeta.backends.registry import requested_backend

__all__ = ["kernels_for"]


def kernels_for(*tensors: Tensor) -> ModuleType | None:
    """The module whose raw functions are to run on these; None for plain PyTorch.

    Raises:
        ValueError: the backend "triton" is demanded and cannot run this, with the reason.
    """
    if requested_backend() == "reference":
        return None
    if triton.takes(*tensors):
        return triton_prototypes
    return prototypes if prototypes.can_run(*tensors) is None else None
