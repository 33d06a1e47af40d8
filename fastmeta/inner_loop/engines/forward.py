"""A module's own forward, on the native kernels where they are faster."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastmeta.functional.forward import in_every_place, module_lock
from fastmeta.functional.loss_programs import NO_LOSS
from fastmeta.inner_loop.arithmetic.headed import Headed
from fastmeta.inner_loop.engines.features import Features, convolutional, stages_in, unfit_inputs
from fastmeta.inner_loop.loop import InnerLoop, UnknownTensors
from fastmeta.inner_loop.reading.calls import asks_types
from fastmeta.inner_loop.reading.own_calls import does_more
from fastmeta.inner_loop.reading.own_norms import with_own_norms
from fastmeta.inner_loop.reading.snapshot import Snapshot
from fastmeta.inner_loop.reading.stages import Stages

__all__ = ["Forward"]

_MOST_KNOWN = 8  # train() and eval() of a module and of its parts
_MOST_LOOKS, _RUNS_A_LOOK = 8, 16  # a look takes as long as many calls


class Forward:
    """``module(x)``, on the native kernels where they know the module and are faster.

    It does what the call does: norms in train() use the statistics of the batch and update the
    running ones, in eval() they use those, and the result can be differentiated to any order.
    """

    def __init__(self) -> None:
        self._known: dict[Any, _Known] = {}  # by which parts are in train()
        self._looks = self._runs = 0  # at what was another module before; on the kernels

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        found = self._native(module, x)
        if isinstance(found, str):
            return module(x)
        features, parameters = found
        self._runs += 1
        try:
            return features(parameters, x.unsqueeze(0)).squeeze(0)
        except UnknownTensors:
            self._known = {}
            return module(x)

    def why_not(self, module: nn.Module, x: Tensor) -> str | None:
        """None if the native kernels run this, else the reason as a sentence."""
        found = self._native(module, x)
        return found if isinstance(found, str) else None

    def __getstate__(self) -> dict[str, Any]:  # what was found out is of this process
        return {"_known": {}, "_looks": 0, "_runs": 0}

    def _native(self, module: nn.Module, x: Tensor) -> tuple[Features, Mapping[str, Tensor]] | str:
        unfit = unfit_inputs(x)
        if unfit is not None:
            return unfit
        if x.dim() < 3:
            return "the kernels of forwards are for batches of images and sequences"
        if self._looks > _MOST_LOOKS + self._runs // _RUNS_A_LOOK:
            return "the module changes again and again"
        with module_lock:
            known, parameters = self._look_at(module)
            features = known.features(x)
            if isinstance(features, str):
                return features
            return features.unfit(parameters, x.unsqueeze(0)) or (features, parameters)

    def _look_at(self, module: nn.Module) -> tuple[_Known, Mapping[str, Tensor]]:
        modes = tuple([part.training for part in module.modules()])
        known = self._known.get(modes)
        if known is not None and known.module is module:
            parameters = known.snapshot.parameters()
            if parameters is not None:
                return known, parameters
            self._looks += 1
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        known = self._known[modes] = _Known(module, Snapshot(module), {})
        return known, dict(module.named_parameters())


class _Known(NamedTuple):
    """A module as it was looked at."""

    module: nn.Module
    snapshot: Snapshot
    by_sample: dict[Any, Features | str]  # by shape and dtype

    def features(self, x: Tensor) -> Features | str:
        key = x.shape[1:], x.dtype
        if key not in self.by_sample:
            self.by_sample[key] = _features(self.module, self.snapshot, x)
        return self.by_sample[key]


def _features(module: nn.Module, snapshot: Snapshot, x: Tensor) -> Features | str:
    if any(map(is_lazy, module.parameters())):
        return "parameters have no shape yet"
    try:
        twin = deepcopy(module)  # a forward that is tried out may do more than compute
    except Exception as error:
        return f"it cannot be copied: {type(error).__name__}"
    trial, as_it_was = InnerLoop(twin, NO_LOSS, 0, 1, ()), Snapshot(twin)
    sample = x.shape[1:]
    network = convolutional(trial, sample)
    if isinstance(network, str):
        return network
    more = does_more(twin, stages_in(network))
    if more is not None:
        return more
    if as_it_was.parameters() is None:
        return "its forward changes the module"
    own = with_own_norms(module, twin, stages_in(network), x.dtype)
    if isinstance(own, str):
        return own
    stages, learning = own
    network = _with_stages(network, stages)
    loop = InnerLoop(module, NO_LOSS, 0, 1, ())
    loop.memory["network", sample] = network
    again = partial(_again, module, snapshot)
    counts = isinstance(network, Headed) or asks_types(twin)
    return Features(loop, network, trial if counts else None, again, learning)


def _with_stages(network: Stages | Headed, stages: Stages) -> Stages | Headed:
    if isinstance(network, Stages):
        return stages
    return Headed(stages, network.above, (*stages.names, *network.above.names))


def _again(
    module: nn.Module, snapshot: Snapshot, parameters: Mapping[str, Tensor], x: Tensor
) -> Tensor:
    """By PyTorch, without another update of running statistics."""
    if snapshot.parameters() is None:
        raise RuntimeError(
            "the module changed (train() or eval(), hooks, attributes) before a gradient with "
            "create_graph=True, for which its forward runs once more"
        )
    own = {name: buffer.clone() for name, buffer in module.named_buffers()} | dict(parameters)
    with module_lock:
        tensors = in_every_place(module, own)
        made = torch.func.functional_call(module, tensors, (x[0],), tie_weights=False)
    return made.unsqueeze(0)
