from contextlib import nullcontext

import pytest
import torch
from oracle import DOUBLE, relative_error
from torch.func import functional_call

import fastmeta as fm
from fastmeta.functional import inner_sgd
from fastmeta.models import mlp

T, S = 3, 5


def problem():
    module = mlp([2, 4, 2], "tanh").double()
    parameters = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    x, y = torch.randn(T, S, 2, dtype=DOUBLE), torch.randn(T, S, 2, dtype=DOUBLE)
    return module, parameters, x, y


def plain(module, parameters, x, y, lr, steps):
    for _ in range(steps):
        loss = (functional_call(module, parameters, (x,)) - y).square().mean()
        g = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        parameters = {n: p - lr * d for (n, p), d in zip(parameters.items(), g, strict=True)}
    return parameters


def test_equals_plain_descent_for_each_task():
    module, parameters, x, y = problem()
    fast = inner_sgd(module, parameters, x, y, lr=0.3, steps=3, loss="mse")
    right = [plain(module, parameters, x[t], y[t], 0.3, 3) for t in range(T)]
    for name, weights in fast.items():
        torch.testing.assert_close(weights, torch.stack([task[name] for task in right]))
    inputs = list(parameters.values())
    ours = torch.autograd.grad(sum(w.sin().sum() for w in fast.values()), inputs)
    theirs = torch.autograd.grad(
        sum(w.sin().sum() for task in right for w in task.values()), inputs
    )
    assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("backend", [nullcontext(), fm.use_backend("reference")])
def test_per_task_parameters_keep_their_own_gradient(backend):
    module, parameters, x, y = problem()
    own = {n: p.detach().repeat(T, *[1] * (p.dim() - 1)) for n, p in parameters.items()}
    own = {n: p.view(T, *parameters[n].shape).requires_grad_() for n, p in own.items()}
    with backend:
        shared = inner_sgd(module, parameters, x, y, lr=0.3, steps=2, loss="mse")
        fast = inner_sgd(module, own, x, y, lr=0.3, steps=2, loss="mse")
    summed = torch.autograd.grad(
        sum(w.sin().sum() for w in shared.values()), list(parameters.values())
    )
    each = torch.autograd.grad(sum(w.sin().sum() for w in fast.values()), list(own.values()))
    assert relative_error([g.sum(0) for g in each], summed) < 1e-12


def test_rates_by_name_choose_what_adapts():
    module, parameters, x, y = problem()
    rates = {"2.weight": torch.full((2, 1, 4), 0.1, dtype=DOUBLE, requires_grad=True)}
    fast = inner_sgd(module, parameters, x, y, lr=rates, steps=2, loss="mse")
    assert fast["0.weight"] is parameters["0.weight"]
    assert fast["2.weight"].shape == (T, 2, 4)
    (of_rate,) = torch.autograd.grad(fast["2.weight"].sum(), rates["2.weight"])
    assert of_rate.shape == (2, 1, 4) and (of_rate != 0).all()


@pytest.mark.parametrize("longer", range(4))
def test_rates_that_begin_at_the_same_place_may_still_differ(longer):
    module, parameters, x, y = problem()
    own = torch.tensor([0.1, 0.3], dtype=DOUBLE)
    rates = {name: own if p == longer else own[:1] for p, name in enumerate(parameters)}

    def gradients():
        fast = inner_sgd(module, parameters, x, y, lr=rates, steps=2, loss="mse")
        loss = sum((p**2).sum() for p in fast.values())
        return torch.autograd.grad(loss, list(parameters.values()))

    with fm.use_backend("reference"):
        expected = gradients()
    for gradient, other in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)


def test_no_step_gives_the_parameters_to_every_task():
    module, parameters, x, y = problem()
    fast = inner_sgd(module, parameters, x, y, lr=0.3, steps=0, loss="mse")
    assert torch.equal(fast["0.bias"], parameters["0.bias"].expand(T, -1))


def test_weights_are_counts():
    module, parameters, x, y = problem()
    weight = torch.tensor([[1.0, 0, 1, 0, 1]] * T, dtype=DOUBLE)
    keep = [0, 2, 4]
    few = inner_sgd(module, parameters, x[:, keep], y[:, keep], lr=0.3, steps=2, loss="mse")
    x = torch.where(weight.unsqueeze(-1) > 0, x, float("nan"))
    fast = inner_sgd(
        module, parameters, x, y, lr=0.3, steps=2, loss="mse", support_weight=weight
    )
    assert relative_error(list(fast.values()), list(few.values())) < 1e-12


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"lr": -1.0}, ValueError, "not negative"),
        ({"lr": True}, TypeError, "number"),
        ({"lr": {"0.weight": torch.ones(3, 4, 2, dtype=DOUBLE)}}, ValueError, r"\[1 or 2, "),
        ({"lr": {"0.weight": torch.ones(1, 4, 2)}}, TypeError, "float32"),
        ({"lr": {"nothing": torch.ones(1, dtype=DOUBLE)}}, ValueError, "no parameters"),
        ({"steps": -1}, ValueError, "at least 0"),
        ({"steps": 1.5}, ValueError, "whole number"),
        ({"order": 3}, ValueError, 'use_backend\\("reference"\\)'),
        ({"loss": "hinge"}, ValueError, "hinge"),
        ({"loss": 3}, TypeError, "callable"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, said):
    module, parameters, x, y = problem()
    with pytest.raises(error, match=said):
        inner_sgd(module, parameters, x, y, **{"lr": 0.1, "steps": 2, "loss": "mse", **change})


def test_parameters_must_be_the_module_s():
    module, parameters, x, y = problem()
    with pytest.raises(ValueError, match="but the module's are"):
        some = {"0.bias": parameters["0.bias"]}
        inner_sgd(module, some, x, y, lr=0.1, steps=1, loss="mse")
    parameters["0.bias"] = torch.zeros(7, 4, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"'0.bias' must be \[4\] or \[3, 4\], not \[7, 4\]"):
        inner_sgd(module, parameters, x, y, lr=0.1, steps=1, loss="mse")
