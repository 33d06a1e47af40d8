"""The inner loop as a function: shared or per-task parameters in, fast weights out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from fastmeta.functional.eager import runs_eagerly
from fastmeta.functional.losses import Loss, named
from fastmeta.words import kind_of

__all__ = ["inner_sgd"]


@runs_eagerly
def inner_sgd(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    support_x: Tensor,
    support_y: Tensor,
    *,
    lr: float | Mapping[str, Tensor],
    steps: int,
    loss: Loss,
    order: int = 2,
    support_weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """`steps` of gradient descent for each task on its support set, differentiable.

    theta_{k+1} = theta_k - lr * grad L(theta_k; support): Finn, Abbeel, Levine 2017, equation 1.

    Args:
        module: gives structure, buffers and mode; its own parameters are not used.
        parameters: every parameter by name, [T, *shape], or [*shape] shared by all tasks, whose
            gradient is then summed over them.
        support_x: [T, S, ...].
        support_y: int64 labels [T, S] or [T, S, P...] for "cross_entropy", of predictions [S, N] or
            [S, N, P...]; [T, S, O...] for "mse" and "bce".
        lr: one rate for all parameters, or tensors by the names of those that adapt, each
            [1 or steps, *s] with s broadcastable to the parameter's shape.
        steps: 0 or more.
        loss: "cross_entropy", "mse", "bce", or a callable (predictions [S, O], targets) -> scalar.
        order: 2 for the exact meta-gradient, 1 to take the inner gradients as constants.
        support_weight: [T, S]; 0 marks padding.

    Returns:
        Every parameter by name; those that adapt are [T, *shape], the others as given.

    Raises:
        ValueError, TypeError: inputs that do not fit each other or the module.
        RuntimeError: in the backward when it is asked to build a graph (create_graph=True).

    Equivalent to, for one task::

        for _ in range(steps):
            predictions = torch.func.functional_call(module, theta, (x,))
            g = torch.autograd.grad(loss(predictions, y), theta.values(), create_graph=True)
            theta = {name: p - lr * g_p for (name, p), g_p in zip(theta.items(), g)}
    """
    # The engines stand above this layer; only this one function reaches up to them.
    from fastmeta.inner_loop import InnerLoop, check_grad_mode, check_model, choose
    from fastmeta.tasks import TaskBatch

    check_grad_mode()
    if not isinstance(parameters, Mapping):
        raise TypeError(
            "parameters must be a mapping by name, such as dict(module.named_parameters()), not "
            f"{kind_of(parameters)}"
        )
    adapted = tuple(lr if isinstance(lr, Mapping) else parameters)
    loop = InnerLoop(module, named(loss, support_y), steps, order, adapted)
    tasks = TaskBatch.of_support(support_x, support_y, support_weight)
    found = check_model(loop, parameters, lr, tasks)
    as_read = found.loss if found.unfit is None else loop.loss
    loop = replace(loop, loss=as_read, unread=found.unread or found.unfit)
    engine = choose(loop, tasks, parameters, lr).engine
    return engine.adapt(loop, parameters, lr, tasks)
