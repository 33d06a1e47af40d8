"""Forwards that take gradients by their samples: residuals of equations, forces, penalties."""

import copy

import pytest
import torch
from oracle import (
    DOUBLE,
    assert_exact,
    assert_slope,
    gradients,
    outer_loss,
    regression_tasks,
    relative_error,
)
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

INPUTS, WIDTH = 2, 9


def by(u, x):
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def variable(x):
    return x.detach().requires_grad_()


def force(m, x):
    """Greydanus et al. 2019, equation 4: of a Hamiltonian."""
    x = variable(x)
    dq, dp = by(m.net(x), x).chunk(2, -1)
    return torch.cat([dp, -dq], -1)


def laplacian(m, x):
    x = x.clone().detach().requires_grad_(True)
    u = m.net(x)
    g = by(u, x)
    return torch.cat([u, sum(by(g[:, i], x)[:, i : i + 1] for i in range(INPUTS))], 1)


def burgers(m, x):
    """Raissi et al. 2019, equation 3: time and place apart."""
    t, x = (variable(part.clone()) for part in (x[:, :1], x[:, 1:]))
    u = m.net(torch.cat([t, x], 1))
    slope = by(u, x)
    return torch.cat([u, by(u, t) + u * slope - 0.01 * by(slope, x)], 1)


def given_ones(m, x):
    u = m.net(x.requires_grad_())
    return torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)[0]


def by_features(m, x):
    h = m.net[:2](x)
    return by(m.net[2:](h).square(), h)


def by_detached_features(m, x):
    h = variable(m.net[:2](x))
    return by(m.net[2:](h).exp(), h) + m.net[:2](x)


def penalty(m, x):
    x = variable(x)
    u = m.net(x)
    return torch.cat([u, by(u, x).norm(dim=1, keepdim=True)], 1)


def log_slope(m, x):
    """As a flow of one dimension has it."""
    return torch.log(by(m.net(z := variable(x)), z).abs()[:, :1] + 0.1)


def of_softmax(m, x):
    x = variable(x)
    shares = torch.softmax(m.net[:3](x), -1)
    return by(shares[:, 2] * shares[:, 3], x) + by(torch.log_softmax(m.net[:3](x), 1)[:, 1:3], x)


def of_parts(m, x):
    x = variable(x)
    h = m.net[:3](x)
    first, second, rest = h.split([3, 2, WIDTH - 5], 1)
    return by(first[:, 1:] * second / (2 + rest[:, :1].square()), x) * by(h[:, -2] ** 3, x)


def transformed(m, x):
    return torch.func.vmap(torch.func.grad(lambda z: m.net(z)[0]))(x)


def second_transformed(m, x):
    slope = torch.func.grad(lambda z: m.net(z)[0])
    return torch.func.vmap(torch.func.grad(lambda z: slope(z)[0]))(x)


def jacobian(m, x):
    return torch.func.vmap(torch.func.jacrev(m.net[:3]))(x)[:, 1:4].flatten(1)


def second_jacobian(m, x):
    of_one = torch.func.jacrev(torch.func.jacrev(lambda z: m.net(z)[0]))
    return torch.func.vmap(of_one)(x).flatten(1)


def hessian(m, x):
    return torch.func.vmap(torch.func.hessian(lambda z: m.net(z)[0]))(x).flatten(1)


def forward_jacobian(m, x):
    return torch.func.vmap(torch.func.jacfwd(m.net[:3]))(x)[:, 1:4].flatten(1)


def directional(m, x):
    along = torch.arange(1.0, 1 + INPUTS, dtype=DOUBLE)
    u, slope = torch.func.jvp(m.net, (x,), (along.expand_as(x),))
    each = torch.func.vmap(lambda z: torch.func.jvp(m.net, (z,), (along,))[1])(x)
    return torch.cat([u, slope, each], 1)


def with_duals(m, x):
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        u = m.net(forward_ad.make_dual(x, torch.ones_like(x)))
        return torch.cat([*forward_ad.unpack_dual(u)], 1)


def of_unit_features(m, x):
    x = variable(x)
    h = m.net[:3](x)
    u = h / h.norm(dim=1, keepdim=True) + torch.pow(h, 3).tanh()
    return by(by(u[:, 1:] + h[:, 1:].abs() / (1 + h[:, :-1].square()), x)[:, 1], x)


def recurrent(m, x):
    """Two cells over a sequence of one number each."""
    x = variable(x)
    h = x.new_zeros(len(x), WIDTH)
    for place in range(INPUTS):
        h = torch.tanh(m.net[2](h) + m.net[0](x * torch.eye(INPUTS, dtype=DOUBLE)[place]))
    return by(m.net[4](h), x)


def gated(m, x):
    """Wang et al. 2021, equation 45."""
    x = variable(x)
    low, high = (torch.tanh(m.net[0](s * x)) for s in (1, -2))
    share = torch.sigmoid(m.net[2](low))
    u = m.net[4](share * low + (1 - share) * high)
    g = by(u, x)
    return torch.cat([u, by(g[:, :1], x)[:, :1] - g[:, 1:]], 1)


FORMS = {
    form.__name__: form
    for form in (
        force, laplacian, burgers, given_ones, by_features, by_detached_features, penalty,
        log_slope, of_softmax, of_parts, transformed, second_transformed, jacobian,
        second_jacobian, of_unit_features, recurrent, gated, hessian, forward_jacobian,
        directional, with_duals,
    )
}  # fmt: skip
ACTIVATIONS = {
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": lambda: nn.Softplus(2), "silu": nn.SiLU,
    "elu": lambda: nn.ELU(0.7), "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2),
    "sine": fm.models.Sine,
}  # fmt: skip


class Model(nn.Module):
    def __init__(self, form, activation=nn.Tanh):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            nn.Linear(INPUTS, WIDTH), activation(), nn.Linear(WIDTH, WIDTH), activation(),
            nn.Linear(WIDTH, 1),
        ).double()  # fmt: skip
        self.form = form

    def forward(self, x):
        return self.form(self, x)


def maml(model, **options):
    options = {"loss": "mse", "inner_lr": 0.05, "inner_steps": 2, **options}
    return fm.MAML(model, **options)


def tasks_for(model, t=3, s=5, q=4):
    outputs = model(torch.zeros(2, INPUTS, dtype=DOUBLE)).shape[1]
    return regression_tasks(t, s, q, INPUTS, outputs)


@pytest.mark.parametrize("t", [1, 4, 21])
@pytest.mark.parametrize("form", FORMS)
def test_as_the_reference(form, t):
    model = Model(FORMS[form])
    for s, q, order in ((5, 19, 2), (16, 3, 1)):
        assert_exact(maml(model, order=order, engine="resident"), tasks_for(model, t, s, q))


@pytest.mark.parametrize("form", ["laplacian", "of_parts", "transformed"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(form, activation):
    model = Model(FORMS[form], ACTIVATIONS[activation])
    assert_exact(maml(model, engine="resident"), tasks_for(model))


@pytest.mark.parametrize("form", ["laplacian", "given_ones"])
def test_finite_differences(form):
    """Of parameters that an inner step adapted: third and fourth derivatives of the network."""
    model = Model(FORMS[form])
    meta, tasks = maml(model, engine="resident"), tasks_for(model)
    assert_slope(lambda: outer_loss(meta, tasks), [*meta.parameters()])


@pytest.mark.parametrize("form, depends", [("given_ones", True), ("laplacian", False)])
def test_what_is_detached_sends_no_gradient_to_the_samples(form, depends):
    model = Model(FORMS[form])
    tasks = tasks_for(model)
    inputs = [tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()]
    meta = maml(model, engine="resident")
    assert_exact(meta, tasks, inputs + [*meta.parameters()])
    assert any(g.any() for g in gradients(meta, tasks, inputs)) == depends


def test_learned_rates():
    model = Model(laplacian)
    meta = maml(model, learn_inner_lr="element", per_step_lr=True, engine="resident")
    assert_exact(meta, tasks_for(model))


def test_in_float32_it_is_as_near_to_float64_as_plain_pytorch():
    ratios = []
    for seed in range(5):
        right = Model(laplacian)
        torch.manual_seed(seed)
        tasks = tasks_for(right)
        exact = gradients(maml(right), tasks, [*right.parameters()])
        model, found = copy.deepcopy(right).float(), {}
        for backend in ("cpu", "reference"):
            with fm.use_backend(backend):
                found[backend] = gradients(
                    maml(model), tasks.to(dtype=torch.float32), [*model.parameters()]
                )
        errors = [relative_error(found[b], exact) for b in ("cpu", "reference")]
        ratios.append(errors[0] / errors[1])
    assert sorted(ratios)[2] < 2


def test_tasks_stay_as_they_are_and_need_no_gradients_to_be_on():
    model = Model(given_ones)
    meta, tasks = maml(model, engine="resident"), tasks_for(model)
    with torch.no_grad():
        loss = meta(tasks).loss
    torch.testing.assert_close(loss, meta(tasks).loss.detach())
    assert not tasks.support_x.requires_grad and not tasks.query_x.requires_grad


def without_a_graph(m, x):
    x = variable(x)
    u = m.net(x)
    return u * torch.autograd.grad(u.sum(), x, retain_graph=True)[0]


def of_a_mean(m, x):
    x = variable(x)
    return torch.autograd.grad(m.net(x).mean(), x, create_graph=True)[0]


def by_a_parameter(m, x):
    return x * by(m.net(x), m.net[0].bias)[:INPUTS]


def by_its_bias_summed(m, x):
    u = m.net(x)
    return u * torch.autograd.grad(u.sum(), m.net[4].bias, create_graph=True)[0] + u


def of_a_total(m, x):
    u = m.net(x)
    return u * u.sum()


def freezes(m, x):
    m.net[0].weight.requires_grad_(False)
    return m.net(x) * x


def accumulates(m, x):
    x = variable(x)
    m.net(x).sum().backward(create_graph=True)
    return x.grad


def of_gelu(m, x):
    x = variable(x)
    return by(nn.functional.gelu(m.net[:3](x)), x)


def detached_in_place(m, x):
    h = m.net[:2](x)
    return m.net(x) + 10 * ((h - h.clone().detach_()) ** 2).sum(1, keepdim=True)


def detached_by_its_operation(m, x):
    """As autograd detaches what it keeps."""
    h = m.net[:2](x)
    still = torch.ops.aten.detach.default(h)
    g = by(h * h / 2 - h * still, h)
    return m.net(x) + 10 * g.square().sum(1, keepdim=True)


def detached_elsewhere(m, x):
    """In a function whose name is all that is asked for."""
    h = m.net[:2](x)
    g = by(h * h / 2 - h * still_of(h), h)
    return m.net(x) + 10 * g.square().sum(1, keepdim=True)


def still_of(x):
    if torch.overrides.has_torch_function((x,)):
        return torch.overrides.handle_torch_function(still_of, (x,), x)
    return x.detach()


@pytest.mark.parametrize(
    "form", [detached_in_place, detached_by_its_operation, detached_elsewhere]
)
def test_what_is_detached_stays(form):
    """The gradient's first derivative is 0 without it, which no trial of a first step tells."""
    model = Model(form)
    assert_exact(maml(model), tasks_for(model))


def test_reptile():
    model = Model(laplacian)
    tasks = tasks_for(model)
    out = fm.Reptile(model, inner_lr=0.05, inner_steps=2, loss="mse")(tasks)
    out.loss.sum().backward()
    torch.testing.assert_close(out.loss, maml(model)(tasks).loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "form",
    [without_a_graph, of_a_mean, by_a_parameter, by_its_bias_summed, of_a_total, of_gelu],
)
def test_others_run_elsewhere(form):
    model = Model(form)
    meta, tasks = maml(model), tasks_for(model)
    assert "engine: resident" not in str(fm.explain(meta, tasks))
    assert_exact(meta, tasks)


@pytest.mark.parametrize("form, said", [
    (freezes, "requires_grad_"), (accumulates, "backward|grad"), (of_a_total, "over samples"),
    (of_gelu, "gelu_backward"), (without_a_graph, "gradients off"),
])  # fmt: skip
def test_the_reason_is_told(form, said):
    model = Model(form)
    with pytest.raises(ValueError, match=f"(?s)resident.*({said})"):
        maml(model, engine="resident")(tasks_for(model))
