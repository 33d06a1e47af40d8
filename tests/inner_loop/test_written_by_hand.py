"""Forwards in the style of well known repositories, in the native kernels."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.reading.chain import chain_of
from fastmeta.inner_loop.reading.stages import stages_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


def assert_native(model, tasks, loss="cross_entropy", rate=0.1):
    meta = fm.MAML(model, loss=loss, inner_steps=2, inner_lr=rate)
    choice = fm.explain(meta)
    assert choice.name == "resident", choice.passed_over["resident"]
    learned = [p for p in model.parameters() if p.requires_grad]
    assert_exact(meta, tasks, learned, tolerance=1e-10)
    assert "resident" in {plan.engine.__name__.split(".")[-1] for plan in meta._plans.values()}
    return meta


class Configured(nn.Module):
    """All parameters in a list, and a list that says what is done with them."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vars, self.vars_bn = nn.ParameterList(), nn.ParameterList()
        for name, sizes in config:
            if name in ("conv2d", "linear"):
                self.vars.append(nn.Parameter(0.3 * torch.randn(*sizes[:4])))
                self.vars.append(nn.Parameter(torch.zeros(sizes[0])))
            if name == "bn":
                self.vars.append(nn.Parameter(torch.ones(sizes)))
                self.vars.append(nn.Parameter(torch.zeros(sizes)))
                for start in (torch.zeros(sizes), torch.ones(sizes)):
                    self.vars_bn.append(nn.Parameter(start, requires_grad=False))

    def forward(self, x, own=None, bn_training=True):
        own = self.vars if own is None else own
        at = of_norm = 0
        for name, sizes in self.config:
            if name == "conv2d":
                x = F.conv2d(x, own[at], own[at + 1], stride=sizes[4], padding=sizes[5])
                at += 2
            elif name == "linear":
                x = F.linear(x, own[at], own[at + 1])
                at += 2
            elif name == "bn":
                mean, variance = self.vars_bn[of_norm], self.vars_bn[of_norm + 1]
                x = F.batch_norm(
                    x, mean, variance, weight=own[at], bias=own[at + 1], training=bn_training
                )
                at, of_norm = at + 2, of_norm + 2
            elif name == "relu":
                x = F.relu(x, inplace=sizes)
            elif name == "max_pool2d":
                x = F.max_pool2d(x, *sizes)
            else:
                x = x.view(x.size(0), -1)
        return x


CONFIG = [
    ("conv2d", [4, 1, 3, 3, 2, 0]), ("relu", True), ("bn", 4), ("conv2d", [4, 4, 2, 2, 1, 0]),
    ("relu", True), ("bn", 4), ("max_pool2d", (2, 2, 0)), ("flatten", ()), ("linear", [3, 4]),
]  # fmt: skip


def test_a_learner_of_a_list():
    model = Configured(CONFIG).double()
    tasks = classification_tasks((1, 7, 7), s=6)
    meta = assert_native(model, tasks)
    assert all(p.sum() in (0, 4) for p in model.vars_bn)  # as they were
    model.config[1] = ("relu", False)
    model.config = [entry for entry in model.config if entry[0] != "max_pool2d"][:-1]
    model.config.append(("linear", [3, 4]))
    with pytest.raises(ValueError, match="the module cannot take"):
        meta(tasks)
    model.config.insert(-1, ("max_pool2d", (2, 2, 0)))
    model.config[-3], model.config[-2] = model.config[-2], model.config[-3]
    assert_exact(meta, tasks, [*model.vars])


class SineLayer(nn.Module):
    def __init__(self, inputs, outputs, omega):
        super().__init__()
        self.omega_0, self.linear = omega, nn.Linear(inputs, outputs)

    def forward(self, x):
        return torch.sin(self.omega_0 * self.linear(x))


def test_a_siren_as_its_authors_wrote_it():
    model = nn.Sequential(SineLayer(2, 8, 3.0), SineLayer(8, 8, 2), nn.Linear(8, 2)).double()
    meta = assert_native(model, regression_tasks(), "mse", 0.01)
    model[0].omega_0 = 1.5
    assert_exact(meta, regression_tasks())


SIZES = {"weight": (2, 6), "bias": (2,), "gain": (6,), "shift": (6,)}


def written(names, forward):
    """A module with a linear layer and these parameters, whose forward is that."""

    def of_module(self, x):
        return forward(self, x)

    model = type("Written", (nn.Module,), {"forward": of_module})()
    model.first = nn.Linear(2, 6)
    for name in names.split():
        setattr(model, name, nn.Parameter(torch.randn(SIZES[name])))
    return model.double()


def two_sines(m, x):
    multiple = 3.0 * m.first(x)
    return torch.sin(multiple) + torch.sin(multiple)


FORWARDS = {
    "two sines of one multiple": ("weight", lambda m, x: F.linear(two_sines(m, x), m.weight)),
    "a multiple before a weight": ("weight", lambda m, x: F.linear(2 * m.first(x), m.weight)),
    "sines": (
        "weight bias", lambda m, x: F.linear((m.first(x) * 2).sin(), m.weight, m.bias)
    ),
    "sines of torch.mul": (
        "weight", lambda m, x: F.linear(torch.sin(torch.mul(3, m.first(x))), m.weight)
    ),
    "layer norm": (
        "weight bias gain shift", lambda m, x: F.linear(
            F.layer_norm(m.first(x), (6,), m.gain, m.shift), weight=m.weight, bias=m.bias
        )
    ),
    "group norm": (
        "weight gain shift",
        lambda m, x: F.linear(F.group_norm(m.first(x), 2, m.gain, m.shift), m.weight)
    ),
    "batch norm": (
        "weight gain shift", lambda m, x: F.linear(
            F.relu(F.batch_norm(m.first(x), None, None, m.gain, m.shift, True)), m.weight
        )
    ),
}  # fmt: skip


class Images(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(36, 3)
        self.norm = nn.BatchNorm2d(4)
        self.reshapes = before, after

    def forward(self, x):
        before, after = type(self).reshapes
        x = F.max_pool2d(F.relu(self.norm(self.conv(before(x)))), 2)
        return self.head(after(x))


RESHAPES = {
    "len": (lambda x: x, lambda x: x.reshape(len(x), -1)),
    "the same shape": (lambda x: x.view(-1, 1, 6, 6), lambda x: x.view(-1, 36)),
    "by size": (lambda x: x.view(x.size(0), 1, 6, 6), lambda x: x.view((x.size(0), 36))),
    "by shape": (lambda x: x.reshape([x.shape[0], 1, 6, 6]), lambda x: x.flatten(1)),
}


@pytest.mark.parametrize("sample", [(1, 6, 6), (36,), (6, 6)])
@pytest.mark.parametrize("name", RESHAPES)
def test_reshapes(name, sample):
    model = type("Reshaping", (Images,), {"reshapes": RESHAPES[name]})(*RESHAPES[name]).double()
    del model.reshapes
    if name == "len" and sample != (1, 6, 6):
        return
    assert_native(model, classification_tasks(sample, s=6))


@pytest.mark.parametrize("sample", [(1, 6, 6), (36,)])
def test_a_chain_that_flattens_by_number(sample):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(36, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x.view(-1, 36))))

    assert_native(Flat().double(), classification_tasks(sample, s=6))


def test_a_shape_that_mixes_samples_is_read_by_no_native_kernel():
    model = type("Mixing", (Images,), {"reshapes": (lambda x: x.view(-1, 1, 6, 6), None)})
    model.forward = lambda m, x: m.head(m.conv(x.view(-1, 1, 3, 6)).view(len(x), -1)[:, :36])
    model = model(None, None).double()
    del model.reshapes, model.norm
    meta = fm.MAML(model, inner_lr=0.1)
    assert_exact(meta, classification_tasks((36,), s=6))
    assert "resident" not in {p.engine.__name__.split(".")[-1] for p in meta._plans.values()}


def test_inputs_that_a_forward_lets_require_grad():
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x):
            x.requires_grad_(True)
            return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]

    model, tasks = Field().double(), regression_tasks(inputs=1, outputs=1)
    meta = fm.MAML(model, loss="mse", inner_steps=3, inner_lr=0.1)
    losses = []
    for t in range(len(tasks)):
        theta = dict(model.named_parameters())
        for _ in range(3):
            made = torch.func.functional_call(model, theta, (tasks.support_x[t],))
            loss = F.mse_loss(made, tasks.support_y[t])
            found = torch.autograd.grad(
                loss, [*theta.values()], create_graph=True, allow_unused=True
            )
            theta = {
                name: p if g is None else p - 0.1 * g
                for (name, p), g in zip(theta.items(), found, strict=True)
            }
        made = torch.func.functional_call(model, theta, (tasks.query_x[t],))
        losses.append(F.mse_loss(made, tasks.query_y[t]))
    torch.testing.assert_close(meta(tasks).loss, torch.stack(losses), rtol=1e-12, atol=0)


OTHERS = {
    "a sine beside its multiple": ("", lambda m, x: (2 * m.first(x)).sin() + 2 * m.first(x)),
    "a weight that is computed": ("weight", lambda m, x: F.linear(m.first(x), 2 * m.weight)),
    "a shared weight": (
        "weight", lambda m, x: F.linear(F.linear(m.first(x), m.weight) @ m.weight, m.weight)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARDS)
def test_functions_of_parameters(name):
    assert_native(written(*FORWARDS[name]), regression_tasks(), "mse")


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_layers(name):
    model = written(*OTHERS[name])
    meta = fm.MAML(model, loss="mse", inner_steps=2, inner_lr=0.01)
    assert isinstance(stages_of(model, (2,)), str)
    assert_exact(
        meta, regression_tasks(outputs=2 if "weight" in OTHERS[name][0] else 6), tolerance=1e-10
    )


@pytest.mark.parametrize("engine", ["auto", "layered", "vmap", "reference"])
@pytest.mark.parametrize("buffers", [True, False])
def test_norms_called_as_functions_leave_running_statistics_alone(engine, buffers):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.gain = nn.Linear(2, 3), nn.Parameter(torch.ones(3))
            self.shift = nn.Parameter(torch.zeros(3))
            for name, start in (("mean", torch.zeros(3)), ("variance", torch.ones(3))):
                if buffers:
                    self.register_buffer(name, start)
                else:
                    self.register_parameter(name, nn.Parameter(start, requires_grad=False))

        def forward(self, x):
            given = self.mean, self.variance, self.gain, self.shift
            return F.batch_norm(self.layer(x), *given, training=True)

    model, tasks = Normed().double(), classification_tasks([2])
    meta = fm.MAML(model, inner_steps=2, inner_lr=0.1, engine=engine)
    assert_exact(meta, tasks, [p for p in model.parameters() if p.requires_grad])
    assert model.mean.sum() == 0 and model.variance.sum() == 3


LEFT = {
    "groups": nn.Conv2d(4, 12, 3, groups=2),
    "a padding mode": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "padding": nn.AvgPool2d(2, padding=1, count_include_pad=False),
    "its divisor": nn.AvgPool2d(2, divisor_override=3),
}


@pytest.mark.parametrize("words", LEFT)
def test_explain_knows_what_no_samples_can_change(words):
    tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), LEFT[words], *tail)
    model(torch.zeros(1, 3, 8, 8))
    choice = fm.explain(fm.MAML(model))
    assert choice.name != "resident" and words in choice.passed_over["resident"]
    with pytest.raises(ValueError, match=words):
        fm.explain(fm.MAML(model, engine="resident"))


def test_a_bias_that_broadcasts():
    def forward(m, x):
        return F.linear(m.first(x), m.weight, m.bias)

    model = written("weight bias", forward)
    model.bias = nn.Parameter(torch.randn(1).double())
    chain = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    chain[2].bias = nn.Parameter(torch.randn(1).double())
    for each in (model, chain):
        meta = fm.MAML(each, loss="mse", inner_lr=0.05)
        assert "its layer says" in chain_of(each)
        assert_exact(meta, regression_tasks(s=6, q=6), tolerance=1e-10)


def test_layers_whose_weights_were_replaced():
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model[0].weight = nn.Parameter(torch.randn(7, 2).double())
    model[0].bias = nn.Parameter(torch.randn(7).double())
    model[2].weight = nn.Parameter(torch.randn(2, 7).double())
    meta = fm.MAML(model, loss="mse", inner_lr=0.05)
    assert "its layer says" in chain_of(model)
    assert_exact(meta, regression_tasks())
    images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    images[0].bias = nn.Parameter(torch.randn(1).double())
    meta = fm.MAML(images, inner_lr=0.05)
    assert fm.explain(meta).name != "resident"


class Hung(nn.Module):
    """What a forward reads hangs on a layer, a container, or lies in a list in a tuple."""

    def __init__(self, where):
        super().__init__()
        self.layer, self.where = nn.Linear(2, 2), where
        self.seq, self.parts = nn.Sequential(nn.Linear(2, 2)), nn.ModuleList([nn.Linear(2, 2)])
        owner = {"layer": self.layer, "seq": self.seq, "parts": self.parts}.get(where)
        if owner is not None:
            owner.scale = {"c": 2.0}
        self.nested = ([2.0],)

    def forward(self, x):
        x = self.parts[0](self.seq(self.layer(x)))
        if self.where == "nested":
            return torch.sin(self.nested[0][0] * x)
        return torch.sin(getattr(self, self.where).scale["c"] * x)

    def change(self):
        if self.where == "nested":
            self.nested[0][0] = 5.0
        else:
            getattr(self, self.where).scale.update(c=5.0)


@pytest.mark.parametrize("where", ["layer", "seq", "parts", "nested"])
def test_what_hangs_somewhere_may_change(where):
    model, tasks = Hung(where).double(), regression_tasks()
    meta = fm.MAML(model, loss="mse", inner_lr=0.05)
    assert_exact(meta, tasks)
    model.change()
    assert_exact(meta, tasks)
