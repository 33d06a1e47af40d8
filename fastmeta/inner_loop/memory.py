"""What to say when a device's memory does not hold an inner loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor

from fastmeta.inner_loop.loop import InnerLoop

__all__ = ["tell_how_to_shrink", "telling_how_to_shrink"]


@contextmanager
def telling_how_to_shrink(loop: InnerLoop, support_x: Tensor) -> Iterator[None]:
    """Say of an out-of-memory error what the inner loop keeps, and what makes it smaller."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        tell_how_to_shrink(error, loop, support_x)


def tell_how_to_shrink(
    error: torch.OutOfMemoryError, loop: InnerLoop, support_x: Tensor
) -> NoReturn:
    """Raise the error again, saying what the inner loop keeps and what makes it smaller."""
    message = str(error)
    if "fast weights" in message:
        raise error
    raise torch.OutOfMemoryError(f"{_needs(loop, support_x)} {message}") from error


def _needs(loop: InnerLoop, support_x: Tensor) -> str:
    tasks = len(support_x)
    numbers = sum(loop.shapes[name].numel() for name in loop.adapted)
    kept = tasks * numbers * support_x.element_size() * max(loop.steps, 1)
    ways = ["fewer tasks in a batch (gradients of several batches add up)"]
    if loop.steps > 1:
        ways.append("fewer inner steps")
    if loop.order == 2:
        ways.append("order=1")
    return (
        f"The fast weights of {tasks} tasks over {loop.steps} inner steps, {numbers} numbers each, "
        f"take {kept / 2**30:.3g} GiB on {support_x.device}, and the samples' activations of one "
        f"step come on top. What takes less: {', '.join(ways)}."
    )
