import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.algorithms import plan
from fastmeta.inner_loop.prefix import split


@pytest.fixture(autouse=True)
def small_networks_are_cut_too(monkeypatch):
    monkeypatch.setattr(plan, "_LEAST_SAVED", 0)


def conv_net(norm):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def calls_of(layer):
    """The shapes that a convolution gets from now on; its `forward` stays its own."""
    calls = []
    run = layer._conv_forward
    layer._conv_forward = lambda x, *weights: calls.append(tuple(x.shape)) or run(x, *weights)
    return calls


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Dropout(0.0)])
def test_what_is_below_the_head_changes_no_number(norm):
    model, tasks = conv_net(norm), classification_tasks([2, 6, 6])
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    meta = fm.ANIL(model, "4", inner_steps=3, inner_lr=0.5)
    assert_exact(meta, tasks, [*model.parameters(), tasks.support_x, tasks.query_x])


def test_what_is_below_the_head_runs_once_a_batch():
    model, tasks = conv_net(nn.GroupNorm(2, 4)), classification_tasks([2, 6, 6])
    meta = fm.ANIL(model, "4", inner_steps=3, engine="layered")
    calls = calls_of(model[0])
    meta(tasks)  # looks at the module, which has a new attribute
    calls.clear()
    meta(tasks).loss.sum().backward()
    assert calls == [(15, 2, 6, 6), (12, 2, 6, 6)]
    calls.clear()
    meta.adapt(tasks.support_x, tasks.support_y)
    assert calls == [(15, 2, 6, 6)]


def test_the_reference_sees_the_whole_model():
    model, tasks = conv_net(nn.GroupNorm(2, 4)), classification_tasks([2, 6, 6])
    meta = fm.ANIL(model, "4", inner_steps=3)
    calls = calls_of(model[0])
    with fm.use_backend("reference"):
        meta(tasks)
    assert len(calls) > 12


def test_a_cut_keeps_names_and_mode():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 1)).eval()
    below, above = split(model, ("1.0.bias",))
    assert below.names == ("0.weight", "0.bias") and below.forward.flat
    assert "1.0.weight" in dict(above.named_parameters())
    assert below.forward.module[0] is model[0] and above[1] is model[2] and not above[1].training


def test_where_there_is_no_prefix():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    assert split(model, ("0.weight",)) is None
    assert split(nn.ModuleList([model]), ("0.2.weight",)) is None
    model[2].weight = model[1].weight = model[0].weight
    assert split(model, ("2.bias",)) is None
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model.register_forward_hook(lambda *_: None)
    assert split(model, ("1.weight",)) is None


def test_features_of_a_set_that_is_support_and_query_are_computed_once():
    model = conv_net(nn.GroupNorm(2, 4))
    tasks = classification_tasks([2, 6, 6])
    both = fm.TaskBatch.of_support(tasks.support_x, tasks.support_y)
    below, _ = split(model, ("4.weight",))
    seen = below.features(dict(model.named_parameters()), both)
    assert seen.query_x is seen.support_x and seen.support_x.shape == (3, 5, 64)
    torch.testing.assert_close(seen.support_x[1], below.forward.module(tasks.support_x[1]))


# ---- forwards that are written by hand --------------------------------------------------------


class Network(nn.Module):
    """Features below a head, of images that are normalised and get a channel of places."""

    def __init__(self, norm=None, skip=False, inplace=False):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4), nn.ReLU(inplace), nn.AvgPool2d(2)
        )
        self.head, self.skip = nn.Linear(16, 3), skip
        self.register_buffer("mean", torch.tensor([0.3, -0.2]).view(1, 2, 1, 1))
        self.register_buffer("places", torch.linspace(-1, 1, 36).view(1, 1, 6, 6))

    def forward(self, x):
        x = (x - self.mean) / (1 + self.mean.square())
        x = torch.cat([x, self.places.expand(x.shape[0], -1, -1, -1)], 1)
        h = self.features(x).flatten(1)
        out = self.head(h)
        return out + h.mean(1, keepdim=True) if self.skip else out


def prefixes(meta):
    return {plan.prefix is not None for plan in meta._plans.values()}


@pytest.mark.parametrize("options", [{}, {"norm": nn.GroupNorm(2, 4)}, {"skip": True},
                                     {"inplace": True}])  # fmt: skip
@pytest.mark.parametrize("order", [1, 2])
def test_what_is_below_the_head_of_a_forward_changes_no_number(options, order):
    model, tasks = Network(**options).double(), classification_tasks([2, 6, 6])
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    meta = fm.ANIL(model, "head", inner_steps=3, inner_lr=0.5, order=order)
    assert_exact(meta, tasks, [*model.parameters(), tasks.support_x, tasks.query_x])
    assert prefixes(meta) == {True, False}  # False: by the reference
    model.mean.mul_(2)
    assert_exact(meta, tasks)


def test_what_is_made_of_the_inputs_alone_is_left_to_pytorch():
    model, tasks = Network().double(), classification_tasks([2, 6, 6])
    tasks.query_x.requires_grad_()
    meta = fm.MAML(model, inner_steps=2, inner_lr=0.1)
    assert_exact(meta, tasks, [*model.parameters(), tasks.query_x])
    if fm.explain(meta, tasks).name == "resident":
        assert prefixes(meta) == {True, False}
        demanding = fm.MAML(model, inner_steps=2, inner_lr=0.1, engine="resident")
        assert_exact(demanding, tasks)


class Other(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2)
        self.same, self.told = nn.Identity(), forward

    def forward(self, x):
        return self.told(self, x)


WHOLE = {
    "the head reads what the body does": lambda m, x: m.head(m.body(x)) + m.body(x)[:, :2],
    "other samples": lambda m, x: m.head(m.body(x.view(-1, 2, 2).view(-1, 4)).view(len(x), -1)),
    "in place": lambda m, x: m.head(m.body(x).add_(1).relu_()),
    "types": lambda m, x: m.head(m.body(x) * (2 if isinstance(x, torch.Tensor) else 1)),
    "attributes": lambda m, x: m.head(m.body(x) * getattr(x, "factor", 2)),
    "identity": lambda m, x: m.head(m.body(x) * (2 if m.same(x) is x else 1)),
    "other sizes": lambda m, x: m.head(m.body(x)) / m.head.weight.size(0) / x.t().size(0),
    "two results": lambda m, x: m.head(torch.cat(m.body(x).chunk(2, 1)[::-1], 1)),
    "truths": lambda m, x: torch.where(m.body(x)[:, :2] > 0, m.head.bias, m.head.weight[:, 0]),
    "in place above": lambda m, x: m.head(F.relu(m.body(x), inplace=True)).tanh_(),
    "random": lambda m, x: m.head(F.dropout(m.body(x), 0.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_forwards_in_which_nothing_is_below_the_head_alone(name):
    model, tasks = Other(WHOLE[name]).double(), regression_tasks(inputs=4)
    meta = fm.MAML(model, loss="mse", inner_steps=2, adapt_parameters=["head.weight", "head.bias"])
    assert_exact(meta, tasks)


class InPlace(nn.Module):
    """A residual block as torchvision has it."""

    def __init__(self, kind=nn.ReLU):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.act, self.head = nn.BatchNorm2d(4), kind(inplace=True), nn.Linear(4, 3)

    def forward(self, x):
        h = self.act(self.first(x))
        out = self.norm(self.second(h))
        out += h
        return self.head(self.act(out).mean((2, 3)))


def test_blocks_that_work_in_place():
    meta = fm.ANIL(InPlace().double(), "head", inner_steps=2, inner_lr=0.5)
    assert_exact(meta, classification_tasks([2, 6, 6]))
    assert True in prefixes(meta)


def test_a_head_that_works_in_place_on_features():
    def told(m, x):
        h = m.body(x)
        return m.head(F.elu(h, inplace=True)) + h.mean(1, keepdim=True)

    model = Other(told).double()
    meta = fm.MAML(model, loss="mse", inner_steps=2, adapt_parameters=["head.weight"])
    assert_exact(meta, regression_tasks(inputs=4))


def test_a_number_of_rows_of_a_weight_above():
    model = Other(lambda m, x: m.head(m.body(x)) / m.head.weight.size(0)).double()
    meta = fm.MAML(model, loss="mse", inner_steps=2, adapt_parameters=["head.weight"])
    assert_exact(meta, regression_tasks(inputs=4))
    assert True in prefixes(meta)


@pytest.mark.parametrize("engine", ["auto", "layered", "vmap"])
def test_a_chain_whose_head_begins_in_place(engine):
    head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))
    model = nn.Sequential(nn.Linear(4, 4), head).double()
    meta = fm.ANIL(model, "1", loss="mse", inner_steps=2, engine=engine)
    assert_exact(meta, regression_tasks(inputs=4))


def test_embeddings_below_a_head():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.body, self.head = nn.Embedding(9, 4), nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.body(self.words(x).flatten(1)).tanh())

    x, y = torch.randint(9, (3, 6, 2)), torch.randint(3, (3, 6))
    meta = fm.ANIL(Words().double(), "head", inner_steps=2, inner_lr=0.5)
    assert_exact(meta, fm.TaskBatch(x, y, x.flip(1), y.flip(1)))
    assert True in prefixes(meta)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.code, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.code(x))


def test_names_that_copies_of_a_forward_could_not_have():
    meta = fm.ANIL(Named().double(), "head", loss="mse", inner_steps=2)
    assert_exact(meta, regression_tasks(inputs=4))


def test_tied_parameters():
    model = Other(lambda m, x: m.head(m.more(m.body(x)))).double()
    model.more = nn.Linear(4, 4).double()
    model.more.weight = model.body.weight
    meta = fm.MAML(model, loss="mse", inner_steps=2, adapt_parameters=["head.weight"])
    assert_exact(meta, regression_tasks(inputs=4))


@pytest.mark.parametrize("loss", ["mse", lambda p, y: (p - y).square().mean()])
def test_other_numbers_of_samples_than_at_first(loss):
    model = Other(lambda m, x: m.head(m.body(x).mean(0, keepdim=True)).expand(len(x), 2)).double()
    meta = fm.MAML(model, loss=loss, inner_steps=2, adapt_parameters=["head.weight"])
    assert_exact(meta, regression_tasks(s=1, q=1, inputs=4))
    assert_exact(meta, regression_tasks(s=5, q=4, inputs=4))


def test_buffers_that_are_replaced():
    model, tasks = Network().double(), classification_tasks([2, 6, 6])
    for meta in (fm.ANIL(model, "head", inner_steps=2), fm.MAML(model, inner_steps=2)):
        assert_exact(meta, tasks)
        model.mean = model.mean * 3
        assert_exact(meta, tasks)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        model.mean.add_(1)
        assert_exact(meta, tasks)


def test_a_parameter_that_adapts_and_that_nothing_reads():
    model, tasks = Other(lambda m, x: m.head(m.body(x))).double(), regression_tasks(inputs=4)
    names = ["head.weight", "unused.weight"]
    meta = fm.MAML(model, loss="mse", inner_steps=2, adapt_parameters=names)
    assert_exact(meta, tasks)
    assert prefixes(meta) == {False}


@pytest.mark.parametrize("shape", [(4, 2), (2, 2, 2)])
def test_a_prefix_that_makes_other_samples_is_none(shape):
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.body(x.reshape(-1, 4)).tanh().reshape(len(x), 8))

    meta = fm.ANIL(Split().double(), "head", loss="mse", inner_steps=2)
    tasks = regression_tasks(inputs=8)
    tasks = tasks.with_inputs(tasks.support_x.view(3, 5, *shape), tasks.query_x.view(3, 4, *shape))
    assert_exact(meta, tasks)


def test_small_networks_stay_whole_where_the_resident_engine_takes_them(monkeypatch):
    monkeypatch.undo()
    model, tasks = Other(lambda m, x: m.head(m.body(x))).double(), regression_tasks(inputs=4)
    model.body = nn.Linear(4, 4, bias=False).double()
    for saved in (1, 1e12):
        monkeypatch.setattr(plan, "_LEAST_SAVED", saved)
        meta = fm.MAML(model, loss="mse", inner_steps=2, adapt_parameters=["head.weight"])
        assert_exact(meta, tasks)
        whole = saved > 1 and fm.explain(meta, tasks).name == "resident"
        assert prefixes(meta) == ({False} if whole else {True, False})
