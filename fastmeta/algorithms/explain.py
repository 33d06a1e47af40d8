"""Which engine runs something, and why not the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastmeta.algorithms.maml import MAML
from fastmeta.algorithms.proto_maml import ProtoMAML
from fastmeta.algorithms.shared_encoder import SharedEncoder
from fastmeta.functional.losses import Loss
from fastmeta.inner_loop.choose import Choice
from fastmeta.inner_loop.engines import reference, resident
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
        The choice: `name` of the engine, and in `passed_over` a sentence for each other one. Of
        `ProtoNet` and its kin, what runs the encoder: "resident" where the native kernels do,
        "reference" where it is called as it is.

    Raises:
        ValueError: a loss given for an algorithm that has one, a device beside tasks, or a demand
            (`engine=`, `use_backend`) that cannot be met, or dropout or tasks that a call would
            refuse.
        TypeError: no tasks, for `ProtoMAML` and for an algorithm that has no inner loop.
    """
    if not isinstance(meta_or_module, (MAML, ProtoMAML, SharedEncoder)):
        return MAML(meta_or_module, loss=loss or "cross_entropy").choice(device, tasks)
    if loss is not None:
        raise ValueError("loss belongs to the algorithm; give it only with a plain module")
    if isinstance(meta_or_module, MAML):
        return meta_or_module.choice(device, tasks)
    name = type(meta_or_module).__name__
    if device is not None:
        raise ValueError(f"device: {name} runs where its tasks are; give those alone")
    if isinstance(meta_or_module, ProtoMAML):
        if tasks is None:
            raise TypeError(f"{name} needs tasks: its head is made of their support")
        return meta_or_module.choice(tasks)
    return _of_encoder(meta_or_module, tasks)


def _of_encoder(meta: SharedEncoder[Any], tasks: TaskBatch | None) -> Choice:
    name = type(meta).__name__
    if tasks is None:
        raise TypeError(
            f"{name} has no inner loop; with tasks, explain says what runs its encoder, which sees "
            "the samples of all of them at once"
        )
    reason = meta.not_native(tasks)
    if reason is None:
        return Choice("resident", resident, {"reference": "not asked: resident comes first"})
    return Choice("reference", reference, {"resident": reason})
