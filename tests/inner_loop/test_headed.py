"""Layers over pixels with arithmetic on each sample's numbers above them; images as predictions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks, regression_tasks, relative_error
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.headed import Headed, headed_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

SAMPLE = (2, 8, 8)


class Network(nn.Module):
    """Two convolutions, what is told of their features [S, 6, 4, 4], and a linear layer."""

    def __init__(self, told, width=6, **parts):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(width, 3)
        self.told = told
        for name, part in parts.items():
            setattr(self, name, part)

    def features(self, x):
        return torch.tanh(self.second(F.max_pool2d(F.relu(self.norm(self.first(x))), 2)))

    def forward(self, x):
        return self.head(self.told(self, self.features(x)))


class Cosine(Network):
    def __init__(self):
        super().__init__(lambda m, h: h.flatten(1), 96)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        h = F.normalize(self.told(self, self.features(x)), dim=1)
        return self.scale * h @ F.normalize(self.head.weight, dim=1).t()


def attended(m, h):
    """A weighted mean of the places."""
    h = h.flatten(2).transpose(1, 2)
    return (m.one(h).softmax(1) * h).sum(1)


def counted(m, h):
    b, c = h.shape[:2]
    places = h.reshape(b, c, -1)
    return torch.logsumexp(places, dim=-1)


def read_row_by_row(m, h):
    rows = h.permute(0, 2, 1, 3).flatten(2)  # [S, 4, 24]
    return m.gru(rows)[0][:, -1]


def encoded(m, h):
    return m.encoder(h.flatten(2).transpose(1, 2)).mean(1)


def encoder():
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)


def gated(m, h):
    h = h.mean((2, 3))
    return torch.tanh(m.left(h)) / (1 + m.right(h).exp())


def tabled(m, h):
    return h.flatten(2).softmax(2) @ m.table


def buffer(model, name, tensor):
    model.register_buffer(name, tensor)
    return model


HEADS = {
    "cosine": Cosine,
    "attention over places": lambda: Network(attended, one=nn.Linear(6, 1)),
    "counted": lambda: Network(counted),
    "the largest of all": lambda: Network(lambda m, h: h.amax((2, 3))),
    "deviations": lambda: Network(lambda m, h: h.flatten(2).std(2)),
    "recurrent": lambda: Network(read_row_by_row, 5, gru=nn.GRU(24, 5, batch_first=True)),
    "an encoder": lambda: Network(encoded, encoder=encoder()),
    "gated": lambda: Network(gated, left=nn.Linear(6, 6), right=nn.Linear(6, 6)),
    "a parameter of rows": lambda: Network(
        lambda m, h: (h * m.gain[:, None, None]).mean((2, 3)) + m.gain,
        gain=nn.Parameter(torch.linspace(0.5, 1.5, 6)),
    ),
    "a buffer": lambda: buffer(
        Network(lambda m, h: tabled(m, h)[..., 0]), "table", torch.linspace(0, 1, 32).view(16, 2)
    ),
    "no parameter": lambda: Network(lambda m, h: h.clamp(-0.5, 0.5).amax((2, 3))),
    "a slice of channels": lambda: Network(lambda m, h: h[:, :3, 1:, ::2].flatten(1), 18),
}


def meta_of(model, **options):
    given = {"inner_lr": 0.1, "inner_steps": 2, **options}
    return fm.MAML(model.double(), **given)


def assert_headed(model, sample=SAMPLE, s=4, q=5, t=2, **options):
    assert isinstance(headed_of(model.double(), sample), Headed)
    meta = meta_of(model, **options)
    tasks = classification_tasks(sample, t=t, s=s, q=q)
    choice = fm.explain(meta, tasks)
    assert choice.name == "resident", choice.passed_over["resident"]
    for x in (tasks.support_x, tasks.query_x):
        x.requires_grad_()
    inputs = [p for p in meta.parameters() if p.requires_grad]
    assert_exact(meta, tasks, [*inputs, tasks.support_x, tasks.query_x], tolerance=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_exact(name):
    torch.manual_seed(0)
    assert_headed(HEADS[name]())


@pytest.mark.parametrize("options", [
    {"order": 1}, {"inner_steps": 0}, {"inner_steps": 4}, {"learn_inner_lr": "element"},
    {"learn_inner_lr": "tensor", "per_step_lr": True}, {"order": 1, "learn_inner_lr": "tensor"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["cosine", "attention over places"])
def test_orders_steps_and_rates(variant, name, options):
    assert_headed(HEADS[name](), **options)


@pytest.mark.parametrize("adapts", ["first", "second", "norm", "head", "one", "second head"])
def test_some_parameters_adapt(adapts):
    model = HEADS["attention over places"]()
    names = [n for n, _ in model.named_parameters() if n.split(".")[0] in adapts.split()]
    assert_headed(model, adapt_parameters=names)


def test_parameters_that_learn_nothing():
    model = HEADS["gated"]()
    model.first.weight.requires_grad_(False)
    model.left.bias.requires_grad_(False)
    assert_headed(model)


@pytest.mark.parametrize("samples", [1, 16, 17, 40])
def test_any_number_of_samples(variant, samples):
    assert_headed(HEADS["attention over places"](), s=samples, q=samples + 1, t=3)


def test_so_many_numbers_that_samples_go_in_chunks():
    model = Network(lambda m, h: m.wide(h.flatten(1)).relu(), 2000, wide=nn.Linear(96, 2000))
    model.told = lambda m, h: (m.wide(h.flatten(1)) * m.wide(h.flatten(1)).sigmoid())
    assert_headed(model, s=120, q=70, t=1, inner_steps=1)


def test_no_pixels_but_statistics_of_samples_below():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(5, 7), nn.BatchNorm1d(7)
            self.left, self.right, self.out = nn.Linear(7, 4), nn.Linear(7, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = F.relu(self.norm(self.first(x)))
            return self.out(self.left(h).exp() / (1 + self.right(h).exp()))

    assert_headed(Gated(), (5,))


def test_sample_weights_and_padding():
    model = HEADS["cosine"]()
    model.norm = nn.GroupNorm(2, 4)
    meta, tasks = meta_of(model), classification_tasks(SAMPLE, t=3, s=6, q=7)
    weights = [torch.rand(3, n, dtype=torch.float64) * (torch.arange(n) < n - 2) for n in (6, 7)]
    weighted = fm.TaskBatch(
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y,
        support_weight=weights[0], query_weight=weights[1],
    )  # fmt: skip
    assert fm.explain(meta, weighted).name == "resident"
    assert_exact(meta, weighted, tolerance=1e-9)


def test_a_loss_of_ones_own_and_fast_weights():
    def loss(predictions, targets):
        return F.huber_loss(predictions, targets, delta=0.5)

    meta = meta_of(HEADS["recurrent"](), loss=loss)
    x, y = torch.randn(2, 2, 5, *SAMPLE).double(), torch.randn(2, 2, 5, 3).double()
    tasks = fm.TaskBatch(x[0], y[0], x[1], y[1])
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks, tolerance=1e-9)
    inputs = list(meta.parameters())

    def slope():
        fast = meta.adapt(x[0], y[0]).parameters
        return torch.autograd.grad(sum(p.sin().sum() for p in fast.values()), inputs)

    ours = slope()
    with fm.use_backend("reference"):
        assert relative_error(ours, slope()) < 1e-9


def test_at_once_has_the_same_bits_for_any_number_of_threads():
    meta = fm.MAML(HEADS["an encoder"](), inner_lr=0.1, inner_steps=3)
    tasks = classification_tasks(SAMPLE, t=3, s=20, q=30).to(dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            meta.zero_grad()
            meta(tasks).loss.mean().backward()
            results.append([p.grad.clone() for p in meta.parameters()])
            meta.zero_grad()
            meta.forward_backward(tasks)
            results.append([p.grad.clone() for p in meta.parameters()])
    finally:
        torch.set_num_threads(before)
    assert fm.explain(meta, tasks).name == "resident"
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


def test_what_a_head_reads_may_change():
    model = Network(lambda m, h: m.factor * h.amax((2, 3)), factor=1.0)
    meta, tasks = meta_of(model), classification_tasks(SAMPLE, t=2, s=4)
    for factor in (1.0, -2.0):
        model.factor = factor
        assert_exact(meta, tasks, tolerance=1e-9)
    assert fm.explain(meta, tasks).name == "resident"


def test_a_buffer_of_a_head_may_change():
    model = HEADS["a buffer"]()
    meta, tasks = meta_of(model), classification_tasks(SAMPLE, t=2, s=4)
    for _ in range(2):
        assert_exact(meta, tasks, tolerance=1e-9)
        model.table.mul_(-3)


COUNTS = {
    "of the input": lambda m, x, h: h.amax((2, 3)).view(x.size(0), -1),
    "of its shape": lambda m, x, h: h.amax((2, 3)).reshape(x.shape[0], -1),
    "of a size": lambda m, x, h: h.amax((2, 3)).reshape(x.size()[0], -1),
    "in numbers": lambda m, x, h: h.amax((2, 3)) + 0 * x.size(0),
    "of zeros": lambda m, x, h: h.amax((2, 3)) + h.new_zeros(x.size(0), 6),
}


@pytest.mark.parametrize("name", COUNTS)
def test_heads_that_ask_for_the_number_of_samples(name):
    class Counting(Network):
        def forward(self, x):
            shape = x.shape
            h = COUNTS[name](self, x, self.features(x))
            return self.head(h.view(shape[0], -1))

    model = Counting(None)
    meta, tasks = meta_of(model), classification_tasks(SAMPLE, t=2, s=4)
    assert name == "in numbers" or fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks, tolerance=1e-9)


def test_a_head_that_asks_for_the_samples_of_a_layer_below():
    class Counting(Network):
        def forward(self, x):
            h = self.norm(self.first(x))
            features = self.second(F.max_pool2d(F.relu(h), 2))
            return self.head(features.amax((2, 3)).view(h.size(0), -1))

    assert_headed(Counting(None))


def test_a_network_without_parameters():
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return F.hardtanh(x)

    meta = fm.MAML(Bounded(), inner_steps=0, loss="mse")
    x, y = torch.randn(2, 2, 3, 2, 4, 4)
    tasks = fm.TaskBatch(x.requires_grad_(), y, x, y)
    meta(tasks).loss.sum().backward()
    assert x.grad is not None


def shared(m, h):
    return h.mean((2, 3)) + m.first.weight.sum()


def both(m, h):
    return h.amax((2, 3)) + h.mean()


LEFT = {
    "a parameter of both": Network(shared),
    "what mixes samples": Network(both),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_other_engines_is_exact(name):
    model = copy.deepcopy(LEFT[name])
    assert not isinstance(headed_of(model.double(), SAMPLE), Headed)
    meta, tasks = meta_of(model), classification_tasks(SAMPLE, t=2, s=4)
    assert fm.explain(meta, tasks).name != "resident"
    assert_exact(meta, tasks, tolerance=1e-9)


def test_the_reason_is_that_of_the_head():
    model = Network(lambda m, h: h.amax((2, 3)).erf())
    said = fm.explain(meta_of(model), classification_tasks(SAMPLE, t=2, s=4)).passed_over
    assert "what follows the layers read: its forward calls erf" in said["resident"]


def test_explain_knows_heads_without_tasks():
    assert fm.explain(fm.MAML(HEADS["attention over places"]())).name == "resident"
    assert fm.explain(fm.MAML(Network(lambda m, h: h.amax((2, 3)).erf()))).name != "resident"


def test_hooks_are_called():
    model, calls = HEADS["cosine"](), []
    model.second.register_forward_hook(lambda *given: calls.append(1))
    meta, tasks = meta_of(model), classification_tasks(SAMPLE, t=2, s=4)
    assert fm.explain(meta, tasks).name != "resident"
    calls.clear()
    meta(tasks)
    assert calls


# ---- images as predictions -----------------------------------------------------------------------


def to_images(*layers):
    return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), *layers)


OUTPUTS = {
    "images": (to_images(nn.Conv2d(5, 3, 3, padding=1)), (3, 8, 8)),
    "activated": (to_images(nn.BatchNorm2d(5), nn.Conv2d(5, 17, 3, 2), nn.Sigmoid()), (17, 3, 3)),
    "pooled": (to_images(nn.MaxPool2d(2)), (5, 4, 4)),
    "flattened": (to_images(nn.MaxPool2d(2), nn.Flatten()), (80,)),
    "pixels side by side": (to_images(nn.Flatten(2)), (5, 64)),
}


@pytest.mark.parametrize("loss", ["mse", F.mse_loss, "bce"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_images_are_predicted(name, loss):
    model, shape = OUTPUTS[name]
    meta = meta_of(copy.deepcopy(model), loss=loss)
    x, y = torch.randn(2, 2, 4, *SAMPLE).double(), torch.rand(2, 2, 4, *shape).double()
    tasks = fm.TaskBatch(x[0], y[0], x[1], y[1])
    for z in (tasks.support_x, tasks.query_x):
        z.requires_grad_()
    choice = fm.explain(meta, tasks)
    assert choice.name == "resident", choice.passed_over["resident"]
    assert meta(tasks).predictions.shape == (2, 4, *shape)
    inputs = [*meta.parameters(), tasks.support_x, tasks.query_x]
    assert_exact(meta, tasks, inputs, tolerance=1e-9)


def test_another_loss_of_images():
    model, shape = OUTPUTS["images"]
    meta = meta_of(copy.deepcopy(model), loss=F.smooth_l1_loss)
    x, y = torch.randn(2, 2, 4, *SAMPLE).double(), torch.randn(2, 2, 4, *shape).double()
    assert_exact(meta, fm.TaskBatch(x[0], y[0], x[1], y[1]), tolerance=1e-9)


@pytest.mark.parametrize("loss", [F.l1_loss, lambda p, y: (p - y).abs().sum(3).mean()])
def test_a_loss_without_a_second_derivative(loss):
    model, shape = OUTPUTS["images"]
    meta = meta_of(copy.deepcopy(model), loss=loss)
    x, y = torch.randn(2, 2, 4, *SAMPLE).double(), torch.randn(2, 2, 4, *shape).double()
    assert_exact(meta, fm.TaskBatch(x[0], y[0], x[1], y[1]), tolerance=1e-9)


def test_sequences_are_predicted():
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=2, dilation=2), nn.Tanh(), nn.Conv1d(4, 1, 1))
    meta = meta_of(model, loss="mse")
    x, y = torch.randn(2, 2, 4, 2, 9).double(), torch.randn(2, 2, 4, 1, 9).double()
    tasks = fm.TaskBatch(x[0], y[0], x[1], y[1])
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks, tolerance=1e-9)


def test_labels_of_pixels():
    def loss(predictions, targets):
        return F.cross_entropy(predictions, targets)

    model, _ = OUTPUTS["images"]
    meta = meta_of(copy.deepcopy(model), loss=loss)
    x, y = torch.randn(2, 2, 4, *SAMPLE).double(), torch.randint(3, (2, 2, 4, 8, 8))
    tasks = fm.TaskBatch(x[0], y[0], x[1], y[1])
    assert_exact(meta, tasks, tolerance=1e-9)


def test_rows_are_still_rows():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    assert headed_of(model, (3,)) is None
    assert_exact(meta_of(model, loss="mse"), regression_tasks(inputs=3, outputs=2))
