import pytest
import torch
from few_shot import episodes
from torch import nn

import fastmeta as fm
from fastmeta.training.embedding import look_of, plot_embedding, project

DOUBLE = torch.float64


def test_the_plane_is_where_samples_vary_most():
    torch.manual_seed(3)
    plane, _ = torch.linalg.qr(torch.randn(6, 2, dtype=DOUBLE))
    inside = torch.randn(30, 2, dtype=DOUBLE) * torch.tensor([3.0, 1.0], dtype=DOUBLE)
    samples = inside @ plane.T + 5 + 1e-3 * torch.randn(30, 6, dtype=DOUBLE)
    means = torch.stack([samples[:10].mean(0), samples[10:].mean(0)])
    (support, query, centres), shares = project(samples[:10], samples[10:], means)
    assert support.shape == (10, 2) and query.shape == (20, 2)
    assert shares[0] > shares[1] > 0.01 and shares.sum() > 0.999
    flat = torch.cat([support, query])
    torch.testing.assert_close(torch.cdist(flat, flat), torch.cdist(samples, samples),
                               rtol=0, atol=0.02)  # fmt: skip
    torch.testing.assert_close(centres, torch.stack([support.mean(0), query.mean(0)]))
    again = project(samples[:10], samples[10:], means)[0]
    torch.testing.assert_close(again[0], support)


@pytest.mark.parametrize(("count", "width"), [(1, 4), (5, 1), (1, 1)])
def test_fewer_dimensions_than_the_plane(count, width):
    x = torch.randn(count, width, dtype=DOUBLE)
    (support, query, means), shares = project(x, x, x[:1])
    assert support.shape == query.shape == (count, 2) and means.shape == (1, 2)
    assert torch.isfinite(shares).all() and torch.isfinite(support).all()


@pytest.mark.parametrize("make", [fm.ProtoNet, fm.MatchingNet, fm.R2D2])
def test_a_picture_of_padded_tasks(make, tmp_path):
    plain = episodes(t=4, s=7, n_way=2)
    weight = torch.ones(4, 7, dtype=DOUBLE)
    weight[:, 6] = 0
    labels = torch.tensor([0, 1, 0, 1, 1, 1, 9]).expand(4, 7)
    tasks = fm.TaskBatch(plain.support_x, labels, plain.query_x, plain.query_y, weight)
    net = make(nn.Linear(2, 3).double()).double().eval()
    path = tmp_path / "tasks.png"
    plot_embedding(net, tasks, path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="nonsense"):
        plot_embedding(net, tasks, tmp_path / "tasks.nonsense")


def test_the_learner_stays_as_it_is(tmp_path):
    net = fm.ProtoNet(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))).double().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plot_embedding(net, episodes(n_way=5), tmp_path / "tasks.svg")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_hundred_classes_are_told_apart(tmp_path):
    assert len({tuple(look_of(label).values()) for label in range(100)}) == 100
    net = fm.ProtoNet(nn.Identity())
    path = tmp_path / "tasks.svg"
    plot_embedding(net, episodes(t=1, s=24, q=24, n_way=12), path)
    drawn = path.read_text()
    assert all(f"<!-- {label} -->" in drawn for label in range(12))
