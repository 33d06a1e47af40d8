"""Where a function's slope is infinite: what does not move there has no derivative that is NaN."""

import pytest
import torch
from oracle import DOUBLE, assert_exact, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Model(nn.Module):
    def __init__(self, form):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 1)).double()
        self.register_buffer("ends", torch.tensor([0.0, 2.0], dtype=DOUBLE))
        self.form = form

    def forward(self, x):
        return self.form(self, x)


def hidden(m, x):
    return torch.relu(m.net[:2](x))


def slope_of_a_power(m, x):
    x = x.detach().requires_grad_()
    u = torch.relu(x) ** 1.5 * m.net(x)
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


FORMS = {
    "length of a sample": lambda m, x: m.net(x) * x.square().sum(1, keepdim=True).sqrt(),
    "buffer": lambda m, x: m.net(x) * m.ends.sqrt().sum(),
    "detached": lambda m, x: m.net(x) * hidden(m, x).detach().sqrt()[:, :1],
    "power": lambda m, x: m.net(x) * torch.relu(x[:, :1]) ** 0.3,
    "slope of a power": slope_of_a_power,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, 2])
def test_what_depends_on_no_parameter(form, order):
    model = Model(FORMS[form])
    outputs = model(torch.zeros(2, 2, dtype=DOUBLE)).shape[1]
    tasks = regression_tasks(3, 5, 4, 2, outputs)
    tasks.support_x[0, 0] = tasks.query_x[1, 2] = 0
    meta = fm.MAML(
        model, loss="mse", inner_lr=0.05, inner_steps=2, order=order, engine="resident"
    )
    meta.forward_backward(tasks)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert_exact(meta, tasks)
