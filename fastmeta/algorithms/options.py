"""The options of a learner with an inner loop, checked where it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from fastmeta.functional.precision import PRECISIONS
from fastmeta.inner_loop.choose import check_engine

__all__ = ["Names", "check_options", "chosen_names"]

Names = Iterable[str] | Callable[[str], bool]


def chosen_names(model: nn.Module, chosen: Names | None) -> tuple[str, ...] | None:
    if chosen is None:
        return None
    own = dict(model.named_parameters())
    if callable(chosen):
        return tuple(name for name in own if chosen(name))
    if isinstance(chosen, str):
        raise TypeError(f"adapt_parameters must be several names or a predicate, not {chosen!r}")
    names = tuple(chosen)
    unknown = [name for name in names if name not in own]
    if unknown:
        raise ValueError(f"adapt_parameters names {unknown}; the model has {list(own)}")
    frozen = [name for name in names if not own[name].requires_grad]
    if frozen:
        raise ValueError(f"adapt_parameters names {frozen}, which do not require grad")
    return names


def check_options(
    learn_inner_lr: str | None,
    per_step_lr: bool,
    engine: str,
    precision: str,
    randomness: str | None,
) -> None:
    if learn_inner_lr not in (None, "tensor", "element"):
        raise ValueError(
            f'learn_inner_lr must be None, "tensor" or "element", not {learn_inner_lr!r}'
        )
    if per_step_lr not in (True, False):
        raise ValueError(f"per_step_lr must be True or False, not {per_step_lr!r}")
    if per_step_lr and learn_inner_lr is None:
        raise ValueError('per_step_lr needs rates to learn: learn_inner_lr="tensor" or "element"')
    check_engine(engine)
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {[*PRECISIONS]}, not {precision!r}")
    if randomness is not None and engine != "vmap":
        raise ValueError(f'randomness needs engine="vmap", not "{engine}"')
