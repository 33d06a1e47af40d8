"""Meta-SGD: the inner rates are learned, one for each number."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastmeta.algorithms.maml import MAML

__all__ = ["MetaSGD"]


class MetaSGD(MAML):
    """Meta-SGD (Li et al. 2017, algorithm 1): MAML with a learned rate for every parameter element.

    The rates are parameters too (`inner_rates`) and start at `inner_lr`; the paper draws them from
    [0.005, 0.1] and takes one inner step.

    Args:
        model: any module.
        **options: of `MAML`, but for `learn_inner_lr`.

    Equivalent to::

        MAML(model, learn_inner_lr="element", **options)
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        if "learn_inner_lr" in options:
            raise TypeError('MetaSGD is learn_inner_lr="element"; MAML takes other values')
        super().__init__(model, learn_inner_lr="element", **options)
