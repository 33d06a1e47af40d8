"""The vmap engine: any module and any loss, with the exact meta-gradient in memory flat in K.

Only the forward is under vmap, or runs for one task after another where vmap cannot; derivatives
are plain autograd outside of it, since vmap's own derivatives of fused norms are wrong at second
order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from fastmeta.functional.forward import task_forward
from fastmeta.inner_loop import recursion
from fastmeta.inner_loop.loop import InnerLoop, Rates
from fastmeta.inner_loop.reading.layers import called
from fastmeta.inner_loop.steps import Forward
from fastmeta.tasks import TaskBatch

__all__ = ["adapt", "can_run", "meta_loss"]


def can_run(
    loop: InnerLoop, tasks: TaskBatch | None, parameters: Mapping[str, Tensor], rates: Rates
) -> str | None:
    """None, or the reason why its meta-gradient would be wrong or not whole.

    What vmap itself cannot run shows only when it runs, and then goes task by task.
    """
    for name, layer in loop.module.named_modules():
        if getattr(layer, "max_norm", None) is not None:
            return f"{called(name, layer)} changes its weight in place (max_norm)"
    return recursion.unknown_tensors(loop, tasks, parameters)


def _forward(loop: InnerLoop, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return task_forward(loop.module, parameters, x, loop.randomness)


_VMAP = Forward("vmap", _forward)
adapt = partial(recursion.adapt, _VMAP)
meta_loss = partial(recursion.meta_loss, _VMAP)
