"""Full context embeddings: features that know of the rest of the task."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["FullContext"]


class FullContext(nn.Module):
    """Embeddings of support and query samples in the context of the support set.

    Vinyals et al. 2016, section 2.1.2 and appendices A.1 and A.2, where g' and f' are the
    encoder's features. Support, by a bidirectional LSTM over the support set in its order::

        g(x_i, S) = forward_i + backward_i + g'(x_i)

    Query, by an LSTM that reads from the support K times::

        ĥ_k, c_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1})
        h_k = ĥ_k + f'(x)
        r_{k-1} = sum_i a_i g(x_i),  a = softmax_i(h_{k-1} . g(x_i))                  (5, 6)
        f(x, S) = h_K

    The paper does not say where the recursion starts: at h_0 = f'(x), c_0 = 0, as in its published
    re-implementations. A weight w counts in the reading like w copies of the sample, and samples
    of weight 0 are in neither LSTM.

    Args:
        features: D, the width of the encoder's features.
        steps: K.
    """

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.support_lstm = nn.LSTM(features, features, bidirectional=True, batch_first=True)
        # What acts on the state [h, r] in the paper acts on h as state and on r as input here.
        self.query_lstm = nn.LSTMCell(2 * features, features)

    def of_support(self, features: Tensor, weight: Tensor | None) -> Tensor:
        """g [T, S, D] of g' [T, S, D]."""
        ahead, back = self._read(features, weight).chunk(2, -1)
        return ahead + back + features

    def of_query(self, features: Tensor, support: Tensor, weight: Tensor | None) -> Tensor:
        """f [T, Q, D] of f' [T, Q, D], in the context of g [T, S, D]."""
        rows = features.flatten(0, 1)
        copies = None if weight is None else _log(weight).unsqueeze(1)
        h, c = features, torch.zeros_like(rows)
        for _ in range(self.steps):
            match = h @ support.mT
            if copies is not None:
                match = match + copies
            reading = match.softmax(-1) @ support
            inputs = torch.cat((features, reading), -1).flatten(0, 1)
            state, c = self.query_lstm(inputs, (h.flatten(0, 1), c))
            h = (state + rows).view_as(features)
        return h

    def _read(self, features: Tensor, weight: Tensor | None) -> Tensor:
        """Both directions of the LSTM over the real samples, [T, S, 2 D]."""
        if weight is None:
            return self.support_lstm(features)[0]
        real = weight > 0
        order = real.long().argsort(dim=1, descending=True, stable=True).unsqueeze(-1)
        packed = pack_padded_sequence(
            features.take_along_dim(order, 1), real.sum(1).cpu(),
            batch_first=True, enforce_sorted=False,
        )  # fmt: skip
        states, _ = pad_packed_sequence(
            self.support_lstm(packed)[0], batch_first=True, total_length=features.shape[1]
        )
        return states.take_along_dim(order.argsort(1), 1)


def _log(weight: Tensor) -> Tensor:
    """The logarithm, with gradient 0 where it is minus infinity."""
    padding = weight == 0
    return weight.masked_fill(padding, 1).log().masked_fill(padding, -math.inf)
