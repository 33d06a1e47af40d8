"""Matching networks: a label is a mean of the support's labels, by attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.algorithms.full_context import FullContext
from fastmeta.algorithms.positive import Positive
from fastmeta.algorithms.shared_encoder import SharedEncoder
from fastmeta.functional.checks import count_of
from fastmeta.functional.distances import check_metric, pairwise_distance
from fastmeta.tasks import TaskBatch

__all__ = ["AttentionHead", "MatchingNet"]


@dataclass(frozen=True)
class AttentionHead:
    """Attention of queries over the support samples of each task.

    Attributes:
        support: [T, S, D] embeddings g(x_i).
        labels: [T, S].
        weight: [T, S] or None.
        n_way: N.
        metric: of `fastmeta.functional.pairwise_distance`.
        temperature: [].
        context: embeds queries in the context of the support, or None.
    """

    support: Tensor
    labels: Tensor
    weight: Tensor | None
    n_way: int
    metric: str
    temperature: Tensor
    context: FullContext | None

    def __call__(self, query: Tensor) -> Tensor:
        """Log-probabilities [T, Q, N] of features [T, Q, D]."""
        if self.context is not None:
            query = self.context.of_query(query, self.support, self.weight)
        scores = -pairwise_distance(query, self.support, self.metric) / self.temperature
        return _class_scores(scores, self.labels, self.weight, self.n_way).log_softmax(-1)


class MatchingNet(SharedEncoder[AttentionHead]):
    """Matching networks (Vinyals et al. 2016, equations 1 and 2).

    P(y | x) = sum_i a(x, x_i) y_i, with a(x, x_i) the softmax over the support of
    c(f(x), g(x_i)) / temperature, where c is minus the distance (for "cosine" the cosine itself,
    as the softmax does not see constants). Predictions are log-probabilities. A support weight w
    counts like w copies of the sample. For norms, padding and the number of classes see
    `SharedEncoder`.

    Args:
        encoder: any module that makes features [n, D] of samples [n, ...].
        metric: "cosine" (the paper), "sqeuclidean", "euclidean" or "dot".
        temperature: above 0; 1 is the paper, where cosines leave even a sure attention over few
            samples soft. Others train with 0.01.
        learn_temperature: whether it is a parameter to learn.
        full_context: embed samples in the context of the support set, see `FullContext`; it
            depends on the order of the support.
        features: D, needed for `full_context`.
        processing_steps: K of `full_context`.

    Raises:
        ValueError, TypeError: an argument that is not as above.

    Equivalent to, for each task, where norms do not mix samples (in train() a batch norm sees those
    of all tasks together)::

        features = encoder(torch.cat([support_x, query_x]))
        support, query = features.split([len(support_x), len(query_x)])
        attention = (F.normalize(query) @ F.normalize(support).T / temperature).softmax(1)
        predictions = (attention @ F.one_hot(support_y).float()).log()
        loss = F.nll_loss(predictions, query_y)
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        metric: str = "cosine",
        temperature: float = 1.0,
        learn_temperature: bool = False,
        full_context: bool = False,
        features: int | None = None,
        processing_steps: int = 5,
    ) -> None:
        super().__init__(encoder)
        check_metric(metric)
        self.metric = metric
        self.temperature = Positive("temperature", temperature, learn_temperature, encoder)
        self.context: FullContext | None = None
        if full_context:
            if features is None:
                raise ValueError("full_context needs features, the width of the encoder's output")
            steps = count_of("processing_steps", processing_steps)
            self.context = FullContext(count_of("features", features), steps)

    def extra_repr(self) -> str:
        return f"metric={self.metric}"

    def _fit(self, features: TaskBatch, n_way: int) -> AttentionHead:
        support, weight = features.support_x, features.support_weight
        if self.context is not None:
            support = self.context.of_support(support, weight)
        return AttentionHead(
            support, features.support_y, weight, n_way,
            self.metric, self.temperature(support), self.context,
        )  # fmt: skip


def _class_scores(scores: Tensor, labels: Tensor, weight: Tensor | None, n_way: int) -> Tensor:
    """[T, Q, N]: the logarithm of the sum of weight * exp(score) over a class's samples."""
    labels = labels.unsqueeze(1).expand_as(scores)
    member = F.one_hot(labels[:, 0], n_way).to(scores.dtype)  # [T, S, N]
    if weight is not None:
        member = member * weight.unsqueeze(-1)
        scores = scores.masked_fill(weight.unsqueeze(1) == 0, -math.inf)
    # Each class has a scale of its own, or the sum of one that is far from the query would be 0.
    lowest = scores.new_full((*scores.shape[:2], n_way), -math.inf)
    scale = lowest.scatter_reduce(2, labels, scores.detach(), "amax")
    return (torch.exp(scores - scale.gather(2, labels)) @ member).log() + scale
