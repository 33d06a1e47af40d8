"""Prototypical networks: a class is the mean of its embedded support."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmeta.algorithms.learner import in_evaluation
from fastmeta.algorithms.positive import Positive
from fastmeta.algorithms.shared_encoder import SharedEncoder
from fastmeta.functional.distances import check_metric, pairwise_distance
from fastmeta.functional.prototype_loss import loss_of_prototypes
from fastmeta.functional.prototypes import prototypes
from fastmeta.tasks import TaskBatch

__all__ = ["ProtoNet", "PrototypeHead"]


@dataclass(frozen=True)
class PrototypeHead:
    """Minus the distances to the prototypes of each task, over a temperature.

    Attributes:
        prototypes: [T, N, D].
        metric: of `fastmeta.functional.pairwise_distance`.
        temperature: [].
    """

    prototypes: Tensor
    metric: str
    temperature: Tensor

    def __call__(self, query: Tensor) -> Tensor:
        """Logits [T, Q, N] of features [T, Q, D]."""
        return -pairwise_distance(query, self.prototypes, self.metric) / self.temperature


class ProtoNet(SharedEncoder[PrototypeHead]):
    """Prototypical networks (Snell, Swersky, Zemel 2017, equations 1 and 2, algorithm 1).

    ``adapt(...).head.prototypes`` are the prototypes [T, N, D]. Support weights weigh the mean. For
    norms, padding and the number of classes see `SharedEncoder`.

    With `mean` and `normalize` it is SimpleShot (Wang, Chao, Weinberger, van der Maaten 2019,
    section 3): "CL2N" with both and the mean of the training classes' features, "L2N" with
    `normalize` alone; `simple_shot` sets them.

    Args:
        encoder: any module that makes features [n, D] of samples [n, ...].
        metric: "sqeuclidean" (the paper), "euclidean", "cosine" or "dot"; logits are minus the
            distance.
        temperature: what distances are divided by, above 0, or where it starts.
        learn_temperature: whether it is a parameter to learn.
        mean: [D], subtracted from all features; None: nothing is. It is a buffer.
        normalize: divide features by their Euclidean norm, after the mean is subtracted. A vector
            of zeros stays one.

    Raises:
        ValueError, TypeError: an argument that is not as above.

    Equivalent to, for each task, where norms do not mix samples (in train() a batch norm sees those
    of all tasks together)::

        features = encoder(torch.cat([support_x, query_x]))
        support, query = features.split([len(support_x), len(query_x)])
        c = torch.stack([support[support_y == n].mean(0) for n in range(n_way)])
        predictions = -torch.cdist(query, c).square() / temperature
        loss = F.cross_entropy(predictions, query_y)
    """

    mean: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        *,
        metric: str = "sqeuclidean",
        temperature: float = 1.0,
        learn_temperature: bool = False,
        mean: Tensor | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(encoder)
        check_metric(metric)
        if mean is not None and (not isinstance(mean, Tensor) or mean.dim() != 1):
            shape = list(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
            raise ValueError(f"mean must be a tensor [D], not {shape}")
        self.metric = metric
        self.normalize = normalize
        self.temperature = Positive("temperature", temperature, learn_temperature, encoder)
        self.register_buffer("mean", mean)

    def simple_shot(self, inputs: Iterable[Tensor] | None = None) -> None:
        """Compare features as SimpleShot does: "CL2N" with inputs, "L2N" without.

        Args:
            inputs: batches [n, ...] of all samples of the training classes; features, as in
                eval(), are centred on their mean.

        Raises:
            ValueError: no batches.
        """
        self.normalize = True
        self.mean = None if inputs is None else self._mean_feature(inputs)

    def extra_repr(self) -> str:
        return f"metric={self.metric}, normalize={self.normalize}"

    def _fit(self, features: TaskBatch, n_way: int) -> PrototypeHead:
        support, labels = features.support_x, features.support_y
        means = prototypes(support, labels, n_way, features.support_weight)
        return PrototypeHead(means, self.metric, self.temperature(support))

    def _judge(self, features: TaskBatch, n_way: int) -> tuple[Tensor, ...]:
        # On a GPU the accuracy is a pass of its own, made when somebody asks for it.
        return loss_of_prototypes(
            features.support_x, features.support_y, features.query_x, features.query_y, n_way,
            self.metric, self.temperature(features.query_x), features.support_weight,
            features.query_weight, features.query_x.device.type == "cpu", positive=True,
        )  # fmt: skip

    def _mean_feature(self, inputs: Iterable[Tensor]) -> Tensor:
        with torch.no_grad(), in_evaluation(self):
            features = [self._run(self.encoder, x) for x in inputs]
        if not features:
            raise ValueError("inputs must hold a batch of samples")
        count = sum(map(len, features))
        # Double: a sum of many numbers of one sign.
        total = torch.stack([part.double().sum(0) for part in features]).sum(0)
        return (total / count).to(features[0].dtype)

    def _encode(self, *sets: tuple[Tensor, Tensor | None]) -> list[Tensor]:
        return [self._centred(features) for features in super()._encode(*sets)]

    def _centred(self, features: Tensor) -> Tensor:
        if self.mean is not None:
            if self.mean.shape != features.shape[-1:]:
                raise ValueError(
                    f"mean is {list(self.mean.shape)}, the features {list(features.shape)}"
                )
            features = features - self.mean
        return _unit(features) if self.normalize else features


def _unit(features: Tensor) -> Tensor:
    """x / |x|; zeros stay zeros, with a finite gradient."""
    square = features.square().sum(-1, keepdim=True)
    return features * torch.where(square == 0, 1, square).rsqrt()
