"""A module's own forward on the native kernels is that of the module, whatever it is and does."""

import pickle
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.engines import forward
from fastmeta.inner_loop.engines.forward import Forward
from fastmeta.inner_loop.reading.snapshot import Snapshot

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


def block(c, o, norm=None, **options):
    norm = nn.BatchNorm2d(o) if norm is None else norm
    return [nn.Conv2d(c, o, 3, padding=1, **options), norm, nn.ReLU(), nn.MaxPool2d(2)]


def convs(*norms):
    norms = norms or (None, None)
    widths = [2, 5, 4, 3][: len(norms) + 1]
    pairs = zip(widths, widths[1:], norms, strict=False)
    return nn.Sequential(*[layer for pair in pairs for layer in block(*pair)], nn.Flatten())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.a(x)
        x = F.relu(x + self.other(self.b(F.relu(self.norm(x)))))
        return x.mean((2, 3))


class Attentive(nn.Module):
    """Arithmetic on rows above stages."""

    def __init__(self):
        super().__init__()
        self.body, self.query = nn.Sequential(*block(2, 4)), nn.Linear(4, 1)

    def forward(self, x):
        h = self.body(x).flatten(2).transpose(1, 2)
        return (h * self.query(h).softmax(1)).sum(1)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.b(self.norm(self.a(x)).relu())).flatten(1)


ENCODERS = {
    "convolutions": convs,
    "three blocks": lambda: convs(None, None, None),
    "a cumulative mean": lambda: convs(nn.BatchNorm2d(5, momentum=None), None),
    "without affine": lambda: convs(nn.BatchNorm2d(5, affine=False), nn.BatchNorm2d(4, eps=0.3)),
    "without statistics": lambda: convs(nn.BatchNorm2d(5, track_running_stats=False), None),
    "other norms": lambda: convs(nn.GroupNorm(5, 5), nn.InstanceNorm2d(4, affine=True)),
    "residual": Residual,
    "attentive": Attentive,
    "a norm first": lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.Flatten()),
}  # fmt: skip


def samples(n=6, shape=(2, 8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, dtype=torch.float64, generator=generator)


def assert_same(ours, plain, x, run=None, reason=None):
    """Features, gradients and buffers of two copies of a module, one run by the kernels."""
    run = run or Forward()
    assert run.why_not(ours, x) == reason
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    made, expected = run(ours, own), plain(other)
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)
    grad = samples(made.numel(), (), seed=1).view_as(made)
    made.backward(grad), expected.backward(grad)
    pairs = zip((own, *ours.parameters()), (other, *plain.parameters()), strict=True)
    for one, two in pairs:
        assert (one.grad is None) is (two.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-8, atol=1e-11)
    for one, two in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ENCODERS)
def test_it_is_the_call_of_the_module(name):
    ours = ENCODERS[name]().double()
    plain, run = deepcopy(ours), Forward()
    for seed, n in enumerate((6, 2, 9)):
        assert_same(ours, plain, samples(n, seed=seed), run)
    ours.eval(), plain.eval()
    assert_same(ours, plain, samples(1), run)
    with torch.no_grad():
        for n in (1, 40):
            torch.testing.assert_close(run(ours, samples(n)), plain(samples(n)))
    ours.train(), plain.train()
    assert_same(ours, plain, samples(4), run)


def test_sequences():
    ours = nn.Sequential(
        nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.Tanh(), nn.AvgPool1d(2), nn.Flatten()
    ).double()
    assert_same(ours, deepcopy(ours), samples(5, (3, 12)))


def test_a_norm_that_stays_in_evaluation():
    ours = convs(None, None).double()
    ours(samples())
    ours[1].eval()
    assert_same(ours, deepcopy(ours), samples(7))


def test_frozen_and_unused_parameters():
    ours = convs().double()
    ours.register_parameter("unused", nn.Parameter(torch.zeros(3, dtype=torch.float64)))
    ours[0].requires_grad_(False)
    assert_same(ours, deepcopy(ours), samples())


@pytest.mark.parametrize("training", [True, False])
def test_derivatives_of_any_order(training):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()
    ).double()
    model(samples(4, (1, 3, 3)))
    model.train(training)
    x, names = samples(3, (1, 3, 3)).requires_grad_(), [n for n, _ in model.named_parameters()]
    run = Forward()
    assert run.why_not(model, x) is None

    def features(x, *parameters):
        for name, parameter in zip(names, parameters, strict=True):
            owner, _, key = name.rpartition(".")
            model.get_submodule(owner)._parameters[key] = parameter
        return run(model, x)

    inputs = (x, *[p.detach().requires_grad_() for p in model.parameters()])
    assert torch.autograd.gradcheck(features, inputs)
    assert torch.autograd.gradgradcheck(features, inputs)


def test_a_derivative_of_a_gradient_learns_no_statistics():
    ours = convs().double()
    plain, x = deepcopy(ours), samples().requires_grad_()
    for features in (Forward()(ours, x), plain(x)):
        torch.autograd.grad(features.square().sum(), x, create_graph=True)
    for one, two in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_derivative_after_another_mode():
    model, x = convs().double(), samples()
    made = Forward()(model, x)
    model.eval()
    with pytest.raises(RuntimeError, match="module changed"):
        torch.autograd.grad(made.sum(), [*model.parameters()], create_graph=True)
    assert torch.autograd.grad(made.sum(), [*model.parameters()])


def test_changed_weights_are_an_error_in_the_backward():
    model, x = convs().double(), samples()
    made = Forward()(model, x)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made.sum().backward()


class Counting(Residual):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class ByFunction(Residual):
    def forward(self, x):
        x, norm = self.a(x), self.norm
        x = F.batch_norm(x, norm.running_mean, norm.running_var, training=self.training)
        return x.mean((2, 3))


class Unused(Residual):
    """A norm is called twice, and what it makes first is dropped."""

    def forward(self, x):
        self.norm(self.a(x))
        return super().forward(x)


class CountsInABuffer(Residual):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls_made", torch.zeros(()))

    def forward(self, x):
        self.calls_made += 1
        return super().forward(x)


class Remembers(Residual):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class ReadsStatistics(Residual):
    def forward(self, x):
        return super().forward(x) - self.norm.running_mean


def hooked():
    model = convs()
    model[1].register_forward_hook(lambda *_: None)
    return model


OTHERS = {
    "counts": Counting, "a norm twice": Twice, "functional": ByFunction, "hooked": hooked,
    "an unused norm": Unused, "a buffer that counts": CountsInABuffer, "remembers": Remembers,
    "reads statistics": ReadsStatistics,
    "in place": lambda: nn.Sequential(nn.Identity(), nn.ReLU(True), nn.Conv2d(2, 3, 3)),
    "of rows": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3)),
    "other statistics": lambda: convs(nn.InstanceNorm2d(5, track_running_stats=True), None),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_runs_as_it_is(name):
    ours = OTHERS[name]().double()
    plain, run = deepcopy(ours), Forward()
    assert run.why_not(ours, samples()) is not None
    for _ in range(2):
        one, two = samples(), samples()
        torch.testing.assert_close(run(ours, one), plain(two))
        torch.testing.assert_close(one, two, rtol=0, atol=0)  # or both are changed
    for one, two in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, two)
    assert getattr(ours, "calls", 2) == 2


def test_dropout_is_the_module_s_own():
    drawn = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Dropout(0.0), nn.Dropout(0.9)).double()
    assert Forward().why_not(drawn, samples()) is not None
    drawn[2].p = 1.0  # which is known without
    assert_same(drawn, deepcopy(drawn), samples())


def test_errors_are_those_of_the_module():
    model, run = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double(), Forward()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run(model, samples(1, (1, 3, 3)))
    with pytest.raises(RuntimeError, match="expected input"):
        run(model, samples(2, (3, 4, 4)))
    with pytest.raises(RuntimeError, match="type"):
        run(model, samples(2, (1, 4, 4)).float())


def test_norms_of_lone_numbers():
    ours = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4)
    ).double()  # fmt: skip
    plain = deepcopy(ours)
    assert_same(ours, plain, samples())
    ours.eval(), plain.eval()
    assert_same(ours, plain, samples())


def test_a_norm_that_no_longer_tracks():
    ours = convs().double()
    ours(samples())
    ours[1].track_running_stats = False
    plain = deepcopy(ours)
    assert_same(ours, plain, samples())
    ours.eval(), plain.eval()
    assert_same(ours, plain, samples())


def test_statistics_may_change_before_a_backward():
    model, run = convs().double(), Forward()
    model(samples())
    plain = model(samples())
    ours = run(model, samples())
    model.eval()
    judged = run(model, samples())
    model.train()
    run(model, samples())
    for features in (plain, ours, judged):
        features.sum().backward()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_statistics_of_another_kind(mode):
    for change in (
        lambda m: setattr(m[1], "running_mean", torch.zeros(1, dtype=torch.float64)),
        lambda m: setattr(m[1], "running_var", None),
        lambda m: setattr(m[1], "running_var", torch.ones(5)),
        lambda m: m.__setitem__(1, nn.BatchNorm2d(3, affine=False).double()),
    ):
        model, run = convs().double(), Forward()
        getattr(model, mode)()
        for before in (True, False):
            if before:
                run(model, samples())
            change(model)
            with pytest.raises((RuntimeError, ValueError), match="running|contain|dtype|type"):
                run(model, samples())


def test_statistics_are_as_exact_as_they_are_in_pytorch():
    ours = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=1.0, momentum=1.0))
    exact, x = deepcopy(ours).double(), 0.01 * samples()
    assert Forward().why_not(ours, x.float()) is None
    Forward()(ours, x.float()), exact(x)
    torch.testing.assert_close(
        ours[1].running_var.double(), exact[1].running_var, rtol=2e-6, atol=0
    )


def test_a_module_that_changes_with_each_call_is_left_alone(monkeypatch):
    model, run = Remembers().double(), Forward()
    looked = []
    monkeypatch.setattr(forward, "Snapshot", lambda m: looked.append(m) or Snapshot(m))
    for _ in range(60):
        run(model, samples())
    assert len(looked) < 40


def test_a_module_that_changes():
    model, run = convs().double(), Forward()
    for change in (
        lambda m: m[1]._buffers.update(running_mean=torch.ones(5, dtype=torch.float64)),
        lambda m: m.append(nn.ReLU()),
        lambda m: m[0].weight.data.mul_(2),
        lambda m: setattr(m[1], "momentum", 0.7),
        lambda m: setattr(m[5], "eps", 0.2),
        lambda m: m.__setitem__(5, nn.BatchNorm2d(4, momentum=None).double()),
        lambda m: m[4].requires_grad_(False),
    ):
        change(model)
        model.zero_grad()
        assert_same(model, deepcopy(model), samples(), run)


def test_a_parameter_of_another_shape():
    model, run = convs().double(), Forward()
    run(model, samples())
    model[4].weight = nn.Parameter(samples(4, (5, 1, 1)))
    assert_same(model, deepcopy(model), samples(), run, "parameter '4.weight' is of another dtype, "
                "device or shape than it was")  # fmt: skip


def test_backends_and_modes_of_pytorch():
    model, x, run = convs().double(), samples(), Forward()
    for block in (
        fm.use_backend("reference"), torch.autocast("cpu", torch.bfloat16),
    ):  # fmt: skip
        with block:
            assert run.why_not(model, x) is not None
    with torch.inference_mode():
        torch.testing.assert_close(run(model, x), deepcopy(model)(x))
    assert run.why_not(model, torch.empty(0, 2, 8, 8, dtype=torch.float64)) is not None


def test_layouts_of_inputs():
    model, run, x = convs().double().eval(), Forward(), samples(6, (8, 8, 2))
    for image in (x.permute(0, 3, 1, 2), x[:1].permute(0, 3, 1, 2).expand(5, -1, -1, -1)):
        assert run.why_not(model, image) is None
        torch.testing.assert_close(run(model, image), model(image))


@pytest.mark.parametrize("kind", [fm.ProtoNet, fm.MatchingNet, fm.R2D2])
@pytest.mark.parametrize("padded", [False, True])
def test_learners_of_encoders(kind, padded):
    meta = kind(convs()).double()
    y = torch.tensor([[0, 1, 2, 0, 1, 2]] * 3)
    weight = samples(18, ()).view(3, 6).abs() * torch.tensor([1, 1, 1, 1, 1, 0]) if padded else None
    tasks = fm.TaskBatch(
        samples(18).view(3, 6, 2, 8, 8), y, samples(18, seed=1).view(3, 6, 2, 8, 8), y,
        weight, weight,
    )  # fmt: skip
    plain = deepcopy(meta)
    loss = meta(tasks).loss
    with fm.use_backend("reference"):
        expected = plain(tasks).loss
    torch.testing.assert_close(loss, expected)
    loss.sum().backward(), expected.sum().backward()
    for one, two in zip(meta.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-8, atol=1e-11)
    for one, two in zip(meta.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, two)
    copy = pickle.loads(pickle.dumps(meta))
    torch.testing.assert_close(copy(tasks).loss, meta(tasks).loss)
