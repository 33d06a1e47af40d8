"""Buffers of a module that a backward reads once more."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["BuffersAsTheyAre"]


class BuffersAsTheyAre:
    """Those that an inner loop may read, which no norm's running statistics are."""

    def __init__(self, module: nn.Module) -> None:
        self._places: list[tuple[str, dict[str, Any], str, Tensor, int]] = [
            (f"{prefix}.{key}".lstrip("."), part._buffers, key, buffer, _version(buffer))
            for prefix, part in module.named_modules() if not isinstance(part, _NormBase)
            for key, buffer in part._buffers.items() if buffer is not None
        ]  # fmt: skip

    def check(self) -> None:
        """RuntimeError where one is another tensor now, or was changed in place."""
        for name, own, key, buffer, version in self._places:
            if own.get(key) is not buffer or _version(buffer) != version:
                raise RuntimeError(
                    f"the buffer {name!r} was changed between the forward of an inner loop and its "
                    "backward, which computes the steps again: change it after the backward"
                )


def _version(buffer: Tensor) -> int:
    return -1 if buffer.is_inference() else buffer._version
