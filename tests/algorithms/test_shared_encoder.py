"""What holds for all algorithms that share an encoder."""

import copy
import io
import math
import pickle

import pytest
import torch
from few_shot import episodes, repeated
from oracle import DOUBLE, gradients, relative_error
from torch import nn

import fastmeta as fm
from fastmeta.models import mlp


def full_context(encoder, **options):
    return fm.MatchingNet(encoder, full_context=True, features=3, **options)


NETS = [fm.ProtoNet, fm.MatchingNet, full_context, fm.R2D2]
COUNTING = [fm.ProtoNet, fm.MatchingNet, fm.R2D2]  # a weight counts like copies


def build(make, encoder=None):
    return make(encoder or mlp([2, 5, 3], "tanh")).double()


@pytest.mark.parametrize("make", NETS)
def test_adapted_is_the_way_to_the_same_predictions(make):
    net, tasks = build(make), episodes()
    adapted, out = net.adapt(tasks.support_x, tasks.support_y), net(tasks)
    assert len(adapted) == 3
    torch.testing.assert_close(adapted(tasks.query_x), out.predictions)
    loss = fm.functional.cross_entropy(adapted(tasks.query_x), tasks.query_y)
    inputs = [p for p in net.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss.sum(), inputs, materialize_grads=True, allow_unused=True)
    right = torch.autograd.grad(net(tasks).loss.sum(), inputs, allow_unused=True)
    right = [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, right, strict=True)]
    assert relative_error(ours, right) < 1e-12


@pytest.mark.parametrize("make", NETS)
def test_every_parameter_learns(make):
    net, tasks = build(make), episodes()
    net(tasks).predictions.sin().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("norm", [False, True])
def test_padding_may_hold_anything(make, norm):
    """With a batch norm too: padding is not in its statistics."""
    encoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3) if norm else nn.Tanh())
    net, tasks = build(make, encoder), episodes(s=5, n_way=2)
    weight = torch.tensor([[1.0, 1, 0, 1, 0, 1, 1]] * 3, dtype=DOUBLE)
    queries = torch.tensor([[0.0, 1, 1, 0, 1, 1]] * 3, dtype=DOUBLE)
    wide_x, wide_y = torch.full((3, 7, 2), math.nan, dtype=DOUBLE), torch.full((3, 7), -1)
    wide_x[weight > 0] = tasks.support_x.flatten(0, 1)
    wide_y[weight > 0] = tasks.support_y.flatten()
    query_x, query_y = torch.full((3, 6, 2), math.inf, dtype=DOUBLE), torch.full((3, 6), 99)
    query_x[queries > 0] = tasks.query_x.flatten(0, 1)
    query_y[queries > 0] = tasks.query_y.flatten()
    padded = fm.TaskBatch(wide_x, wide_y, query_x, query_y, weight, queries)
    inputs = [p for p in net.parameters() if p.requires_grad]

    def loss_and_gradient(tasks):
        out = net(tasks)
        total = (out.loss * torch.arange(1.0, 4, dtype=DOUBLE)).sum()
        grads = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        return out, [out.loss, *grads]

    clean, right = loss_and_gradient(tasks)
    ours, values = loss_and_gradient(padded)
    assert relative_error(values, right) < 1e-12
    torch.testing.assert_close(ours.predictions[queries > 0].view(3, 4, 2), clean.predictions)
    torch.testing.assert_close(ours.accuracy, clean.accuracy)
    if not norm:
        adapted = net.adapt(wide_x, wide_y, weight)
        torch.testing.assert_close(adapted(tasks.query_x), clean.predictions)


def test_padding_gets_the_features_of_the_first_real_sample():
    x = torch.arange(8, dtype=DOUBLE).view(2, 4, 1)
    weight = torch.tensor([[0.0, 1, 0, 1], [1, 0, 1, 0]], dtype=DOUBLE)
    y = torch.zeros(2, 4, dtype=torch.int64)
    support, query = fm.ProtoNet(nn.Identity()).embed(fm.TaskBatch(x, y, 10 * x, y, weight, weight))
    assert support.squeeze(-1).tolist() == [[1, 1, 1, 3], [4, 4, 6, 4]]
    assert torch.equal(query, 10 * support)


@pytest.mark.parametrize("make", COUNTING)
def test_a_weight_counts_like_copies(make):
    net, tasks = build(make), episodes(s=6)
    copies = torch.tensor([1, 2, 1, 3, 1, 2])
    weighted = fm.TaskBatch(
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y,
        copies.to(DOUBLE).expand(3, 6),
    )  # fmt: skip
    inputs = [p for p in net.parameters() if p.requires_grad]
    right = gradients(net, repeated(tasks, copies), inputs)
    assert relative_error(gradients(net, weighted, inputs), right) < 1e-12
    assert relative_error(gradients(net, tasks, inputs), right) > 1e-4


@pytest.mark.parametrize("make", COUNTING)
def test_gradient_into_weights(make):
    net, tasks = build(make), episodes(s=5)

    def loss(support_weight, query_weight):
        parts = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        return net(fm.TaskBatch(*parts, support_weight, query_weight)).loss

    weights = [torch.rand(3, n, dtype=DOUBLE) + 0.5 for n in (5, 4)]
    assert torch.autograd.gradcheck(loss, [w.requires_grad_() for w in weights])


@pytest.mark.parametrize("make", NETS)
def test_weights_of_padding_have_a_finite_gradient(make):
    net, tasks = build(make), episodes(s=7, n_way=2)
    weight = torch.ones(3, 7, dtype=DOUBLE)
    labels = torch.tensor([0, 1, 0, 1, 1, 1, 1]).expand(3, 7)
    weight[:, 4:] = 0
    weight.requires_grad_()
    net(
        fm.TaskBatch(tasks.support_x, labels, tasks.query_x, tasks.query_y, weight)
    ).loss.sum().backward()
    assert torch.isfinite(weight.grad).all() and (weight.grad[:, :4] != 0).any()


@pytest.mark.parametrize("make", NETS)
def test_gradcheck(make):
    net, tasks = build(make, nn.Identity()), episodes(t=2, s=4, q=2, shape=(3,))

    def outputs(support_x, query_x):
        out = net(fm.TaskBatch(support_x, tasks.support_y, query_x, tasks.query_y))
        return out.loss, out.predictions

    inputs = (tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_())
    assert torch.autograd.gradcheck(outputs, inputs)
    assert torch.autograd.gradgradcheck(outputs, inputs)


# ---- the encoder is an ordinary module -----------------------------------------------------------


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.batches = nn.Linear(2, 3), nn.BatchNorm1d(3), []

    def forward(self, x):
        self.batches.append(list(x.shape))
        return self.norm(self.layer(x))


@pytest.mark.parametrize("make", NETS)
def test_one_call_a_batch_and_the_statistics_of_all_its_samples(make):
    encoder, tasks = Counting().double(), episodes()
    net = build(make, encoder)
    net(tasks)
    assert encoder.batches == [[3 * (7 + 4), 2]]
    seen = encoder.layer(torch.cat([tasks.support_x, tasks.query_x], 1).flatten(0, 1))
    torch.testing.assert_close(encoder.norm.running_mean, 0.1 * seen.mean(0).detach())
    # What a batch norm makes of a set depends on all that is in it: here it changes the result.
    assert not torch.equal(net(tasks).predictions[0], net(tasks[:1]).predictions[0])


@pytest.mark.parametrize("make", NETS)
def test_eval_uses_running_statistics_and_leaves_them(make):
    net, tasks = build(make, Counting()), episodes()
    net(tasks)
    net.eval()
    before = copy.deepcopy(net.state_dict())
    alone = torch.cat([net(task).predictions for task in tasks])
    torch.testing.assert_close(net(tasks).predictions, alone)
    adapted = net.adapt(tasks.support_x, tasks.support_y)
    torch.testing.assert_close(adapted(tasks.query_x), alone)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("make", NETS)
def test_precision(make):
    net, tasks = build(make).float(), episodes().to(dtype=torch.float32)
    single = net(tasks)
    double = net.double()(tasks.to(dtype=DOUBLE))
    assert single.loss.dtype is torch.float32
    torch.testing.assert_close(single.loss.double(), double.loss, rtol=1e-4, atol=1e-5)
    if make is full_context:  # the LSTMs are float32 or more
        return
    half = net.bfloat16()(tasks.to(dtype=torch.bfloat16))
    assert half.loss.dtype is half.predictions.dtype is torch.float32
    torch.testing.assert_close(half.loss.double(), double.loss, rtol=0.3, atol=0.1)


@pytest.mark.parametrize("make", NETS)
def test_autocast_is_for_the_encoder_alone(make):
    net, tasks = build(make).float(), episodes().to(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(tasks)
        adapted = net.adapt(tasks.support_x, tasks.support_y)(tasks.query_x)
        features = net.encoder(torch.cat([tasks.support_x, tasks.query_x], 1).flatten(0, 1))
    assert features.dtype is torch.bfloat16 and out.predictions.dtype is torch.float32
    rounded = features.float().unflatten(0, (3, 11)).split([7, 4], 1)
    net.encoder = nn.Identity()
    right = net(fm.TaskBatch(rounded[0], tasks.support_y, rounded[1], tasks.query_y))
    torch.testing.assert_close(out.predictions, right.predictions)
    torch.testing.assert_close(adapted, right.predictions)


@pytest.mark.parametrize("make", NETS)
def test_images_and_any_ways(make):
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    net = build(make, encoder)
    for n_way in (2, 5, 1):
        out = net(episodes(n_way=n_way, shape=(1, 5, 5)))
        assert out.predictions.shape == (3, 4, n_way) and out.accuracy.shape == (3,)
        assert torch.isfinite(out.loss).all()


@pytest.mark.parametrize("make", NETS)
def test_tokens_go_in_too(make):
    encoder = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(12, 3))
    y = torch.tensor([[0, 1, 1]])
    tasks = fm.TaskBatch(torch.randint(10, (1, 3, 4)), y, torch.randint(10, (1, 3, 4)), y)
    assert build(make, encoder)(tasks).loss.dtype is DOUBLE


@pytest.mark.parametrize("make", NETS)
def test_meta_training_learns(make):
    """Classes are directions in the first two inputs, and the third is loud noise."""

    def sample(t):
        angle = torch.rand(t, 3, 1) * 2 * math.pi
        y = torch.arange(3).repeat(t, 6)
        near = angle.gather(1, y.unsqueeze(-1)) + 0.1 * torch.randn(t, 18, 1)
        x = torch.cat([near.cos(), near.sin(), 3 * torch.randn(t, 18, 1)], -1)
        return fm.TaskBatch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])

    net = make(mlp([3, 32, 3]))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses, accuracies = [], []
    for _ in range(120):
        optimizer.zero_grad()
        out = net(sample(16))
        out.loss.mean().backward()
        optimizer.step()
        losses.append(out.loss.mean().item())
        accuracies.append(out.accuracy.mean().item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert sum(accuracies[-10:]) > 1.25 * sum(accuracies[:10])


# ---- it is a module like any other ---------------------------------------------------------------


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole(make, copier):
    net, tasks = build(make), episodes()
    torch.testing.assert_close(copier(net)(tasks).loss, net(tasks).loss)


@pytest.mark.parametrize("make", NETS)
def test_state_dict_round_trip(make):
    net, other, tasks = build(make), build(make), episodes()
    assert not torch.equal(other(tasks).loss, net(tasks).loss)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(tasks).loss, net(tasks).loss)


@pytest.mark.parametrize("make", NETS)
def test_torch_compile_runs_it_as_it_is(make):
    net, tasks = build(make), episodes()
    assert torch.equal(torch.compile(net, backend="eager")(tasks).loss, net(tasks).loss)


@pytest.mark.parametrize("make", NETS)
def test_no_gradient_keeps_no_graph(make):
    net, tasks = build(make), episodes()
    with torch.no_grad():
        assert not net(tasks).loss.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(net(tasks).loss, net(tasks).loss)


# ---- what cannot be asked for --------------------------------------------------------------------


def with_labels(support_y, query_y=((0, 1),)):
    def x(y):
        return torch.randn(len(y), len(y[0]), 2, dtype=DOUBLE)

    return fm.TaskBatch(x(support_y), torch.tensor(support_y), x(query_y), torch.tensor(query_y))


@pytest.mark.parametrize("make", [*NETS, fm.ProtoMAML])
def test_labels_that_make_no_sense_are_refused(make):
    net = build(make)
    with pytest.raises(ValueError, match="no sample of class 1 in task 1"):
        net(with_labels([[0, 1, 2], [0, 2, 2]], [[0], [0]]))
    with pytest.raises(ValueError, match="no sample of class 2 in task 0"):
        net(with_labels([[0, 1]]), n_way=3)
    with pytest.raises(ValueError, match=r"support_y has labels from 0 to 2, but .* 2 classes"):
        net(with_labels([[0, 1, 2]]), n_way=2)
    with pytest.raises(ValueError, match="query_y has labels from 0 to 4"):
        net(with_labels([[0, 1]], [[0, 4]]))
    with pytest.raises(ValueError, match="support_y has labels from -1"):
        net(with_labels([[0, -1]]))
    for n_way in (0, 2.0, True):
        with pytest.raises(ValueError, match="n_way must be a whole number"):
            net(with_labels([[0, 1]]), n_way=n_way)
    with pytest.raises(ValueError, match="no sample of class 0 in task 0"):
        net.adapt(torch.randn(1, 2, 2, dtype=DOUBLE), torch.tensor([[1, 1]]))
    targets = torch.zeros(1, 2, dtype=DOUBLE)
    with pytest.raises(TypeError, match="support_y must be int64 labels, not torch.float64"):
        net.adapt(torch.randn(1, 2, 2, dtype=DOUBLE), targets)
    pairs = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one label a sample, \[T, n\], not \[1, 2, 2\]"):
        net.adapt(torch.randn(1, 2, 2, dtype=DOUBLE), pairs)


@pytest.mark.parametrize("make", NETS)
def test_something_else_than_a_module_and_tasks_is_refused(make):
    with pytest.raises(TypeError, match="encoder must be an nn.Module, not function"):
        make(lambda x: x)
    net = build(make)
    with pytest.raises(TypeError, match="must be a TaskBatch.*, not Tensor"):
        net(torch.zeros(1))
    with pytest.raises(TypeError, match="inputs are torch.float32, the encoder's .* torch.float64"):
        net(episodes().to(dtype=torch.float32))
    tasks = episodes()
    adapted = net.adapt(tasks.support_x, tasks.support_y)
    with pytest.raises(ValueError, match=r"T = 3, not \[2, 4, 2\]"):
        adapted(tasks.query_x[:2])


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize("make", NETS)
def test_an_encoder_that_makes_no_features_is_refused(make):
    with pytest.raises(ValueError, match=r"of \[33, 1, 5, 5\] it made \[33, 1, 3, 3\]"):
        build(make, nn.Conv2d(1, 1, 3))(episodes(shape=(1, 5, 5)))
    with pytest.raises(TypeError, match="must return a tensor, not tuple"):
        build(make, Pair())(episodes())
