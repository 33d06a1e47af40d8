"""What of a forward lies below all that adapts: the same for every task and step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.functional.forward import ELEMENTWISE, has_backward_hooks, has_hooks
from fastmeta.inner_loop.arithmetic.written import Written
from fastmeta.inner_loop.engines.networks import native_network
from fastmeta.inner_loop.engines.task_forward import TaskForward
from fastmeta.inner_loop.loop import InnerLoop, UnknownTensors
from fastmeta.inner_loop.reading.cuts import halves
from fastmeta.inner_loop.reading.layers import leaves_of
from fastmeta.inner_loop.reading.words import OneHot, is_recurrent, of_one_hot
from fastmeta.tasks import TaskBatch

__all__ = ["Prefix", "mostly_words", "split", "split_inputs", "split_words"]

# Layers that treat each sample by itself, so that all tasks' samples can be one batch.
_SAMPLE_BY_SAMPLE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, *ELEMENTWISE,
)  # fmt: skip


@dataclass(frozen=True)
class Prefix:
    """The layers below the inner loop.

    Attributes:
        forward: runs the layers.
        names: of their parameters.
        held: the buffers that copies of a forward's halves hold, and where their module has them.
        vocabulary: of words, how many there are.
    """

    forward: TaskForward
    names: tuple[str, ...]
    held: tuple[tuple[dict[str, Any], str, Any], ...] = ()
    vocabulary: int = 0

    def features(self, parameters: Mapping[str, Tensor], tasks: TaskBatch) -> TaskBatch:
        """The tasks with their inputs run through the layers: [T, S, ...] and [T, Q, ...].

        Raises:
            UnknownTensors: a buffer is another tensor than before, what comes of the samples is not
                as many, or they have too many words.
        """
        if any([owner.get(key) is not buffer for owner, key, buffer in self.held]):
            raise UnknownTensors("a buffer of the module is another tensor than before")
        if _are_many(tasks, self.vocabulary):
            raise UnknownTensors("the tasks have more words than those before")
        own = {name: parameters[name] for name in self.names}
        support = query = self.forward(own, tasks.support_x)
        if tasks.query_x is not tasks.support_x:
            query = self.forward(own, tasks.query_x)
        for made, x in ((support, tasks.support_x), (query, tasks.query_x)):
            if made.shape[:2] != x.shape[:2]:
                raise UnknownTensors("below the inner loop other samples are made of these")
        return tasks.with_inputs(support, query)


def split(
    module: nn.Module, adapted: tuple[str, ...], native: bool = True
) -> tuple[Prefix, nn.Module] | None:
    """A module cut before what adapts first: (prefix, rest); None where there is no prefix.

    Both keep the module's names, so parameters are found under the same names.
    """
    if has_hooks(module) or has_backward_hooks(module):
        return None
    if type(module) is nn.Sequential:
        return _prefix(module, adapted, _of_children(module, adapted), native)
    cut = _prefix(module, adapted, halves(module, adapted.__contains__), native)
    return cut if cut is not None and cut[0].names else None


def split_inputs(
    module: nn.Module, adapted: tuple[str, ...], native: bool = True
) -> tuple[Prefix, nn.Module] | None:
    """`split` before the first parameter, of a forward that is written by hand."""
    if type(module) is nn.Sequential or has_backward_hooks(module):
        return None
    return _prefix(module, adapted, halves(module, lambda name: True), native)


def split_words(
    module: nn.Module, adapted: tuple[str, ...], tasks: TaskBatch
) -> tuple[Prefix, nn.Module] | None:
    """`split` of a module that looks up words at first: between each word's place in the vocabulary
    and its row in the table. None where that would be too many numbers.
    """
    if tasks.support_x.is_floating_point() or has_backward_hooks(module):
        return None
    parts = of_one_hot(module)
    if parts is None:
        return None
    vocabulary = parts[0].vocabulary
    slow = not is_recurrent(module) and _places(tasks.support_x[0, :1], vocabulary) > _FEW_PLACES
    if slow or _are_many(tasks, vocabulary):
        return None
    cut = _prefix(module, adapted, parts, native=False)
    return cut and (replace(cut[0], vocabulary=vocabulary), cut[1])


def _are_many(tasks: TaskBatch, vocabulary: int) -> bool:
    places = (_places(x, vocabulary) for x in (tasks.support_x, tasks.query_x))
    return sum(places) > _MOST_NUMBERS


def _places(words: Tensor, vocabulary: int) -> int:
    return words.numel() * vocabulary


_MOST_NUMBERS = 1 << 26  # of all tasks' words
# Of a sample's words: of more to look up under vmap is faster (docs/notes/cpu-kernels.md).
_FEW_PLACES = 10_240
_FEW_FOR_A_NUMBER = 3


def mostly_words(prefix: Prefix, above: InnerLoop, sample: torch.Size) -> bool:
    """Whether a sample's places in the vocabulary are so many beside the numbers that are made of
    them above that to look up under vmap is faster.
    """
    network = native_network(above, sample) if prefix.vocabulary else None
    if not isinstance(network, Written) or is_recurrent(above.module):
        return False
    numbers = sum(width for *_, width in network.steps)
    return sample.numel() > _FEW_FOR_A_NUMBER * numbers


def _prefix(
    module: nn.Module, adapted: tuple[str, ...], parts: tuple[nn.Module, nn.Module] | None,
    native: bool,
) -> tuple[Prefix, nn.Module] | None:  # fmt: skip
    if parts is None:
        return None
    below, rest = parts
    names = set(_names(rest))
    # A parameter tied across the cut is known under its name in the prefix alone.
    if not names <= set(_names(module)) or not names.issuperset(adapted):
        return None
    forward = TaskForward(below, _sample_by_sample(below), native)
    held = () if type(module) is nn.Sequential else _buffers(module)
    return Prefix(forward, _names(below), held), rest


def _buffers(module: nn.Module) -> tuple[tuple[dict[str, Any], str, Any], ...]:
    owners = [part._buffers for part in module.modules()]
    return tuple((own, key, buffer) for own in owners for key, buffer in own.items())


def _of_children(
    module: nn.Sequential, adapted: tuple[str, ...]
) -> tuple[nn.Module, nn.Module] | None:
    children = list(module._modules.items())
    adapting = {name.split(".")[0] for name in adapted}
    cut = next((i for i, (name, _) in enumerate(children) if name in adapting), 0)
    if cut == 0:
        return None
    below, rest = (nn.Sequential(OrderedDict(part)) for part in (children[:cut], children[cut:]))
    _, first = leaves_of(rest)[0]
    # Every step reads what is made below: nothing may work on it in place.
    return None if getattr(first, "inplace", False) else (below, rest)


def _names(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in module.named_parameters())


def _sample_by_sample(module: nn.Module) -> bool:
    if has_hooks(module):
        return False
    if type(module) is nn.Sequential:
        return all(_sample_by_sample(child) for child in module)
    if type(module) is OneHot:
        return True
    if type(module) is nn.Flatten:
        return module.start_dim >= 1
    return type(module) in _SAMPLE_BY_SAMPLE
