"""Networks of sequences [C, L] on the resident engine, against the reference in float64."""

import pytest
import torch
import torch.nn.functional as F
from oracle import DOUBLE, assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.reading.stages import never_fits, stages_of

pytestmark = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"
)

C, L = 3, 20


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv1d(inputs, outputs, kernel, **options)


MODELS = {
    "plain": lambda: [conv(C, 5), nn.ReLU(), nn.Flatten(), nn.Linear(90, 3)],
    "strides and padding": lambda: [
        conv(C, 5, 5, stride=2, padding=2), nn.Tanh(), conv(5, 17, 3, padding="same", bias=False),
        nn.SiLU(), conv(17, 4, 4, padding="valid"), nn.Flatten(), nn.Linear(28, 3),
    ],
    "batch norm and max pool": lambda: [
        conv(C, 6, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
        conv(6, 8), nn.BatchNorm1d(8), nn.ELU(), nn.MaxPool1d(2, 3), nn.Flatten(), nn.Linear(24, 3),
    ],
    "group norm and average pool": lambda: [
        conv(C, 6), nn.GroupNorm(3, 6), nn.GELU(), nn.AvgPool1d(3), conv(6, 8),
        nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3),
    ],
    "instance norm": lambda: [
        conv(C, 6), nn.InstanceNorm1d(6, affine=True, track_running_stats=True), nn.ReLU(),
        conv(6, 4), nn.InstanceNorm1d(4), nn.Flatten(), nn.Linear(64, 3),
    ],
    "layer norms": lambda: [
        conv(C, 6), nn.LayerNorm([6, 18]), nn.ReLU(), conv(6, 4), nn.LayerNorm(16), nn.Flatten(),
        nn.LayerNorm(64), nn.Linear(64, 3),
    ],
    "a pool first": lambda: [
        nn.MaxPool1d(2), conv(C, 5), nn.Sigmoid(), nn.Flatten(), nn.Linear(40, 3),
    ],
    "one step": lambda: [conv(C, 5, L), nn.Mish(), nn.Flatten(), nn.Linear(5, 3)],
}  # fmt: skip


def meta_of(model, **options):
    options = {"inner_steps": 2, "inner_lr": 0.2, **options}
    return fm.MAML(model.double(), engine="resident", **options)


@pytest.mark.parametrize("options", [{}, {"learn_inner_lr": "element", "order": 1}])
@pytest.mark.parametrize("name", MODELS)
def test_sequences_are_exact(name, options):
    meta = meta_of(nn.Sequential(*MODELS[name]()), **options)
    tasks = classification_tasks([C, L], t=3)
    tasks.support_x.requires_grad_()
    tasks.query_x.requires_grad_()
    # A bias before a norm has a gradient of 0 but for rounding.
    assert_exact(meta, tasks, [*meta.parameters(), tasks.support_x, tasks.query_x], 1e-9)


def test_ragged_sequences_and_fast_weights():
    meta = meta_of(nn.Sequential(*MODELS["instance norm"]()))
    tasks = classification_tasks([C, L], t=4)
    weight = torch.ones(4, 5, dtype=DOUBLE)
    weight[1, 3:], weight[2, 0] = 0, 2.5
    x, y = tasks.support_x, tasks.support_y
    ragged = fm.TaskBatch(x, y, tasks.query_x, tasks.query_y, support_weight=weight)
    assert_exact(meta, ragged, [*meta.parameters()], 1e-9)
    fast = meta.adapt(x, y, weight).parameters
    with fm.use_backend("reference"):
        expected = meta_of(meta.model).adapt(x, y, weight).parameters
    for key, value in fast.items():
        torch.testing.assert_close(value, expected[key])


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = conv(C, 6, padding=1), nn.BatchNorm1d(6)
        self.second, self.out = conv(6, 6, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        x = F.max_pool1d(F.relu(self.norm(self.first(x))), 2)
        x = F.avg_pool1d(x + F.silu(self.second(x)), 2)
        return self.out(x.mean(-1))


def test_a_forward_by_hand():
    assert_exact(meta_of(ByHand()), classification_tasks([C, L]), tolerance=1e-9)


@pytest.mark.parametrize(
    ("layers", "sample", "said"),
    [
        ([nn.Conv2d(C, 4, 1)], (C, L), "gets samples"),
        ([conv(C, 4)], (C, 5, 5), "gets samples"),
        ([conv(C, 4)], (C,), "gets flat samples"),
        ([conv(C, 4), nn.MaxPool2d(1)], (C, L), "gets samples"),
        ([conv(C, 4), nn.BatchNorm2d(4)], (C, L), "gets samples"),
        ([conv(C, 4), nn.AdaptiveAvgPool1d(4)], (C, L), "not alike"),
        ([conv(C, 4), nn.MaxPool1d(4, ceil_mode=True)], (C, L), "ceil_mode"),
        ([conv(C, 4), nn.MaxPool1d(40)], (C, L), "leaves nothing"),
        ([conv(C, 4), nn.AvgPool1d(2, padding=1, count_include_pad=False)], (C, L), "padding"),
        ([conv(C, 9, groups=3)], (C, L), "groups"),
        ([conv(C, 4, 30)], (C, L), "leaves nothing"),
        ([conv(C, 4, L), nn.InstanceNorm1d(4)], (C, L), "single pixels"),
        ([conv(C, 4), nn.Linear(18, 3)], (C, L), "not flattened"),
        ([conv(C, 4), nn.LayerNorm([4, 1, 18])], (C, L), "is over"),
    ],
)
def test_what_sequences_cannot_have(layers, sample, said):
    assert said in stages_of(nn.Sequential(*layers, nn.Flatten()), sample)
    never = said in ("overlap", "padding", "dilation", "groups", "unevenly")
    assert (never_fits(nn.Sequential(*layers, nn.Flatten())) is not None) == never


def test_the_same_bits_for_any_number_of_threads():
    model = nn.Sequential(*MODELS["batch norm and max pool"]())
    meta, tasks = meta_of(model), classification_tasks([C, L], t=7)
    found, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(torch.autograd.grad(meta(tasks).loss.sum(), [*model.parameters()]))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
