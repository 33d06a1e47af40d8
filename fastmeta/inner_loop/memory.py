"""What to say when a device's memory does not hold an inner loop."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.inner_loop.loop import InnerLoop

__all__ = ["telling_how_to_shrink"]


class telling_how_to_shrink:
    """Say of an out-of-memory error what the inner loop keeps, and what makes it smaller.

    A class: a generator's context takes a microsecond, of the eighty of a small meta-step.
    """

    __slots__ = ("_loop", "_support_x")

    def __init__(self, loop: InnerLoop, support_x: Tensor) -> None:
        self._loop, self._support_x = loop, support_x

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, torch.OutOfMemoryError) and "fast weights" not in str(error):
            needs = _needs(self._loop, self._support_x)
            raise torch.OutOfMemoryError(f"{needs} {error}") from error


def _needs(loop: InnerLoop, support_x: Tensor) -> str:
    tasks = len(support_x)
    numbers = sum(loop.shapes[name].numel() for name in loop.adapted)
    size = next(loop.module.parameters(), support_x).element_size()
    kept = tasks * numbers * size * max(loop.steps, 1)
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
