import copy
import math
import pickle

import pytest
import torch
from few_shot import episodes
from oracle import DOUBLE, assert_exact, assert_slope, gradients, outer_loss, relative_error
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import fastmeta as fm
from fastmeta.algorithms import proto_maml
from fastmeta.backends import cpu
from fastmeta.models import conv4, mlp

ENGINES = ["auto", "vmap", "reference"]


class Loop(nn.Module):
    """One task after another, written out."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, tasks):
        parts = (tasks.support_x, tasks.support_y, tasks.query_x)
        predictions = torch.stack([self.predict(*task) for task in zip(*parts, strict=True)])
        losses = [F.cross_entropy(p, y) for p, y in zip(predictions, tasks.query_y, strict=True)]
        return fm.MetaOutput(torch.stack(losses), predictions, tasks.query_y)

    def predict(self, x, y, query_x):
        net, own = self.net, dict(self.net.encoder.named_parameters())

        def classify(theta, x):
            encoder = {name: p for name, p in theta.items() if name not in ("w", "b")}
            return functional_call(net.encoder, encoder, (x,)) @ theta["w"].T + theta["b"]

        features = functional_call(net.encoder, own, (x,))
        c = torch.stack([features[y == n].mean(0) for n in range(int(y.max()) + 1)])
        theta = {**own, "w": 2 * c, "b": -c.square().sum(1)}
        theta = {name: p.view_as(p) for name, p in theta.items()}  # independent of each other
        for _ in range(net.inner_steps):
            moving = [name for name, p in theta.items() if p.requires_grad]
            loss = F.cross_entropy(classify(theta, x), y)
            grads = torch.autograd.grad(loss, [theta[n] for n in moving], create_graph=True)
            if net.order == 1:
                grads = [g.detach() for g in grads]
            for name, g in zip(moving, grads, strict=True):
                theta[name] = theta[name] - net.inner_lr * g
        return classify(theta, query_x)


def build(encoder=None, **options):
    return fm.ProtoMAML(
        (encoder or mlp([2, 5, 3], "tanh")).double(),
        **{"inner_lr": 0.3, "inner_steps": 2, **options},
    )


def assert_like_the_loop(net, tasks, tolerance=1e-11):
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    inputs = [p for p in net.parameters() if p.requires_grad] + [tasks.support_x, tasks.query_x]
    loop = Loop(net)
    out, right = net(tasks), loop(tasks)
    assert relative_error([out.predictions], [right.predictions]) < tolerance
    assert relative_error([out.loss], [right.loss]) < tolerance
    ours, rights = gradients(net, tasks, inputs), gradients(loop, tasks, inputs)
    assert relative_error(ours, rights) < tolerance


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_equals_the_loop(engine, order, steps):
    assert_like_the_loop(build(engine=engine, order=order, inner_steps=steps), episodes())


@pytest.mark.parametrize("engine", ENGINES)
def test_convolutions_and_norms_equal_the_loop(engine):
    net = build(conv4(None, filters=3, image_size=8, layers=2), engine=engine)
    assert_like_the_loop(net, episodes(s=5, n_way=2, shape=(1, 8, 8)), tolerance=1e-9)


def test_the_start_of_the_head_is_differentiated_too():
    net, tasks = build(inner_steps=1), episodes()
    assert_slope(lambda: outer_loss(net, tasks), list(net.parameters()))


def test_without_steps_it_is_a_prototypical_network():
    net, tasks = build(), episodes()
    right = fm.ProtoNet(net.encoder)(tasks)
    torch.testing.assert_close(net(tasks, inner_steps=0).loss, right.loss)
    assert not torch.allclose(net(tasks).loss, right.loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frozen_encoder_leaves_the_head_to_adapt(engine):
    net, tasks = build(engine=engine), episodes()
    net.encoder[0].requires_grad_(False)
    assert_like_the_loop(net, tasks)
    assert net.adapt(tasks.support_x, tasks.support_y).parameters["encoder.0.weight"].dim() == 2
    net.encoder.requires_grad_(False)
    assert_like_the_loop(net, tasks)
    assert_like_the_loop(build(nn.Identity(), engine=engine), episodes())


@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_the_same_without_a_gradient(engine):
    net, tasks = build(engine=engine), episodes()
    with torch.no_grad():
        out = net(tasks)
        adapted = net.adapt(tasks.support_x, tasks.support_y)
    assert not out.loss.requires_grad and adapted.parameters["encoder.0.weight"].dim() == 3
    torch.testing.assert_close(out.loss, net(tasks).loss)
    torch.testing.assert_close(adapted(tasks.query_x), out.predictions)


def test_adapted_is_the_way_to_the_same_predictions():
    net, tasks = build(), episodes()
    adapted = net.adapt(tasks.support_x, tasks.support_y)
    torch.testing.assert_close(adapted(tasks.query_x), net(tasks).predictions)
    assert adapted.parameters["head.weight"].shape == (3, 3, 3)
    assert adapted.parameters["encoder.0.weight"].shape == (3, 5, 2)
    before = net.adapt(tasks.support_x, tasks.support_y, inner_steps=0).parameters
    c = fm.functional.prototypes(net.encoder(tasks.support_x), tasks.support_y, 3)
    torch.testing.assert_close(before["head.weight"], 2 * c)


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_may_hold_anything(engine):
    net, tasks = build(engine=engine), episodes(s=5, n_way=2)
    weight = torch.tensor([[1.0, 1, 0, 1, 0, 1, 1]] * 3, dtype=DOUBLE)
    x, y = torch.full((3, 7, 2), math.nan, dtype=DOUBLE), torch.full((3, 7), -1)
    x[weight > 0], y[weight > 0] = tasks.support_x.flatten(0, 1), tasks.support_y.flatten()
    padded = fm.TaskBatch(x, y, tasks.query_x, tasks.query_y, weight)
    inputs = list(net.parameters())
    right = gradients(net, tasks, inputs)
    assert relative_error(gradients(net, padded, inputs), right) < 1e-12


def test_ways_may_differ_from_batch_to_batch():
    net = build()
    for n_way in (2, 5, 3):
        assert net(episodes(n_way=n_way)).predictions.shape == (3, 4, n_way)
        assert_exact(net, episodes(n_way=n_way))


def test_only_the_encoder_is_learned_and_buffers_stay():
    encoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    net, tasks = build(encoder), episodes()
    assert list(net.parameters()) == list(encoder.parameters())
    before = copy.deepcopy(net.state_dict())
    assert_exact(net, tasks)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_copies_are_whole():
    net, tasks = build(), episodes()
    net(tasks)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(tasks).loss, net(tasks).loss)


def test_first_order_never_comes_silently():
    net, tasks = build(), episodes()
    inputs = list(net.parameters())
    assert relative_error(
        gradients(build(net.encoder, order=1), tasks, inputs), gradients(net, tasks, inputs)
    ) > 1e-3  # fmt: skip
    with pytest.raises(RuntimeError, match="reference"):
        torch.autograd.grad(net(tasks).loss.sum(), inputs, create_graph=True)

    @torch.enable_grad()
    def steepness():
        grads = torch.autograd.grad(net(tasks).loss.sum(), inputs, create_graph=True)
        return sum(g.square().sum() for g in grads)

    with fm.use_backend("reference"):
        assert_slope(steepness, inputs, tolerance=1e-6)


def test_meta_training_learns():
    net = fm.ProtoMAML(mlp([3, 32, 8]), inner_lr=0.1, inner_steps=2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(100):
        angle = torch.rand(16, 3, 1) * 2 * math.pi
        y = torch.arange(3).repeat(16, 6)
        near = angle.gather(1, y.unsqueeze(-1)) + 0.1 * torch.randn(16, 18, 1)
        x = torch.cat([near.cos(), near.sin(), 3 * torch.randn(16, 18, 1)], -1)
        optimizer.zero_grad()
        loss = net(fm.TaskBatch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])).loss.mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"inner_lr": -0.1}, ValueError, "not negative"),
        ({"inner_lr": "fast"}, TypeError, "number"),
        ({"inner_steps": -1}, ValueError, "at least 0"),
        ({"order": 3}, ValueError, "order must be 1 or 2"),
        ({"engine": "gpu"}, ValueError, "engine must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        build(**options)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="encoder must be an nn.Module, not function"):
        fm.ProtoMAML(lambda x: x)
    with pytest.raises(TypeError, match="must be a TaskBatch.*, not Tensor"):
        build()(torch.zeros(1))
    with pytest.raises(ValueError, match=r"support_x \[7, 1, 5, 5\]: it made \[7, 1, 3, 3\]"):
        build(nn.Conv2d(1, 1, 3))(episodes(shape=(1, 5, 5)))
    with pytest.raises(ValueError, match="inner steps must be"):
        build()(episodes(), inner_steps=-2)
    with pytest.raises(TypeError, match="float32"):
        build()(episodes().to(dtype=torch.float32))


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3)

    def forward(self, x):
        return torch.tanh(self.norm(self.conv(x))).mean(3).flatten(1)


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
def test_an_encoder_written_by_hand_runs_in_the_native_kernels_and_is_looked_at_once(monkeypatch):
    encoder, tasks = ByHand(), episodes(s=5, n_way=2, shape=(1, 8, 8))
    meta = build(encoder, inner_steps=2)
    assert_like_the_loop(meta, tasks, tolerance=1e-9)
    assert fm.explain(meta, tasks).name == "resident"
    monkeypatch.setattr(proto_maml, "choose", None)
    meta(tasks)
    encoder.norm.eps = 0.5
    with pytest.raises(TypeError, match="NoneType"):
        meta(tasks)
