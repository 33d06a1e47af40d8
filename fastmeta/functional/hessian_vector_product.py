"""Curvature of a task's loss along a direction, without the Hessian."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastmeta.functional.eager import runs_eagerly
from fastmeta.functional.forward import task_forward
from fastmeta.functional.losses import Loss, checked_loss
from fastmeta.functional.transforms import nobody_transforms

__all__ = ["hessian_vector_product"]


@runs_eagerly
def hessian_vector_product(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    vector: Mapping[str, Tensor],
    loss: Loss,
) -> dict[str, Tensor]:
    """H v, with H the Hessian of each task's loss in the parameters that `vector` names.

    By double backpropagation (Pearlmutter 1994 gives the forward form). Differentiable in turn
    where gradients are enabled.

    Args:
        module: gives the structure; its own parameters are not used.
        parameters: every parameter by name, [T, *shape], or [*shape] shared by all tasks. Of a
            shared one the Hessian is that of the sum of the tasks' losses.
        x: [T, S, ...].
        y: int64 labels [T, S] or [T, S, P...] for "cross_entropy", of predictions [S, N] or
            [S, N, P...]; [T, S, O...] for "mse" and "bce".
        vector: by name, shaped like `parameters[name]`.
        loss: "cross_entropy", "mse", "bce", or a callable (predictions [S, O], targets) -> scalar.

    Returns:
        By the names of `vector`, shaped like it.

    Raises:
        ValueError: a name that is not a parameter, a vector of another shape, or predictions and
            targets that do not fit the loss.
        TypeError: labels that are not int64.

    Equivalent to, for one task::

        g = torch.autograd.grad(f(theta), theta, create_graph=True)
        torch.autograd.grad(g, theta, grad_outputs=v)
    """
    _check(parameters, vector)
    if not nobody_transforms():
        return _under_transforms(module, parameters, x, y, vector, loss)
    build_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = {name: _differentiable(parameters[name]) for name in vector}
        predictions = task_forward(module, {**parameters, **leaves}, x)
        total = checked_loss(loss, predictions, y).sum()
        gradients = torch.autograd.grad(
            total, list(leaves.values()), create_graph=True, materialize_grads=True
        )
        products = torch.autograd.grad(
            gradients,
            list(leaves.values()),
            grad_outputs=list(vector.values()),
            create_graph=build_graph,
            materialize_grads=True,
        )
    return dict(zip(vector, products, strict=True))


def _under_transforms(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    vector: Mapping[str, Tensor],
    loss: Loss,
) -> dict[str, Tensor]:
    """The same by torch.func, whose transforms autograd.grad would not see through."""

    def total(leaves: dict[str, Tensor]) -> Tensor:
        predictions = task_forward(module, {**parameters, **leaves}, x)
        return checked_loss(loss, predictions, y).sum()

    def along_vector(leaves: dict[str, Tensor]) -> Tensor:
        gradients = torch.func.grad(total)(leaves)
        return torch.stack([(gradients[name] * vector[name]).sum() for name in vector]).sum()

    return torch.func.grad(along_vector)({name: parameters[name] for name in vector})


def _differentiable(parameter: Tensor) -> Tensor:
    return parameter if parameter.requires_grad else parameter.detach().requires_grad_()


def _check(parameters: Mapping[str, Tensor], vector: Mapping[str, Tensor]) -> None:
    if not vector:
        raise ValueError("vector names no parameter")
    for name, direction in vector.items():
        if name not in parameters:
            raise ValueError(f"vector names {name!r}, which is not a parameter: {list(parameters)}")
        if direction.shape != parameters[name].shape:
            raise ValueError(
                f"vector[{name!r}] must have the parameter's shape "
                f"{list(parameters[name].shape)}, not {list(direction.shape)}"
            )
