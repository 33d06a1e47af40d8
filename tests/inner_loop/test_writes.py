"""A forward that writes to its parameters is refused, and the module is as it was."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm


class Cosine(nn.Module):
    """The linear layer of Chen et al. 2019 ("distLinear"), with a change of its weight."""

    def __init__(self, change):
        super().__init__()
        self.a, self.out, self.change = nn.Linear(6, 5), nn.Linear(5, 3), change

    def forward(self, x):
        self.change(self.out)
        return self.out(F.normalize(torch.relu(self.a(x)), dim=1))


def set_data(layer):
    layer.weight.data = F.normalize(layer.weight.data, dim=1)


def copy(layer):
    with torch.no_grad():
        layer.weight.copy_(F.normalize(layer.weight, dim=1))


def replace(layer):
    layer.weight = nn.Parameter(F.normalize(layer.weight, dim=1))


CHANGES = {
    "data is set": set_data,
    "data in place": lambda layer: layer.weight.data.div_(2),
    "data of a row": lambda layer: layer.weight[0].data.zero_(),
    "an item of data": lambda layer: layer.weight.data.__setitem__(0, 1),
    "to what it is": lambda layer: layer.weight.data.clamp_(-9, 9),
    "without gradients": copy,
    "detached": lambda layer: layer.weight.detach().mul_(2),
    "another parameter": replace,
}


@pytest.mark.parametrize("engine", ["auto", "vmap", "layered", "reference"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_forward_that_changes_its_parameters(change, frozen, engine):
    model = Cosine(CHANGES[change]).double()
    model.out.weight.requires_grad_(not frozen)
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    tasks = classification_tasks([6])
    for call in (fm.MAML(model, engine=engine), fm.MetaSGD(model, engine=engine)):
        with pytest.raises(ValueError, match=r"changes its parameters \(out.weight\), .* F.linear"):
            call(tasks)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (p, values) in before.items():
        assert after[name] is p
        torch.testing.assert_close(p.detach(), values, rtol=0, atol=0)


def test_the_other_learners():
    model, tasks = Cosine(set_data).double(), classification_tasks([6], s=6)
    y = torch.arange(6).remainder(3).expand(len(tasks), 6)
    tasks = fm.TaskBatch(tasks.support_x, y, tasks.query_x, tasks.query_y)
    before = model.out.weight.detach().clone()
    with pytest.raises(ValueError, match="changes its parameters"):
        fm.Reptile(model)(tasks)
    with pytest.raises(ValueError, match=r"changes its parameters \(encoder.out.weight\)"):
        fm.ProtoMAML(model)(tasks)
    with pytest.raises(ValueError, match="changes its parameters"):
        fm.functional.inner_sgd(
            model, dict(model.named_parameters()), tasks.support_x, tasks.support_y,
            lr=0.1, steps=1, loss="cross_entropy",
        )  # fmt: skip
    assert torch.equal(model.out.weight, before)


def read(layer):
    assert layer.weight.data.clone().zero_().norm() == 0


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_data_may_be_read(engine):
    meta = fm.MAML(Cosine(read).double(), engine=engine)
    assert_exact(meta, classification_tasks([6]))


class WayOut(Cosine):
    def forward(self, x):
        h = F.normalize(torch.relu(self.a(x)), dim=1)
        return F.linear(h, F.normalize(self.out.weight, dim=1))


def test_the_way_out():
    assert_exact(fm.MAML(WayOut(None).double(), inner_lr=0.1), classification_tasks([6]))
