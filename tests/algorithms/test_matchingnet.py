from dataclasses import replace

import pytest
import torch
from few_shot import assert_like_the_loop, episodes
from oracle import DOUBLE
from torch import nn
from torch.nn import functional as F

import fastmeta as fm
from fastmeta.models import mlp

SCORES = {
    "sqeuclidean": lambda x, g: -(x - g).square().sum(-1),
    "euclidean": lambda x, g: -(x - g).square().sum(-1).sqrt(),
    "cosine": lambda x, g: F.cosine_similarity(x, g, dim=-1),
    "dot": lambda x, g: (x * g).sum(-1),
}


def one_task(net):
    def predict(support_x, support_y, query_x):
        support, query = net.encoder(support_x), net.encoder(query_x)
        if net.context is not None:
            support = bidirectional(net.context.support_lstm, support)
            query = torch.stack([attentive(net.context, f, support) for f in query])
        scores = SCORES[net.metric](query.unsqueeze(1), support)
        attention = (scores / net.temperature.log.exp()).softmax(1)
        return (attention @ F.one_hot(support_y).to(attention.dtype)).log()

    return predict


def bidirectional(lstm, features):
    """Two LSTMs, written out."""
    states = []
    for suffix, order in (("", range(len(features))), ("_reverse", range(len(features))[::-1])):
        weights = [getattr(lstm, f"{n}_l0{suffix}") for n in ("weight_ih", "weight_hh")]
        biases = [getattr(lstm, f"{n}_l0{suffix}") for n in ("bias_ih", "bias_hh")]
        h = c = torch.zeros_like(features[0])
        seen = {}
        for i in order:
            h, c = lstm_step(*weights, sum(biases), features[i], h, c)
            seen[i] = h
        states.append(torch.stack([seen[i] for i in range(len(features))]))
    return states[0] + states[1] + features


def attentive(context, feature, support):
    """The LSTM of one query, whose state is [h, r] as in the paper."""
    cell, width = context.query_lstm, len(feature)
    of_input = cell.weight_ih[:, :width]
    of_state = torch.cat([cell.weight_hh, cell.weight_ih[:, width:]], 1)
    h, c = feature, torch.zeros_like(feature)
    for _ in range(context.steps):
        r = (support @ h).softmax(0) @ support
        bias = cell.bias_ih + cell.bias_hh
        h, c = lstm_step(of_input, of_state, bias, feature, torch.cat([h, r]), c)
        h = h + feature
    return h


def lstm_step(of_input, of_state, bias, x, h, c):
    i, f, g, o = (of_input @ x + of_state @ h + bias).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@pytest.mark.parametrize("metric", SCORES)
@pytest.mark.parametrize("learn", [False, True])
def test_equals_the_loop(metric, learn):
    net = fm.MatchingNet(
        mlp([2, 5, 3], "tanh"), metric=metric, temperature=0.3, learn_temperature=learn
    ).double()
    assert_like_the_loop(net, episodes(), one_task(net))


@pytest.mark.parametrize("learner", [fm.MatchingNet, fm.ProtoNet])
def test_a_temperature_beside_a_float64_encoder_has_all_its_digits(learner):
    net = learner(mlp([2, 3]).double(), temperature=0.3)
    assert abs(net.temperature(torch.zeros((), dtype=torch.float64)).item() - 0.3) < 1e-15


@pytest.mark.parametrize("steps", [1, 3])
def test_full_context_equals_the_loop(steps):
    net = fm.MatchingNet(
        mlp([2, 5, 3], "tanh"), full_context=True, features=3, processing_steps=steps
    ).double()
    assert_like_the_loop(net, episodes(), one_task(net))


def test_the_context_matters():
    net = fm.MatchingNet(mlp([2, 3]), full_context=True, features=3).double()
    tasks = episodes()
    other = fm.TaskBatch(
        torch.cat([tasks.support_x[:, :-1], tasks.support_x[:, -1:] + 1], 1),
        tasks.support_y, tasks.query_x, tasks.query_y,
    )  # fmt: skip
    g, h = (net.adapt(b.support_x, b.support_y).head.support for b in (tasks, other))
    assert ((g - h)[:, 0].abs() > 1e-6).any()


def test_predictions_are_log_probabilities():
    out = fm.MatchingNet(mlp([2, 3])).double()(episodes())
    torch.testing.assert_close(out.predictions.exp().sum(-1), torch.ones(3, 4, dtype=DOUBLE))


def test_a_class_far_from_the_query_has_a_finite_loss():
    support_x = torch.tensor([[[0.0], [100.0], [101.0]]], requires_grad=True)
    query_y = torch.tensor([[1]])
    tasks = fm.TaskBatch(support_x, torch.tensor([[0, 1, 1]]), torch.zeros(1, 1, 1), query_y)
    out = fm.MatchingNet(nn.Identity(), metric="sqeuclidean")(tasks)
    torch.testing.assert_close(out.predictions, torch.tensor([[[0.0, -1e4]]]))
    torch.testing.assert_close(out.loss, torch.tensor([1e4]))
    (grad,) = torch.autograd.grad(out.loss.sum(), support_x)
    torch.testing.assert_close(grad.flatten(), torch.tensor([0.0, 200.0, 0.0]))


def test_padding_near_the_query_does_not_push_out_its_class():
    head = fm.MatchingNet(nn.Identity(), metric="sqeuclidean").adapt(
        torch.tensor([[[40.0], [-50.0], [60.0]]]), torch.tensor([[0, 1, 1]])
    ).head  # fmt: skip
    near = torch.tensor([[[40.0], [-50.0], [0.0]]])
    padded = replace(head, support=near, weight=torch.tensor([[1.0, 1.0, 0.0]]))
    predictions = padded(torch.zeros(1, 1, 1))
    torch.testing.assert_close(predictions, torch.tensor([[[0.0, 1600.0 - 2500.0]]]))


def test_full_context_needs_its_width():
    with pytest.raises(ValueError, match="full_context needs features"):
        fm.MatchingNet(mlp([2, 3]), full_context=True)
    for options in ({"features": 0}, {"features": 3, "processing_steps": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            fm.MatchingNet(mlp([2, 3]), full_context=True, **options)
    with pytest.raises(ValueError, match="metric must be one of"):
        fm.MatchingNet(mlp([2, 3]), metric="manhattan")
