import pytest
import torch
from oracle import DOUBLE
from torch.func import functional_call

from fastmeta import functional as fmF
from fastmeta.models import mlp

T, S = 2, 4


def problem():
    module = mlp([2, 3, 2], "tanh").double()
    x, y = torch.randn(T, S, 2, dtype=DOUBLE), torch.randn(T, S, 2, dtype=DOUBLE)
    own = dict(module.named_parameters())
    theta = {n: p.detach() + torch.randn(T, *p.shape).double() for n, p in own.items()}
    vector = {n: torch.randn_like(p) for n, p in theta.items()}
    return module, theta, x, y, vector


def dense_product(module, theta, x, y, vector):
    """H v of one task from the whole Hessian."""
    names, shapes = list(theta), [p.shape for p in theta.values()]

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes])
        parameters = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return (functional_call(module, parameters, (x,)) - y).square().mean()

    flat = torch.cat([p.flatten() for p in theta.values()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    return hessian @ torch.cat([v.flatten() for v in vector.values()])


def test_each_task_has_its_own_hessian():
    module, theta, x, y, vector = problem()
    products = fmF.hessian_vector_product(module, theta, x, y, vector, "mse")
    for t in range(T):
        of_task = [{n: p[t] for n, p in tensors.items()} for tensors in (theta, vector)]
        one = (of_task[0], x[t], y[t], of_task[1])
        flat = torch.cat([p[t].flatten() for p in products.values()])
        torch.testing.assert_close(flat, dense_product(module, *one))


def test_shared_parameters_have_the_sum_of_the_hessians():
    module, theta, x, y, vector = problem()
    shared = {n: p[0] for n, p in theta.items()}
    direction = {n: v[0] for n, v in vector.items()}
    products = fmF.hessian_vector_product(module, shared, x, y, direction, "mse")
    flat = torch.cat([p.flatten() for p in products.values()])
    right = sum(dense_product(module, shared, x[t], y[t], direction) for t in range(T))
    torch.testing.assert_close(flat, right)


def test_a_block_of_the_hessian():
    module, theta, x, y, vector = problem()
    block = {n: v if n.startswith("2.") else torch.zeros_like(v) for n, v in vector.items()}
    whole = fmF.hessian_vector_product(module, theta, x, y, block, "mse")
    head = {n: v for n, v in vector.items() if n.startswith("2.")}
    alone = fmF.hessian_vector_product(module, theta, x, y, head, "mse")
    assert list(alone) == list(head)
    for name, product in alone.items():
        torch.testing.assert_close(product, whole[name])


def test_differentiable_itself():
    module, theta, x, y, vector = problem()

    def product(weight, v):
        parameters, direction = {**theta, "2.weight": weight}, {"2.weight": v}
        result = fmF.hessian_vector_product(module, parameters, x, y, direction, "bce")
        return result["2.weight"]

    inputs = (theta["2.weight"].requires_grad_(), vector["2.weight"].requires_grad_())
    assert torch.autograd.gradcheck(product, inputs)


def test_what_does_not_fit_is_refused():
    module, theta, x, y, vector = problem()
    with pytest.raises(ValueError, match="not a parameter"):
        fmF.hessian_vector_product(module, theta, x, y, {"nothing": x}, "mse")
    with pytest.raises(ValueError, match="must have the parameter's shape"):
        fmF.hessian_vector_product(module, theta, x, y, {"0.bias": x}, "mse")
    with pytest.raises(ValueError, match="names no parameter"):
        fmF.hessian_vector_product(module, theta, x, y, {}, "mse")


def test_predictions_and_targets_that_do_not_fit_are_refused():
    module, theta, x, y, vector = problem()
    with pytest.raises(ValueError, match="must have one shape"):
        fmF.hessian_vector_product(module, theta, x, y[..., 0], vector, "mse")
    with pytest.raises(TypeError, match="labels must be int64"):
        fmF.hessian_vector_product(module, theta, x, y[..., 0], vector, "cross_entropy")
    with pytest.raises(ValueError, match="labels outside"):
        labels = torch.full(y.shape[:2], 99)
        fmF.hessian_vector_product(module, theta, x, labels, vector, "cross_entropy")
    with pytest.raises(ValueError, match="loss must be one of"):
        fmF.hessian_vector_product(module, theta, x, y, vector, "huber")
