import pytest
import torch
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop.prefix import split


def conv_net(norm):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def calls_of(layer):
    """The shapes that a convolution gets from now on; its `forward` stays its own."""
    calls = []
    run = layer._conv_forward
    layer._conv_forward = lambda x, *weights: calls.append(tuple(x.shape)) or run(x, *weights)
    return calls


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Dropout(0.0)])
def test_what_is_below_the_head_changes_no_number(norm):
    model, tasks = conv_net(norm), classification_tasks([2, 6, 6])
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    meta = fm.ANIL(model, "4", inner_steps=3, inner_lr=0.5)
    assert_exact(meta, tasks, [*model.parameters(), tasks.support_x, tasks.query_x])


def test_what_is_below_the_head_runs_once_a_batch():
    model, tasks = conv_net(nn.GroupNorm(2, 4)), classification_tasks([2, 6, 6])
    meta = fm.ANIL(model, "4", inner_steps=3, engine="layered")
    calls = calls_of(model[0])
    meta(tasks)  # looks at the module, which has a new attribute
    calls.clear()
    meta(tasks).loss.sum().backward()
    assert calls == [(15, 2, 6, 6), (12, 2, 6, 6)]
    calls.clear()
    meta.adapt(tasks.support_x, tasks.support_y)
    assert calls == [(15, 2, 6, 6)]


def test_the_reference_sees_the_whole_model():
    model, tasks = conv_net(nn.GroupNorm(2, 4)), classification_tasks([2, 6, 6])
    meta = fm.ANIL(model, "4", inner_steps=3)
    calls = calls_of(model[0])
    with fm.use_backend("reference"):
        meta(tasks)
    assert len(calls) > 12


def test_a_cut_keeps_names_and_mode():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 1)).eval()
    below, above = split(model, ("1.0.bias",))
    assert below.names == ("0.weight", "0.bias") and below.flat
    assert "1.0.weight" in dict(above.named_parameters())
    assert below.module[0] is model[0] and above[1] is model[2] and not above[1].training


def test_where_there_is_no_prefix():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    assert split(model, ("0.weight",)) is None
    assert split(nn.ModuleList([model]), ("0.2.weight",)) is None
    model[2].weight = model[1].weight = model[0].weight
    assert split(model, ("2.bias",)) is None
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model.register_forward_hook(lambda *_: None)
    assert split(model, ("1.weight",)) is None


def test_features_of_a_set_that_is_support_and_query_are_computed_once():
    model = conv_net(nn.GroupNorm(2, 4))
    tasks = classification_tasks([2, 6, 6])
    both = fm.TaskBatch.of_support(tasks.support_x, tasks.support_y)
    below, _ = split(model, ("4.weight",))
    seen = below.features(dict(model.named_parameters()), both)
    assert seen.query_x is seen.support_x and seen.support_x.shape == (3, 5, 64)
    torch.testing.assert_close(seen.support_x[1], below.module(tasks.support_x[1]))
