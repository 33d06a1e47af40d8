"""What a forward writes to its parameters, be it what they were before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastmeta.functional.forward import in_every_place

__all__ = ["unchanged_parameters"]


@contextmanager
def unchanged_parameters(
    module: nn.Module, parameters: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """ValueError if a `call_module` in the block, which is given `left`, writes to parameters, or
    puts others in their places.
    """
    given = in_every_place(module, parameters)
    left: dict[str, Tensor] = {}
    before = {place: _state(p) for place, p in given.items()}
    with _Aliases() as aliases:
        yield left
    written = aliases.written()
    changed = [
        place
        for place, p in given.items()
        if left[place] is not p or _state(p) != before[place] or before[place][-1] in written
    ]
    changed = [place for place in changed if not _may_change(module, place, given[place])]
    if changed:
        raise ValueError(
            f"the module's forward changes its parameters ({', '.join(changed)}), which every "
            "inner step reads again: let it compute what it needs of them, as F.linear(x, "
            "F.normalize(self.weight, dim=1)) does, or change them outside of the forward"
        )


def _may_change(module: nn.Module, place: str, parameter: Tensor) -> bool:
    """Embeddings with max_norm, which the reference runs; cuDNN moves the weights of an LSTM."""
    owner = module.get_submodule(place.rpartition(".")[0])
    moves = isinstance(owner, nn.RNNBase) and parameter.is_cuda
    return moves or getattr(owner, "max_norm", None) is not None


def _state(p: Tensor) -> tuple[int, int | None, int | None]:
    """What a write to a tensor changes, and the address of its storage."""
    dense = p.layout is torch.strided
    return p._version, p.data_ptr() if dense else None, _storage(p)


def _storage(x: Tensor) -> int | None:
    return x.untyped_storage().data_ptr() if x.layout is torch.strided else None


class _Aliases(TorchFunctionMode):
    """Keeps what `x.data` gives: a write to it does not count as one to `x`."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function == _DATA:
            self._found.append(found)
        return found

    def written(self) -> set[int | None]:
        """The storages that were written to through `x.data`."""
        return {_storage(x) for x in self._found if x._version > 0}


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
