"""Weights that are made of parameters, scales of channels, and layers that run again."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, assert_slope, classification_tasks, outer_loss
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop import InnerLoop
from fastmeta.inner_loop import kept as kept_graphs
from fastmeta.inner_loop.engines import stepwise
from fastmeta.inner_loop.reading.made import Made, made_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

SAMPLE = (2, 6, 6)


class Network(nn.Module):
    """Two convolutions, between them what is told of features [S, 4, 6, 6], and a linear layer."""

    def __init__(self, told, **parts):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.told, self.last, self.head = told, nn.Conv2d(4, 5, 3), nn.Linear(5, 3)
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x):
        return self.head(self.features(x))

    def features(self, x):
        h = self.told(self, self.norm(self.first(x)))
        return torch.tanh(self.last(h)).mean((2, 3))


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


def film(m, h):
    """FiLM (Perez et al. 2018) of a context, as CAVIA has it (Zintgraf et al. 2019)."""
    gamma, beta = m.film(m.context).chunk(2)
    return h * (1 + gamma[:, None, None]) + beta.view(1, -1, 1, 1)


def low_rank(m, h):
    w = m.inner.weight + (m.b @ m.a).view_as(m.inner.weight)
    return F.conv2d(h, w, m.inner.bias, padding=w.shape[-1] // 2)


def generated(m, h):
    return F.conv2d(h, m.make(m.context).view(4, 4, 1, 1))


def again(m, h):
    for _ in range(3):
        h = h + m.inner_norm(torch.tanh(m.inner(h)))
    return h


def half_again(m, h):
    return F.conv2d(m.inner(h), m.inner.weight, None, padding=1)


def gated(m, h):
    return h + m.gate * torch.tanh(m.inner(h))


def by_buffers(m, h):
    return (m.middle - h) / m.width * m.mask.view(1, 4, 1, 1) - m.middle


def scaled_and_beside(m, h):
    h = m.beside(h)
    return h * m.scale.view(1, 4, 1, 1) + torch.tanh(h)


def scaled_by_one(m, h):
    return m.scale[:, None, None] * h / m.scale.exp().view(1, 4, 1, 1) - m.shift


def inner():
    return nn.Conv2d(4, 4, 3, padding=1)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape) * 0.5)


NETWORKS = {
    "standardised": lambda: Network(lambda m, h: m.inner(h), inner=Standardised(4, 4, 3)),
    "weight norm": lambda: Network(
        lambda m, h: m.inner(h), inner=parametrizations.weight_norm(inner())
    ),
    "film": lambda: Network(film, film=nn.Linear(5, 8), context=parameter(5)),
    "low rank": lambda: Network(low_rank, inner=inner(), a=parameter(2, 36), b=parameter(4, 2)),
    "generated": lambda: Network(generated, make=nn.Linear(5, 16), context=parameter(5)),
    "again": lambda: Network(again, inner=inner(), inner_norm=nn.GroupNorm(2, 4)),
    "half again": lambda: Network(half_again, inner=inner()),
    "gated": lambda: Network(gated, inner=inner(), gate=nn.Parameter(torch.zeros(()))),
    "by buffers": lambda: Network(
        by_buffers, middle=torch.rand(4, 1, 1), width=torch.tensor(1.5), mask=torch.rand(4)
    ),
    "scaled and beside": lambda: Network(
        scaled_and_beside, beside=nn.GroupNorm(2, 4), scale=parameter(4)
    ),
    "scaled by one": lambda: Network(scaled_by_one, scale=parameter(4), shift=parameter(1)),
    "slopes": lambda: Network(lambda m, h: m.slopes(h), slopes=nn.PReLU(4)),
    "one slope, twice": lambda: Network(lambda m, h: h - m.slope(m.slope(h) - 1), slope=nn.PReLU()),
}  # fmt: skip


def meta_of(model, **options):
    return fm.MAML(model.double(), **{"inner_lr": 0.3, "inner_steps": 2, **options})


def assert_stepwise(model, tasks=None, **options):
    meta = meta_of(model, **options)
    tasks = tasks or classification_tasks(SAMPLE, t=3)
    choice = fm.explain(meta, tasks)
    assert choice.name == "stepwise", choice
    for x in (tasks.support_x, tasks.query_x):
        x.requires_grad_()
    inputs = [p for p in meta.parameters() if p.requires_grad]
    assert_exact(meta, tasks, [*inputs, tasks.support_x, tasks.query_x], tolerance=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_exact(name):
    torch.manual_seed(0)
    assert_stepwise(NETWORKS[name]())


@pytest.mark.parametrize("name", [n for n in NETWORKS if "slope" not in n])  # which have kinks
def test_the_meta_gradient_is_that_of_finite_differences(name):
    torch.manual_seed(1)
    meta, tasks = meta_of(NETWORKS[name](), engine="stepwise"), classification_tasks(SAMPLE)
    assert_slope(lambda: outer_loss(meta, tasks), list(meta.parameters()), tolerance=1e-4)


@pytest.mark.parametrize("options", [
    {"order": 1}, {"inner_steps": 1}, {"inner_steps": 5}, {"learn_inner_lr": "element"},
    {"learn_inner_lr": "tensor", "per_step_lr": True}, {"order": 1, "learn_inner_lr": "tensor"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["film", "again", "weight norm"])
def test_orders_steps_and_rates(variant, name, options):
    torch.manual_seed(0)
    assert_stepwise(NETWORKS[name](), **options)


@pytest.mark.parametrize("adapts", ["context", "film", "first", "head", "norm head", "film head"])
def test_some_parameters_adapt(adapts):
    torch.manual_seed(0)
    model = NETWORKS["film"]()
    names = [n for n, _ in model.named_parameters() if n.split(".")[0] in adapts.split()]
    meta, tasks = meta_of(model, adapt_parameters=names), classification_tasks(SAMPLE)
    assert fm.explain(meta, tasks).name in ("stepwise", "resident")  # above what does not adapt
    assert_exact(meta, tasks)


def test_parameters_that_learn_nothing():
    torch.manual_seed(0)
    model = NETWORKS["low rank"]()
    model.inner.requires_grad_(False)
    assert_stepwise(model)


def test_tasks_of_several_sizes():
    torch.manual_seed(0)
    all_of_one_size = classification_tasks(SAMPLE, t=3)
    weights = torch.tensor([[1.0] * 5, [1, 1, 1, 0, 0], [2, 1, 0, 0, 1]], dtype=torch.float64)
    same = (all_of_one_size.support_x, all_of_one_size.support_y)
    tasks = fm.TaskBatch(*same, *same, weights, weights.flip(0))
    model = NETWORKS["standardised"]()
    model.norm = nn.GroupNorm(2, 4)
    assert_stepwise(model, tasks)


def test_losses_of_ones_own():
    torch.manual_seed(0)
    assert_stepwise(NETWORKS["film"](), loss=nn.CrossEntropyLoss(label_smoothing=0.2))


def test_chains_of_layers_and_sequences():
    torch.manual_seed(0)
    norm = parametrizations.weight_norm
    chain = nn.Sequential(
        norm(nn.Conv1d(2, 4, 3)), nn.GroupNorm(2, 4), nn.SiLU(), norm(nn.ConvTranspose1d(4, 3, 2)),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), norm(nn.Linear(3, 3)),
    )  # fmt: skip
    assert_stepwise(chain, classification_tasks((2, 9)))


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 2)
        self.scale, self.head = parameter(4, 1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.second((self.first(x) * self.scale).relu()).mean(-1))


class Residual(nn.Module):
    """As in temporal convolutional networks (Bai et al. 2018): its layers have two names each."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.second = norm(nn.Conv1d(2, 2, 3)), norm(nn.Conv1d(2, 2, 1))
        self.net = nn.Sequential(self.first, nn.ReLU(), self.second)

    def forward(self, x):
        return torch.relu(self.net(x) + x[:, :, 2:])


@pytest.mark.parametrize("norm", [
    parametrizations.weight_norm, nn.utils.weight_norm,
    lambda layer: nn.utils.weight_norm(layer, dim=1),
], ids=["parametrized", "in a hook", "of columns"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weight_norm_of_layers_with_two_names(norm):
    torch.manual_seed(0)
    model = nn.Sequential(Residual(norm), Residual(norm), nn.Flatten(), nn.Linear(10, 3))
    assert_stepwise(model, classification_tasks((2, 9)))
    weight = vars(model[0].first).get("weight")
    assert weight is None or type(weight) is torch.Tensor  # as PyTorch has left it


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weight_norm_in_a_hook_keeps_plans_and_other_hooks_count():
    torch.manual_seed(0)
    layer = nn.utils.weight_norm(nn.Linear(4, 5))
    meta = meta_of(nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3)))
    tasks = classification_tasks((4,))
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks)
    plans = [*meta._plans.values()]
    assert_exact(meta, tasks)
    assert [*map(id, meta._plans.values())] == [*map(id, plans)]
    layer.register_forward_hook(lambda module, x, y: 2 * y)
    assert_exact(meta, tasks)
    assert fm.explain(meta, tasks).name == "vmap"


def test_tied_weights_of_two_layers():
    class Auto(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1, bias=False)
            self.turn, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
            self.turn.weight = self.up.weight

        def forward(self, x):
            h = self.turn(torch.tanh(self.up(self.down(x))))
            back = F.conv_transpose2d(h, self.down.weight)
            return self.head(self.down(back).mean((2, 3)))

    torch.manual_seed(0)
    assert_stepwise(Auto())


@pytest.mark.parametrize("slopes", [1, 8])
def test_slopes_of_sequences_and_flat_features(slopes):
    torch.manual_seed(0)
    layers = nn.Conv1d(2, 8, 3), nn.PReLU(slopes), nn.AvgPool1d(2), nn.PReLU(), nn.Flatten()
    head = nn.Linear(24, 8), nn.PReLU(slopes, init=-0.5), nn.Linear(8, 3)
    assert_stepwise(nn.Sequential(*layers, *head), classification_tasks((2, 9)))


def test_scales_of_sequences():
    torch.manual_seed(0)
    assert_stepwise(Sequences(), classification_tasks((2, 9)))


def test_arithmetic_above_such_layers():
    torch.manual_seed(0)

    class Cosine(Network):
        def forward(self, x):
            h = F.normalize(self.features(x), dim=1)
            return 5 * h @ F.normalize(self.head.weight, dim=1).t()

    assert_stepwise(Cosine(film, film=nn.Linear(5, 8), context=parameter(5)))


def test_in_float32_it_is_as_near_to_float64_as_plain_pytorch():
    torch.manual_seed(0)
    errors = {"stepwise": [], "reference": []}
    for seed in range(6):
        for name in ("film", "standardised", "again"):
            torch.manual_seed(seed)
            model, tasks = NETWORKS[name](), classification_tasks(SAMPLE, t=3)
            exact = gradient(meta_of(model, engine="reference"), tasks)
            for engine, found in errors.items():
                meta = fm.MAML(model.float(), inner_lr=0.3, inner_steps=2, engine=engine)
                near = gradient(meta, tasks.to(dtype=torch.float32))
                found.append(((near.double() - exact).norm() / exact.norm()).item())
    medians = {engine: torch.tensor(found).median() for engine, found in errors.items()}
    assert medians["stepwise"] < 2 * medians["reference"]


def gradient(meta, tasks):
    parameters = [p for p in meta.parameters() if p.requires_grad]
    found = torch.autograd.grad(meta(tasks).loss.mean(), parameters)
    return torch.cat([g.flatten() for g in found])


def test_fast_weights_and_what_is_adapted_without_gradients():
    torch.manual_seed(0)
    meta, tasks = meta_of(NETWORKS["film"]()), classification_tasks(SAMPLE)
    with fm.use_backend("reference"):
        expected = meta.adapt(tasks.support_x, tasks.support_y)
    found = meta.adapt(tasks.support_x, tasks.support_y)
    for name, fast in expected.parameters.items():
        torch.testing.assert_close(found.parameters[name], fast)
    torch.testing.assert_close(found(tasks.query_x), expected(tasks.query_x))
    with torch.no_grad():
        lone = meta(tasks).loss
    with fm.use_backend("reference"):
        torch.testing.assert_close(lone, meta(tasks).loss.detach())


def test_without_tasks_it_is_known_too():
    class Images(Network):
        def __init__(self):
            super().__init__(film, film=nn.Linear(5, 8), context=parameter(5))
            self.head = nn.Linear(5 * 26 * 26, 3)

        def features(self, x):
            return self.last(self.told(self, self.norm(self.first(x)))).flatten(1)

    assert fm.explain(meta_of(Images())).name == "stepwise"
    assert fm.explain(meta_of(Network(lambda m, h: F.hardshrink(h)))).name != "stepwise"


def test_another_derivative_is_refused():
    meta, tasks = meta_of(NETWORKS["film"]()), classification_tasks(SAMPLE)
    loss = meta(tasks).loss.mean()
    with pytest.raises(RuntimeError, match="stepwise engine.*cannot be differentiated"):
        torch.autograd.grad(loss, list(meta.parameters()), create_graph=True)


def test_weights_far_larger_than_their_gradients():
    torch.manual_seed(0)
    model = NETWORKS["weight norm"]()
    model.told = lambda m, h: m.norm(m.inner(h))  # which makes nothing of its size
    model.inner.parametrizations.weight.original0.data.mul_(1e6)
    tasks = classification_tasks(SAMPLE)
    exact = gradient(meta_of(model, engine="reference"), tasks)
    near = gradient(
        fm.MAML(model.float(), inner_lr=0.3, inner_steps=2, engine="stepwise"),
        tasks.to(dtype=torch.float32),
    )
    assert (near.double() - exact).norm() < 1e-5 * exact.norm()


# ---- what may change between calls, and within one -----------------------------------------------


@pytest.mark.parametrize("kept", [0, 1 << 28])
def test_buffers_are_read_anew(kept, monkeypatch):
    monkeypatch.setattr(kept_graphs, "_MOST_BYTES", kept)
    torch.manual_seed(0)
    model, tasks = NETWORKS["by buffers"](), classification_tasks(SAMPLE)
    meta = meta_of(model)
    assert_exact(meta, tasks)
    plans = [*map(id, meta._plans.values())]
    model.mask.mul_(2)
    assert_exact(meta, tasks)
    model.mask = torch.rand(4, dtype=torch.float64)
    assert_exact(meta, tasks)
    assert [*map(id, meta._plans.values())] == plans
    right = gradient(meta, tasks)
    loss = meta(tasks).loss.mean()
    model.mask = torch.rand(4, dtype=torch.float64)  # before the backward, which has the one before
    loss.backward()
    found = [p.grad for p in meta.parameters()]
    torch.testing.assert_close(torch.cat([g.flatten() for g in found]), right)
    model.width = torch.rand(4, 1, 1, dtype=torch.float64)
    assert_exact(meta, tasks)


def test_buffers_above_are_read_anew():
    class Tabled(Network):
        def forward(self, x):
            return self.head((self.features(x) - self.middle).exp() * self.middle)

    torch.manual_seed(0)
    model = Tabled(film, film=nn.Linear(5, 8), context=parameter(5))
    model.register_buffer("middle", torch.rand(5))
    meta, tasks = meta_of(model), classification_tasks(SAMPLE)
    assert fm.explain(meta, tasks).name == "stepwise"
    assert_exact(meta, tasks)
    for middle in (torch.rand(5), torch.rand(5)):
        model.middle = middle.double()
        assert_exact(meta, tasks)


def in_place(told):
    return lambda: Network(
        told, first_mask=torch.ones(4, 1, 1), inner=nn.Conv2d(4, 4, 1),
        zero=nn.BatchNorm2d(4), gamma=nn.Parameter(torch.ones(4, 1, 1)),
    )  # fmt: skip


def dropped(m, h):
    h = m.inner(h / m.gamma)
    h.mul_(m.first_mask)
    return h


def residual_of_zero(m, h):
    y = m.zero(m.inner(h))
    y.mul_(m.gamma)
    return h + y


def by_another_name(m, h):
    again = h
    h *= m.first_mask
    return m.inner(h) + again


def alone(m, h):
    h = m.inner(h)
    h *= m.first_mask
    return m.gamma * h


@pytest.mark.parametrize("told", [dropped, residual_of_zero, by_another_name, alone])
def test_scales_in_place(told):
    torch.manual_seed(0)
    model, tasks = in_place(told)(), classification_tasks(SAMPLE)
    nn.init.zeros_(model.zero.weight)
    meta = meta_of(model)
    for mask in (1.0, 0.5):
        model.first_mask.fill_(mask)
        assert_exact(meta, tasks)
    assert (fm.explain(meta, tasks).name == "stepwise") is (told is alone)


def test_modules_change():
    torch.manual_seed(0)
    model, tasks = NETWORKS["film"](), classification_tasks(SAMPLE)
    meta = meta_of(model)
    assert_exact(meta, tasks)
    model.film = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 8)).double()
    assert_exact(meta, tasks)
    model.told = lambda m, h: h * m.context[:4, None, None]
    assert_exact(meta, tasks)


# ---- what it does not take ---------------------------------------------------------------------


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, w):
        self.calls += 1
        return w * 2


UNREAD = {
    "as they are": (lambda m, h: h, "no weight is made of parameters"),
    "in place": (lambda m, h: h * m.a.clone().mul_(2), "changes in place"),
    "numbers": (lambda m, h: h * (float(m.a) * m.a), "cannot trace"),
    "asked": (lambda m, h: h * (m.a.item() * m.a), "asks for numbers"),
    "random": (lambda m, h: h * torch.rand_like(m.a), "random"),
    "counted": (lambda m, h: h * m.twice(m.a), "changes"),
    "whole numbers": (lambda m, h: torch.relu(h) * m.a.long(), "whole numbers"),
    "of other samples": (lambda m, h: h * m.a[: len(h)], "no weight is made"),
    "rows": (lambda m, h: h * m.rows, "no weight is made"),
    "no kernel": (lambda m, h: (m.a * h).sort(-1).values, "sort"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_says_why(name):
    told, said = UNREAD[name]
    parts = {"a": parameter(1), "twice": Counts(), "rows": parameter(6)}
    loop = InnerLoop(model := Network(told, **parts).double(), "cross_entropy", 1, 2, ("a",))
    given = dict(model.named_parameters())
    reason = stepwise.can_run(loop, classification_tasks(SAMPLE), given, 0.1)
    assert reason is not None and said in reason, reason


def test_a_spectral_norm_that_learns_is_left_alone():
    model = Network(lambda m, h: m.inner(h), inner=parametrizations.spectral_norm(inner()))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    names = [name for name, _ in model.named_parameters()]
    assert isinstance(made_of(model, names, SAMPLE), str)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert isinstance(made_of(model.eval(), names, SAMPLE), Made)


def test_cached_parametrizations_are_refused():
    meta, tasks = meta_of(NETWORKS["weight norm"]()), classification_tasks(SAMPLE)
    with parametrize.cached(), pytest.raises(RuntimeError, match="leave that block"):
        meta(tasks)
    assert_exact(meta, tasks)


def test_inputs_of_whole_numbers_say_so():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head((self.table(x) + self.table(x.flip(1))).mean(1))

    given = classification_tasks((3,))
    words = [torch.randint(5, x.shape) for x in (given.support_x, given.query_x)]
    tasks = fm.TaskBatch(words[0], given.support_y, words[1], given.query_y)
    said = fm.explain(meta_of(Words()), tasks).passed_over["stepwise"]
    assert said == "support_x is torch.int64, and the native kernels take real inputs"


def test_it_is_demanded_where_it_cannot_run():
    tasks = classification_tasks(SAMPLE)
    with pytest.raises(ValueError, match='"stepwise" was demanded .*no weight is made'):
        meta_of(Network(lambda m, h: h), engine="stepwise")(tasks)
    with fm.use_backend("cpu"), pytest.raises(ValueError, match='"resident", not "stepwise"'):
        meta_of(NETWORKS["film"](), engine="stepwise")(tasks)
