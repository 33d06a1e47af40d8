"""Meta-SGD: the inner rates are learned, one for each number."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastmeta.algorithms.maml import MAML

__all__ = ["MetaSGD"]


class MetaSGD(MAML):
    """Meta-SGD (Li et al. 2017, algorithm 1): MAML with a learned rate for every parameter element.

    The rates are parameters too and start at `inner_lr`; the paper draws them from [0.005, 0.1] and
    takes one inner step. `inner_rates` has them by the names of the parameters, with "/" for ".",
    in the order of the alphabet: `meta.inner_rates["0/weight"]`, [1, *shape], of "0.weight", or
    [inner_steps, *shape] with `per_step_lr`.

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
