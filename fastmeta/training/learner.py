"""What can be trained: anything that judges a batch of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fastmeta.algorithms import MAML, ProtoMAML
from fastmeta.algorithms.shared_encoder import SharedEncoder

MetaLearner = MAML | ProtoMAML | SharedEncoder[Any]


@contextmanager
def in_evaluation(meta: nn.Module) -> Iterator[None]:
    """Inside the block `meta` is in eval() mode: no dropout, norms by their running statistics."""
    training = meta.training
    meta.eval()
    try:
        yield
    finally:
        meta.train(training)
