import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from few_shot import assert_like_the_loop, episodes
from oracle import DOUBLE
from torch import nn
from torch.nn import functional as F

import fastmeta as fm
from fastmeta.models import mlp

DISTANCES = {
    "sqeuclidean": lambda x, c: (x - c).square().sum(-1),
    "euclidean": lambda x, c: (x - c).square().sum(-1).sqrt(),
    "cosine": lambda x, c: -F.cosine_similarity(x, c, dim=-1) + 1,
    "dot": lambda x, c: -(x * c).sum(-1),
}


def one_task(net, transform=lambda x: x):
    def predict(support_x, support_y, query_x):
        support, query = transform(net.encoder(support_x)), transform(net.encoder(query_x))
        means = [support[support_y == n].mean(0) for n in range(int(support_y.max()) + 1)]
        distances = DISTANCES[net.metric](query.unsqueeze(1), torch.stack(means))
        return -distances / net.temperature.log.exp()

    return predict


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("learn", [False, True])
def test_equals_the_loop(metric, learn):
    net = fm.ProtoNet(
        mlp([2, 5, 3], "tanh"), metric=metric, temperature=0.7, learn_temperature=learn
    ).double()
    assert net.temperature.log.requires_grad is learn
    assert_like_the_loop(net, episodes(), one_task(net))


@pytest.mark.parametrize("normalize", [False, True])
def test_simple_shot_equals_the_loop(normalize):
    mean = torch.randn(3, dtype=DOUBLE)
    net = fm.ProtoNet(mlp([2, 5, 3], "tanh"), mean=mean, normalize=normalize).double()

    def transform(features):
        return F.normalize(features - mean, dim=-1) if normalize else features - mean

    assert_like_the_loop(net, episodes(), one_task(net, transform))


def test_the_mean_is_a_buffer_that_can_be_set():
    net, tasks = fm.ProtoNet(mlp([2, 5, 3]), normalize=True).double(), episodes()
    plain = net(tasks).predictions
    net.mean = net.encoder(tasks.support_x.flatten(0, 1)).mean(0).detach()
    assert not torch.allclose(net(tasks).predictions, plain)
    assert "mean" in net.state_dict() and net.float().mean.dtype is torch.float32
    net.mean = torch.zeros(4)
    with pytest.raises(ValueError, match=r"mean is \[4\], the features \[3, 7, 3\]"):
        net(tasks.to(dtype=torch.float32))


def test_simple_shot_centres_on_the_mean_of_all_batches_in_eval_mode():
    encoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    net, x = fm.ProtoNet(encoder), torch.randn(7, 2, dtype=DOUBLE)
    net.simple_shot(x.split([2, 5]))
    assert net.training and net.normalize and encoder[1].num_batches_tracked == 0
    torch.testing.assert_close(net.mean, encoder.eval()(x).mean(0))
    assert not net.mean.requires_grad
    net.simple_shot()
    assert net.mean is None and net.normalize
    with pytest.raises(ValueError, match="inputs must hold a batch"):
        net.simple_shot([])


def test_the_mode_stays_where_the_encoder_fails():
    net = fm.ProtoNet(nn.Linear(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        net.simple_shot([torch.randn(4, 5)])
    assert net.training and net.encoder.training


def test_prototypes_are_there_after_adapting():
    net, tasks = fm.ProtoNet(mlp([2, 5, 3])).double(), episodes()
    head = net.adapt(tasks.support_x, tasks.support_y).head
    features = net.encoder(tasks.support_x[1])
    assert head.prototypes.shape == (3, 3, 3)
    torch.testing.assert_close(head.prototypes[1, 2], features[tasks.support_y[1] == 2].mean(0))


def test_adapted_has_the_temperature_too():
    net, tasks = fm.ProtoNet(mlp([2, 3]), temperature=0.2).double(), episodes()
    adapted = net.adapt(tasks.support_x, tasks.support_y)
    torch.testing.assert_close(adapted(tasks.query_x), net(tasks).predictions)


@pytest.mark.parametrize(
    "options", [{"normalize": True}, {"metric": "cosine"}, {"metric": "euclidean"}]
)
def test_zero_features_have_a_finite_gradient(options):
    net = fm.ProtoNet(nn.Linear(2, 3), **options).double()
    nn.init.zeros_(net.encoder.weight), nn.init.zeros_(net.encoder.bias)
    loss = net(episodes()).loss
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(3)))
    loss.sum().backward()
    assert all(p.grad.abs().max() < 1e3 for p in net.encoder.parameters())


class LeafEncoder(nn.Module):
    """Learns what to add to square roots, whose distance suits histograms (Hellinger's)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 64)
        )

    def forward(self, x):
        x = 8 * x.sqrt()
        return x + self.layers(x)


def test_leaves_of_unseen_species():
    """An encoder that learned from 60 species tells 40 others apart better than raw features."""
    folder = os.environ.get("FASTMETA_DATA")
    if folder is None:
        pytest.skip("FASTMETA_DATA does not name the folder of the data")
    with np.load(Path(folder) / "tabular" / "leaves100.npz") as file:
        margin, labels = torch.from_numpy(file["margin"]), torch.from_numpy(file["labels"]).long()
    species = torch.stack([margin[labels == n] for n in torch.randperm(100)])  # [100, 16, 64]
    net = fm.ProtoNet(LeafEncoder())
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        net(leaves(species[:60], 2, n_way=30)).loss.mean().backward()
        optimizer.step()
    net.eval()
    tasks = leaves(species[60:], 600, n_way=5)
    with torch.no_grad():
        gain = net(tasks).accuracy - fm.ProtoNet(nn.Identity())(tasks).accuracy
    assert gain.mean() > 2 * 1.96 * gain.std() / len(gain) ** 0.5


def leaves(species, t, n_way):
    """1 support and 5 query samples a class."""
    classes = torch.rand(t, len(species)).argsort(1)[:, :n_way, None]
    chosen = species[classes, torch.rand(t, n_way, 16).argsort(2)[..., :6]]
    y = torch.arange(n_way).expand(t, n_way)
    query_y = y.repeat_interleave(5, 1)
    return fm.TaskBatch(chosen[:, :, 0], y, chosen[:, :, 1:].flatten(1, 2), query_y)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"metric": "manhattan"}, ValueError, "metric must be one of"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0"),
        ({"temperature": math.inf}, ValueError, "temperature must be above 0"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, not str"),
        ({"mean": torch.zeros(2, 2)}, ValueError, r"mean must be a tensor \[D\], not \[2, 2\]"),
        ({"mean": 0.5}, ValueError, r"mean must be a tensor \[D\], not float"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        fm.ProtoNet(mlp([2, 3]), **options)
