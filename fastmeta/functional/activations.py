"""Activations: each element by itself, so any shape will do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.words import kind_of

__all__ = ["gelu", "leaky_relu", "relu", "sigmoid", "sin", "softplus", "tanh"]


def relu(x: Tensor) -> Tensor:
    """max(x, 0) of each element.

    Args:
        x: [T, S, ...], floating.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        TypeError: x is not a floating tensor.

    Equivalent to::

        torch.relu(x)
    """
    _check(x)
    return torch.relu(x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where it is positive, else negative_slope * x.

    Args:
        x: [T, S, ...], floating.
        negative_slope: of what is below 0.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        TypeError: x is not a floating tensor.

    Equivalent to::

        F.leaky_relu(x, negative_slope)
    """
    _check(x)
    return F.leaky_relu(x, negative_slope)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent of each element.

    Args:
        x: [T, S, ...], floating.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        TypeError: x is not a floating tensor.

    Equivalent to::

        torch.tanh(x)
    """
    _check(x)
    return torch.tanh(x)


def sin(x: Tensor, frequency: float = 1.0) -> Tensor:
    """sin(frequency * x) of each element (Sitzmann et al. 2020, section 3).

    Args:
        x: [T, S, ...], floating.
        frequency: omega_0 of the paper.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        TypeError: x is not a floating tensor.

    Equivalent to::

        torch.sin(frequency * x)
    """
    _check(x)
    return torch.sin(frequency * x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) of each element.

    Args:
        x: [T, S, ...], floating.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        TypeError: x is not a floating tensor.

    Equivalent to::

        torch.sigmoid(x)
    """
    _check(x)
    return torch.sigmoid(x)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x * Phi(x) of each element (Hendrycks, Gimpel 2016).

    Args:
        x: [T, S, ...], floating.
        approximate: "none", or "tanh" for the paper's approximation of Phi.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        TypeError: x is not a floating tensor.
        ValueError: another `approximate`.

    Equivalent to::

        F.gelu(x, approximate=approximate)
    """
    _check(x)
    if approximate not in ("none", "tanh"):
        raise ValueError(f'approximate must be "none" or "tanh", not {approximate!r}')
    return F.gelu(x, approximate=approximate)


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta of each element, or x where beta * x exceeds `threshold`.

    Args:
        x: [T, S, ...], floating.
        beta: steepness.
        threshold: from where on the function is taken for linear.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        TypeError: x is not a floating tensor.

    Equivalent to::

        F.softplus(x, beta, threshold)
    """
    _check(x)
    return F.softplus(x, beta, threshold)


def _check(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else kind_of(x)
        raise TypeError(f"x must be a floating tensor, not {kind}")
