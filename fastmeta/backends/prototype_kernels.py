"""Which kernels compute prototypes: one of the modules that have the raw functions, or none."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from fastmeta.backends import prototypes, triton, triton_prototypes
from fastmeta.backends.registry import requested_backend

__all__ = ["kernels_for"]


def kernels_for(*tensors: Tensor, features: bool = False) -> ModuleType | None:
    """The module whose raw functions are to run on these; None for plain PyTorch.

    features: whether these are features for a loss or a search, which may be of half precision:
    they are converted as they are loaded.

    Raises:
        ValueError: the backend "triton" is demanded and cannot run this, with the reason.
    """
    if requested_backend() == "reference":
        return None
    dtypes = triton_prototypes.LOADED if features else triton.DTYPES
    if triton.takes(*tensors, dtypes=dtypes):
        return triton_prototypes
    refusal = prototypes.can_load if features else prototypes.can_run
    return prototypes if refusal(*tensors) is None else None
