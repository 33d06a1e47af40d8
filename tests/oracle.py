"""Ways to know what is right: the reference backend and finite differences, in float64."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import fastmeta as fm

DOUBLE = torch.float64


def regression_tasks(t=3, s=5, q=4, inputs=2, outputs=2, **kwargs) -> fm.TaskBatch:
    def draw(n, width):
        return torch.randn(t, n, width, dtype=DOUBLE)

    return fm.TaskBatch(
        draw(s, inputs), draw(s, outputs), draw(q, inputs), draw(q, outputs), **kwargs
    )


def classification_tasks(shape, t=3, s=5, q=4, n_way=3) -> fm.TaskBatch:
    def x(n):
        return torch.randn(t, n, *shape, dtype=DOUBLE)

    def y(n):
        return torch.randint(n_way, (t, n))

    return fm.TaskBatch(x(s), y(s), x(q), y(q))


def outer_loss(meta: nn.Module, tasks: fm.TaskBatch) -> Tensor:
    """A scalar in which every task and every prediction has its own weight."""
    out = meta(tasks)
    per_task = torch.arange(1.0, len(tasks) + 1, dtype=out.loss.dtype, device=out.loss.device)
    return (out.loss * per_task).sum() + (0.1 * out.predictions).sin().sum()


def gradients(meta: nn.Module, tasks: fm.TaskBatch, inputs: Sequence[Tensor]) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            outer_loss(meta, tasks), list(inputs), allow_unused=True, materialize_grads=True
        )
    )


def relative_error(values: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest error of a tensor, relative to the norm of all."""
    scale = torch.stack([r.detach().norm() for r in right]).norm()
    errors = [(v.detach() - r.detach()).norm() for v, r in zip(values, right, strict=True)]
    return float(torch.stack(errors).max() / scale)


def float32_error_ratio(model: nn.Module, tasks: fm.TaskBatch) -> float:
    """The native kernels' error of the meta-gradient over that of plain PyTorch."""

    def of(model: nn.Module, dtype: torch.dtype, backend: str) -> list[Tensor]:
        meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
        with fm.use_backend(backend):
            found = gradients(meta, tasks.to(dtype=dtype), list(meta.parameters()))
        return [gradient.double() for gradient in found]

    right = of(copy.deepcopy(model).double(), DOUBLE, "reference")
    ours, plain = of(model, torch.float32, "cpu"), of(model, torch.float32, "reference")
    return relative_error(ours, right) / relative_error(plain, right)


def assert_exact(meta: nn.Module, tasks: fm.TaskBatch, inputs=None, tolerance=1e-11) -> None:
    """Loss and meta-gradient equal those of the reference backend."""
    inputs = [p for p in meta.parameters() if p.requires_grad] if inputs is None else inputs
    ours, loss = gradients(meta, tasks, inputs), meta(tasks).loss
    with fm.use_backend("reference"):
        right, right_loss = gradients(meta, tasks, inputs), meta(tasks).loss
    assert relative_error([loss], [right_loss]) < tolerance
    assert relative_error(ours, right) < tolerance


def assert_slope(
    function: Callable[[], Tensor], inputs: Sequence[Tensor], step=1e-5, tolerance=1e-7
) -> None:
    """The gradient of a scalar agrees with finite differences along a random direction."""
    grads = torch.autograd.grad(function(), list(inputs), allow_unused=True, materialize_grads=True)
    direction = [torch.randn_like(x) for x in inputs]

    def at(distance: float) -> float:
        with torch.no_grad():
            for x, d in zip(inputs, direction, strict=True):
                x += distance * d
            value = float(function())
            for x, d in zip(inputs, direction, strict=True):
                x -= distance * d
        return value

    # Fourth order, so that the step need not be so small that rounding shows.
    near = (at(step) - at(-step)) / (2 * step)
    far = (at(2 * step) - at(-2 * step)) / (4 * step)
    measured = (4 * near - far) / 3
    slope = float(sum((g * d).sum() for g, d in zip(grads, direction, strict=True)))
    assert abs(slope - measured) <= tolerance * max(1.0, abs(measured))
