"""R2D2: ridge regression on embedded support, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.algorithms.positive import Positive
from fastmeta.algorithms.shared_encoder import SharedEncoder
from fastmeta.tasks import TaskBatch

__all__ = ["R2D2", "RidgeHead"]


@dataclass(frozen=True)
class RidgeHead:
    """A linear regressor for each task, calibrated into logits.

    Attributes:
        weight: [T, D, N].
        bias: [T, 1, N].
        scale, shift: [], alpha and beta.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    def __call__(self, query: Tensor) -> Tensor:
        """Logits [T, Q, N] of features [T, Q, D]."""
        return self.scale * (query @ self.weight + self.bias) + self.shift


class R2D2(SharedEncoder[RidgeHead]):
    """Ridge regression differentiable discriminator (Bertinetto et al. 2019, section 3.2).

    With X the support features with a 1 appended to each, Y the one-hot labels::

        W = argmin |X W - Y|^2 / S + lambda |W|^2
          = (X' X / S + lambda I)^-1 X' Y / S = X' (X X' / S + lambda I)^-1 Y / S
        predictions = alpha X_query W + beta

    The second form (Woodbury's identity), a system of size S, is solved where S is at most D + 1.
    Errors are averaged over the samples, as in the authors' code, so that one lambda serves any
    number of shots. lambda, alpha and beta are learned; ``requires_grad_(False)`` on one fixes it.
    A support weight w counts like w copies of the sample. For norms, padding and the number of
    classes see `SharedEncoder`.

    Args:
        encoder: any module that makes features [n, D] of samples [n, ...].
        ridge: where lambda starts, above 0. It is learned as its logarithm, `ridge.log`.
        scale: where alpha starts, `scale`. Beta, `shift`, starts at 0.

    Raises:
        ValueError, TypeError: an argument that is not as above.

    Equivalent to, for each task, where norms do not mix samples (in train() a batch norm sees those
    of all tasks together)::

        features = encoder(torch.cat([support_x, query_x]))
        x, query = F.pad(features, (0, 1), value=1.0).split([len(support_x), len(query_x)])
        y = F.one_hot(support_y).float()
        w = torch.linalg.solve(x.T @ x / len(x) + ridge * torch.eye(x.shape[1]), x.T @ y / len(x))
        predictions = scale * query @ w + shift
        loss = F.cross_entropy(predictions, query_y)
    """

    def __init__(self, encoder: nn.Module, *, ridge: float = 1.0, scale: float = 10.0) -> None:
        super().__init__(encoder)
        self.ridge = Positive("ridge", ridge, True, encoder)
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def _fit(self, features: TaskBatch, n_way: int) -> RidgeHead:
        x = F.pad(features.support_x, (0, 1), value=1.0)
        y = F.one_hot(features.support_y, n_way).to(x.dtype)
        solution = _ridge_regression(x, y, _shares(x, features.support_weight), self.ridge(x))
        weight, bias = solution.split([x.shape[-1] - 1, 1], 1)
        return RidgeHead(weight, bias, self.scale.to(x.dtype), self.shift.to(x.dtype))


def _shares(x: Tensor, weight: Tensor | None) -> Tensor:
    """[T, S, 1]: the weight of each sample in a mean over its task's."""
    if weight is None:
        return x.new_full((1, 1, 1), 1 / x.shape[1])
    return (weight / weight.sum(1, keepdim=True)).unsqueeze(-1)


def _ridge_regression(x: Tensor, y: Tensor, share: Tensor, ridge: Tensor) -> Tensor:
    """argmin over W [T, D, N] of sum_s share_s |x_s W - y_s|^2 + ridge |W|^2."""
    dual = x.shape[1] <= x.shape[2]
    product = share * x @ x.mT if dual else x.mT @ (share * x)
    system = product + ridge * torch.eye(product.shape[-1], dtype=x.dtype, device=x.device)
    if dual:
        return x.mT @ _solution(system, share * y)
    return _solution(system, x.mT @ (share * y))


def _solution(system: Tensor, right: Tensor) -> Tensor:
    # The ridge keeps the system regular; `solve` would wait for a GPU to be told so.
    return torch.linalg.solve_ex(system, right).result
