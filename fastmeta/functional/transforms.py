"""What the operations' rules for torch.func have in common, and what to say where it has none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

__all__ = [
    "NotForManyTasks", "explaining_vmap", "fold_batch", "is_wrapped", "nobody_differentiates",
    "nobody_transforms", "numbers_of", "refuse_nested_jvp", "unfold_batch", "values_of",
]  # fmt: skip

is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def fold_batch(
    size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor | None]
) -> list[Any]:
    """Per-task tensors [T, ...] of a vmap over B as [B*T, ...]: more tasks."""
    folded: list[Tensor | None] = []
    for dim, tensor in zip(in_dims, tensors, strict=False):
        if tensor is None:
            folded.append(None)
        elif dim is None:
            folded.append(tensor.expand(size, *tensor.shape).flatten(0, 1))
        else:
            folded.append(tensor.movedim(dim, 0).flatten(0, 1))
    return folded


def unfold_batch(size: int, tensor: Tensor) -> Tensor:
    """[B*T, ...] as [B, T, ...]."""
    return tensor.unflatten(0, (size, -1))


def nobody_differentiates() -> bool:
    """Whether what is computed now is a plain number to everyone: no graph, no transform."""
    return not torch.is_grad_enabled() and nobody_transforms()


def nobody_transforms() -> bool:
    """Whether tensors are plain ones: no transform of torch.func, no forward derivative."""
    return forward_ad._current_level < 0 and get_interpreter_stack() is None


def values_of(tensor: Tensor) -> Tensor:
    """The plain tensor below the transforms of torch.func, batch dimensions and all."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.detach()


def numbers_of(tensor: Tensor) -> list[Any]:
    """`values_of` as a list, which older PyTorch makes outside of transforms alone."""
    with torch._C._DisableFuncTorch():
        return values_of(tensor).tolist()


def refuse_nested_jvp() -> None:
    """RuntimeError in a jvp rule that runs under the jvp of a jvp.

    There PyTorch (2.9 to 2.13) takes the inner tangent for a constant of the outer one, whatever
    the rule, and the second derivative would be zero without a word.
    """
    levels = [level.key() for level in get_interpreter_stack() or []]
    if levels.count(TransformType.Jvp) > 1:
        raise RuntimeError(
            "jvp of jvp does not work through fastmeta.functional: PyTorch would lose the "
            "derivative of the inner one. The way out: jvp(grad(...)) or grad(grad(...))."
        )


class NotForManyTasks(RuntimeError):
    """What vmap cannot run for many tasks at once, though it may run for one after another."""


@contextmanager
def explaining_vmap(name: str) -> Iterator[None]:
    """Re-raise errors of vmap as errors of `name`, with the way out."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if "randomness" in message:
            raise RuntimeError(
                f"{name} draws random numbers in its forward: call .eval() on its dropout layers, "
                f'or choose engine="vmap" with randomness="different" or "same" ({message})'
            ) from error
        if type(error) not in (RuntimeError, NotImplementedError):  # out of memory, for one
            raise
        raise NotForManyTasks(
            f"{name} cannot run for many tasks at once, nor with randomness drawn for them. What "
            f"vmap said: {message}"
        ) from error
