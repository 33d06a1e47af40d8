"""Learners that take tasks of any ways: from plain values to what runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta import R2D2, MatchingNet, ProtoMAML, ProtoNet
from fastmeta.algorithms.shared_encoder import SharedEncoder
from fastmeta.cli.options.algorithms import METRIC
from fastmeta.training import in_evaluation

ANY_WAYS = (*METRIC, "protomaml")


def make_learner(
    settings: Mapping[str, Any], encoder: nn.Module, sample: Tensor
) -> SharedEncoder[Any] | ProtoMAML:
    """Build the learner around its encoder.

    Args:
        settings: of a `Job`, with an algorithm of `ANY_WAYS`.
        encoder: a network without a head.
        sample: [1, ...], an input of the encoder.

    Raises:
        ValueError: settings that do not go together.
    """
    algorithm = settings["algorithm"]
    if algorithm == "protomaml":
        names = ("inner_lr", "inner_steps", "engine")
        return ProtoMAML(encoder, **{name: settings[name] for name in names})
    if settings["engine"] != "auto":
        raise ValueError(f"--engine: {algorithm} has no inner loop")
    encoder = _for_all_tasks(encoder)
    if algorithm == "r2d2":
        return R2D2(encoder)
    common = {name: settings[name] for name in ("metric", "temperature", "learn_temperature")}
    if algorithm == "protonet":
        return ProtoNet(encoder, normalize=settings["normalize"], **common)
    full = settings["full_context"]
    features = _width(encoder, sample) if full else None
    return MatchingNet(encoder, full_context=full, features=features, **common)


def _for_all_tasks(encoder: nn.Module) -> nn.Module:
    """With running statistics in its norms, so that a task does not depend on those beside it."""
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(module, name, type(child)(child.num_features))
    # Images of many tasks in one call: convolutions and pools are faster channels last.
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _width(encoder: nn.Module, sample: Tensor) -> int:
    """D of the features [1, D] of a sample."""
    with torch.no_grad(), in_evaluation(encoder):
        return int(encoder(sample).shape[1])
