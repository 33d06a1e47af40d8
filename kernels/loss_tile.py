"""Losses of a block of samples and their slopes, inside a kernel: no kernel itself.

Predictions x [BS, BN] of a block's samples, their outputs side by side, and targets y: labels [BS]
for CROSS_ENTROPY, else [BS, BN]. With p = softmax(x) or sigmoid(x), N outputs, e of the label,

    cross-entropy   log(sum exp x) - x_y         slope p - e        curvature p (a - sum(a p))
    MSE             mean (x - y)^2               2 (x - y) / N      2 a / N
    BCE             mean softplus(x) - y x       (p - y) / N        p (1 - p) a / N

where the curvature is the second derivative times a direction a.
"""

import triton
import triton.language as tl

__all__ = ["BCE", "CROSS_ENTROPY", "LOSSES", "MSE", "block_of", "curvatures", "losses", "slopes"]

LOSSES = {"cross_entropy": 0, "mse": 1, "bce": 2}
CROSS_ENTROPY = tl.constexpr(0)
MSE = tl.constexpr(1)
BCE = tl.constexpr(2)


@triton.jit
def block_of(
    x_ptr, y_ptr, weight_ptr, s, n, S, N, x_s, x_n, y_s, y_n, weight_s,
    LOSS: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Predictions, targets and weights of samples s, and which numbers are there.

    Weights are 0 where there is no sample; classes that are not there have logit -inf.
    """
    there = (s < S)[:, None] & (n < N)[None, :]
    x = tl.load(x_ptr + s[:, None] * x_s + n[None, :] * x_n, mask=there, other=0.0).to(ACC)
    if LOSS == CROSS_ENTROPY:
        x = tl.where((n < N)[None, :], x, float("-inf"))
        y = tl.load(y_ptr + s * y_s, mask=s < S, other=0)
    else:
        y = tl.load(y_ptr + s[:, None] * y_s + n[None, :] * y_n, mask=there, other=0.0).to(ACC)
    weight = (s < S).to(ACC)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + s * weight_s, mask=s < S, other=0.0).to(ACC)
    return x, y, weight, there


@triton.jit
def losses(x, y, n, there, N, LOSS: tl.constexpr):
    """[BS]. A label outside [0, N) makes NaN, and no address is made of it."""
    if LOSS == CROSS_ENTROPY:
        peak = tl.max(x, 1)
        total = tl.sum(tl.exp(x - peak[:, None]), 1)
        chosen = tl.sum(tl.where(n[None, :] == y[:, None], x, 0.0), 1)
        loss = unless_outside(tl.log(total) + (peak - chosen), y, N)
    elif LOSS == MSE:
        loss = tl.sum((x - y) * (x - y), 1) / N
    else:
        softplus = tl.maximum(x, 0.0) + log_1_plus(tl.exp(-tl.abs(x)))
        softplus = tl.where(x == x, softplus, x)  # a maximum forgets NaN
        loss = tl.sum(tl.where(there, softplus - y * x, 0.0), 1) / N
    return loss


@triton.jit
def slopes(x, y, n, N, LOSS: tl.constexpr):
    """[BS, BN]: the derivatives of the losses of samples."""
    if LOSS == CROSS_ENTROPY:
        p = softmax(x)
        slope = tl.where(n[None, :] == y[:, None], p - 1.0, p)
        slope = unless_outside(slope, y[:, None], N)
    elif LOSS == MSE:
        slope = (x - y) * 2.0 / N
    else:
        slope = (sigmoid(x) - y) / N
    return slope


@triton.jit
def curvatures(x, y, a, N, LOSS: tl.constexpr):
    """[BS, BN]: the derivatives of sum(a * slopes)."""
    if LOSS == CROSS_ENTROPY:
        p = softmax(x)
        curve = p * (a - tl.sum(a * p, 1)[:, None])
        curve = unless_outside(curve, y[:, None], N)
    elif LOSS == MSE:
        curve = a * 2.0 / N
    else:
        curve = sigmoid(x) * sigmoid(-x) * a / N
    return curve


@triton.jit
def unless_outside(value, label, N):
    return tl.where((label >= 0) & (label < N), value, float("nan"))


@triton.jit
def softmax(x):
    powers = tl.exp(x - tl.max(x, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def sigmoid(x):
    power = tl.exp(-tl.abs(x))
    return tl.where(x < 0, power, 1.0) / (1.0 + power)


@triton.jit
def log_1_plus(x):
    """log(1 + x) for 0 <= x <= 1, to the last bits where x is small: Kahan's correction."""
    sum_ = 1.0 + x
    rest = tl.where(sum_ == 1.0, 1.0, sum_ - 1.0)
    return tl.where(sum_ == 1.0, x, tl.log(sum_) * (x / rest))
