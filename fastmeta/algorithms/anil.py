"""ANIL: only the head adapts."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastmeta.algorithms.maml import MAML

__all__ = ["ANIL"]


class ANIL(MAML):
    """Almost no inner loop (Raghu et al. 2020, section 4): MAML that adapts only the head.

    All parameters are meta-learned, those below the head through the features they give it. Below
    the head of an `nn.Sequential` the layers run once a batch instead of once a step.

    Args:
        model: any module.
        head: a submodule of `model`, or its name.
        **options: of `MAML`, but for `adapt_parameters`.

    Raises:
        ValueError: `head` is not in `model`, or has no parameters.

    Equivalent to::

        MAML(model, adapt_parameters=lambda name: name.startswith("head."), **options)
    """

    def __init__(self, model: nn.Module, head: nn.Module | str, **options: Any) -> None:
        if "adapt_parameters" in options:
            raise TypeError("ANIL takes `head` instead of `adapt_parameters`")
        super().__init__(model, adapt_parameters=_parameters_of(model, head), **options)


def _parameters_of(model: nn.Module, head: nn.Module | str) -> list[str]:
    wanted = {id(p) for p in _submodule(model, head).parameters() if p.requires_grad}
    names = [name for name, p in model.named_parameters() if id(p) in wanted]
    if not names:
        raise ValueError("head has no parameters that require grad")
    return names


def _submodule(model: nn.Module, head: nn.Module | str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if head is module or (head == name and name):
            return module
    called = repr(head) if isinstance(head, str) else type(head).__name__
    raise ValueError(f"head {called} is not a submodule of the model: {list(modules)[1:]}")
