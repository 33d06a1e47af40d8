"""Why a module is none that the native kernels know, for whoever wrote it."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
)

from fastmeta.inner_loop.reading.calls import is_by_hand
from fastmeta.inner_loop.reading.layer_rules import several

__all__ = ["neither"]


def neither(module: nn.Module, layers: str, written: str, above: str | None = None) -> str:
    """Why it is neither layers nor arithmetic on each sample's numbers: what decides, first.

    above: why what stands above layers is no such arithmetic.
    """
    if any(map(_is_of_layers, module.modules())):
        end = "" if above is None else f". Nor is what follows the layers read: {_explained(above)}"
        return f"{layers}{end}"
    said = _explained(written)
    if is_by_hand(module) or said == layers:
        return said
    return f"{said}. As layers it is not read either: {layers}"


def _is_of_layers(part: Any) -> bool:
    """Whether the native kernels have it as a layer alone; as arithmetic, patches side by side."""
    if isinstance(part, _ConvNd):
        padded = part.padding == "same" or any(n not in (0, "valid") for n in several(part.padding))
        return padded or part.kernel_size != part.stride
    of_functions = any(p.dim() > 3 for p in part.parameters(recurse=False))
    return isinstance(part, _LAYERS) or of_functions


_LAYERS = _BatchNorm, _MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd


def _explained(reason: str) -> str:
    """A sentence of the forward, with a way out where there is one."""
    for pattern, said in _SAID.items():
        if found := re.search(pattern, reason):
            return found.expand(said)
    return re.sub("^it ", "its forward ", reason)


_SAID = {
    r"^it makes (more than \d+ numbers) of a sample$": (
        r"its forward makes \1 of a sample, the most that the native kernels keep: shorter "
        "sequences or narrower layers make fewer"
    ),
    r"^it takes (\d+) steps, (more than \d+)$": (
        r"its forward takes \1 operations, \2: shorter loops or fewer layers take fewer"
    ),
    r"^it asks for data,": (
        "its forward reads .data of a tensor, which the native kernels do not: they read .detach()"
    ),
    r"^it asks for (tolist|numpy|__array__|__dlpack__),": (
        r"its forward takes a tensor's numbers out of PyTorch (\1), where the native kernels do "
        "not follow: compute with tensors"
    ),
    r"^it asks for (\w+),": (
        r"its forward asks a tensor for \1, which the native kernels do not tell"
    ),
    r"^it depends on values$": (
        "its forward goes by the values of tensors (if, while, int(), a mask as an index): the "
        "native kernels choose between numbers by torch.where"
    ),
    r"^it rounds$": (
        "its forward makes whole numbers of real ones (.long(), .int()), which the native kernels "
        "do not"
    ),
    r"Expected tensor for argument #1 'indices' to have one of the following scalar types": (
        "its forward takes inputs of whole numbers, as nn.Embedding does, which are not read: the "
        "native kernels take real inputs"
    ),
}
