"""Which engine runs something, and why not the others."""

from __future__ import annotations

import torch
from torch import nn

from fastmeta.algorithms.maml import MAML
from fastmeta.algorithms.shared_encoder import SharedEncoder
from fastmeta.functional.losses import Loss
from fastmeta.inner_loop.choose import Choice
from fastmeta.tasks import TaskBatch

__all__ = ["explain"]


def explain(
    meta_or_module: nn.Module,
    tasks: TaskBatch | None = None,
    *,
    loss: Loss | None = None,
    device: torch.device | str | None = None,
) -> Choice:
    """Which engine runs an algorithm, or MAML on a module: `print(fm.explain(meta, tasks))`.

    Args:
        meta_or_module: an algorithm such as `MAML`, or any other module to put under MAML.
        tasks: a batch like those to come, which the engine may depend on: on the shape of targets,
            for example. None: what ran the latest kind of batch, or before a call what would run
            most, which the choice says.
        loss: for a module, its loss ("cross_entropy" if not given); an algorithm has its own.
        device: where it would run; None: where its parameters are.

    Returns:
        The choice: `name` of the engine, and in `passed_over` a sentence for each other one.

    Raises:
        ValueError: a loss given for an algorithm that has one, a device beside tasks, or a demand
            (`engine=`, `use_backend`) that cannot be met, or dropout or tasks that a call would
            refuse.
        TypeError: an algorithm without an inner loop.
    """
    if isinstance(meta_or_module, SharedEncoder):
        raise TypeError(
            f"{type(meta_or_module).__name__} has no inner loop that an engine would run: its "
            "encoder sees the samples of all tasks at once"
        )
    if not isinstance(meta_or_module, MAML):
        return MAML(meta_or_module, loss=loss or "cross_entropy").choice(device, tasks)
    if loss is not None:
        raise ValueError("loss belongs to the algorithm; give it only with a plain module")
    return meta_or_module.choice(device, tasks)
