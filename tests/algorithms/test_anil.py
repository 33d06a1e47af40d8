import pytest
from oracle import assert_exact, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.models import mlp


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = mlp([2, 4, 3], "tanh"), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("by_name", [True, False])
def test_only_the_head_adapts_and_all_learn(by_name):
    model, tasks = TwoParts().double(), regression_tasks()
    meta = fm.ANIL(model, "head" if by_name else model.head, loss="mse", inner_steps=2)
    fast = meta.adapt(tasks.support_x, tasks.support_y).parameters
    adapted = {name for name, p in fast.items() if p.dim() > model.get_parameter(name).dim()}
    assert adapted == {"head.weight", "head.bias"}
    meta(tasks).loss.mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert_exact(meta, tasks)


@pytest.mark.parametrize("order", [1, 2])
def test_a_head_of_a_chain(order):
    model, tasks = mlp([2, 6, 5, 2], "tanh").double(), regression_tasks()
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    meta = fm.ANIL(model, "4", loss="mse", inner_steps=3, inner_lr=0.3, order=order)
    assert_exact(meta, tasks, [*meta.parameters(), tasks.support_x, tasks.query_x])


def test_a_head_that_is_not_there():
    model = TwoParts()
    for head in ("tail", "", nn.Linear(3, 2)):
        with pytest.raises(ValueError, match="not a submodule"):
            fm.ANIL(model, head)
    with pytest.raises(ValueError, match="no parameters that require grad"):
        fm.ANIL(model, "body.1")
    with pytest.raises(TypeError, match="head"):
        fm.ANIL(model, "head", adapt_parameters=["head.bias"])
