"""Losses of users that are read: which have a name, which are programs, and what is neither."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn, square

from fastmeta.backends import cpu
from fastmeta.functional import loss_programs
from fastmeta.functional.loss_programs import (
    CrossEntropyAtPlaces,
    LossProgram,
    Unreadable,
    read_loss,
    values_read,
)
from fastmeta.functional.row_programs import spelled

FACTOR = 1.0
QUANTILES = torch.tensor([0.1, 0.5, 0.9])


def read(loss, outputs=3, targets=3, labels=False, samples=4):
    predictions = torch.randn(samples, outputs)
    wanted = torch.zeros(samples).long() if labels else torch.randn(samples, targets)
    return read_loss(loss, predictions, wanted)


def steps(loss, **options):
    program = read(loss, **options)
    assert isinstance(program, LossProgram)
    return [step[0] for step in program.steps]


def in_lines(p, y):
    gap = p - y
    return (gap * gap).mean()


def with_an_import_of_its_own():
    import torch.nn.functional as own

    return lambda p, y: own.mse_loss(p, y)


def slope_of(p):
    return torch.autograd.grad((p**3).sum(), p, create_graph=True)[0]


def half(x):
    return 0.5 * x


MSE = [
    lambda p, y: ((p - y) ** 2).mean(),
    lambda p, y: (y - p).pow(2.0).mean(),
    lambda p, y: (p - y).square().mean(),
    lambda p, y: torch.mean(torch.square(torch.sub(p, y))),
    lambda p, y: square(p - y).mean(),
    lambda p, y: F.mse_loss(p, y),
    lambda p, y: F.mse_loss(input=y, target=p, reduction="mean"),
    lambda p, y: F.mse_loss(p.view(-1), y.flatten()),
    lambda p, y: ((p - y) ** 2).mean(1).mean(),
    functools.partial(F.mse_loss, reduction="mean"),
    nn.MSELoss(),
    in_lines,
    with_an_import_of_its_own(),
]


@pytest.mark.parametrize("loss", MSE)
def test_a_mean_squared_error_goes_by_its_name(loss):
    assert read(loss) == "mse"
    assert read(loss, outputs=1, targets=1) == "mse"


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, y: F.cross_entropy(p, y),
        lambda p, y: F.cross_entropy(input=p, target=y),
        lambda p, y: F.nll_loss(F.log_softmax(p, -1), y),
        lambda p, y: F.nll_loss(p.log_softmax(1), y),
        nn.CrossEntropyLoss(),
    ],
)
def test_a_cross_entropy_goes_by_its_name(loss):
    assert read(loss, labels=True) == "cross_entropy"


def test_a_binary_cross_entropy_goes_by_its_name():
    assert read(lambda p, y: F.binary_cross_entropy_with_logits(p, y)) == "bce"
    with pytest.raises(Unreadable):
        read(lambda p, y: F.binary_cross_entropy_with_logits(p, y[:, 0]))


def test_what_nothing_reads_is_no_step():
    assert steps(F.l1_loss) == ["subtract", "absolute", "sum", "constant", "multiply"]
    assert steps(F.l1_loss, outputs=1, targets=1) == ["subtract", "absolute"]
    assert steps(lambda p, y: (p * 1.5, (p.exp() * y).sum())[1]) == ["exp", "multiply", "sum"]


def test_sums_and_means_over_samples():
    for loss, adds in [
        (lambda p, y: (p * y).sum(), True),
        (lambda p, y: (p * y).sum() / p.shape[0], False),
        (lambda p, y: (p * y).sum() / (3 * p.size(0)), False),
        (lambda p, y: (p * y).sum() / p.numel(), False),
        (lambda p, y: (p * y).sum(0).mean(), True),
        (lambda p, y: (p * y).mean(0).sum(), False),
        (lambda p, y: -2 * (p * y).sum(), True),
        (lambda p, y: (p * y).mean() + 0.1 * p.abs().mean() - 1, False),
        (nn.CrossEntropyLoss(reduction="sum"), True),
    ]:
        program = read(loss, labels=isinstance(loss, nn.Module))
        assert program.adds is adds


@pytest.mark.parametrize(
    "loss, words",
    [
        (lambda p, y: ((p - y) ** 2).mean().sqrt(), "mean or a sum"),
        (lambda p, y: (p - p.mean() - y).abs().mean(), "mean or a sum"),
        (lambda p, y: (p.sum() + 1.0) * 0.5, "mean or a sum"),
        (lambda p, y: (p * y).mean() + (p * y).sum(), "mean or a sum"),
        (lambda p, y: (p * y).mean() * (p * y).mean(), "mean or a sum"),
        (lambda p, y: p * y, "mean or a sum"),
        (lambda p, y: (p * y).mean(1), "mean or a sum"),
        (lambda p, y: (p * y).mean(0)[0], "picks samples"),
        (lambda p, y: (p[0] - y[0]).mean(), "picks samples"),
        (lambda p, y: (p[1:] - y[:-1]).mean(), "picks samples"),
        (lambda p, y: F.softmax(p, 0).mean(), "over samples"),
        (lambda p, y: (p @ y.T).mean(), "of which there is no native form"),
        (lambda p, y: (p - torch.linspace(0, 1, 3)).abs().mean(), "there is no native form"),
        (lambda p, y: (p * y).sum() / (p > 0).sum(), "it counts"),
        (lambda p, y: (p * y).sum() / p.detach().sum(), "mean or a sum"),
        (lambda p, y: (p * y).sum() / (p * y.mean()).sum(), "mean or a sum"),
        (lambda p, y: (p - QUANTILES[:, None]).mean(), "does not run|tensor of its own"),
        (lambda p, y: torch.cat([p, y])[:, 0].mean(), "part of a total"),
        (lambda p, y: torch.cat([p, y]).abs().mean(), "mean or a sum"),
        (lambda p, y: torch.stack([p[:, 0], y[:, 0]]).softmax(0).mean(), "over samples"),
        (lambda p, y: (torch.zeros(5) + p.sum()).sum(), "other numbers"),
        (lambda p, y: torch.stack([p, y]).mean(), "more than one dimension"),
        (lambda p, y: torch.stack([p.mean(), y.sum()]).mean(), "mean or a sum"),
        (lambda p, y: torch.cat([p, p.new_tensor([[1.0]])], 1).mean(), "does not run|no native"),
        (lambda p, y: (p[:, :, None] - y[:, None]).abs().mean(), "pairs the numbers"),
        (lambda p, y: (p * y).mean() if p.sum() > 0 else p.mean(), "mean or a sum|no native form"),
        (lambda p, y: (p * y).mean() * float(p.detach().numpy().mean()), "asks for numpy"),
        (lambda p, y: (p * y).mean() * max(y.tolist()[0]), "asks for tolist"),
        (lambda p, y: (p * y).mean() if p.requires_grad else p.mean(), "asks for requires_grad"),
        (lambda p, y: (p * y).mean() if p.is_leaf else p.mean(), "asks for is_leaf|unseen"),
        (lambda p, y: (p * y).mean() * min(1.0, len(p) / 16), "number of samples"),
        (lambda p, y: (p * y).mean() if len(p) > 1000 else p.mean(), "number of samples"),
        (lambda p, y: (p * y).sum() / p.__len__(), "asks for __len__"),
        (lambda p, y: (p * y).mean() / p.shape[0], "divides by the number of samples"),
        (lambda p, y: (p * y).mean() * (1 / p.shape[0]), "number of samples"),
        (lambda p, y: (p * y).mean() * min(1.0, p.size(0) / 16), "number of samples"),
        (lambda p, y: (p * y).mean() if p.shape[0] > 2 else p.mean(), "number of samples"),
        (lambda p, y: (p * y).mean() if p.shape[0] != 4 else p.mean(), "number of samples"),
        (lambda p, y: (p * y).mean() if p.shape == (4, 3) else p.mean(), "number of samples"),
        (lambda p, y: (p.squeeze() - y.squeeze()).abs().mean(), "lone sample"),
        (lambda p, y: ((p > 0) + (y > 0)).to(p.dtype).mul(p).mean(), "whole numbers or truths"),
        (lambda p, y: (torch.logical_and(p, y) * p).mean(), "of numbers"),
        (lambda p, y: ((p > 0).byte().sub(1) * p).mean(), "whole numbers or truths"),
        (lambda p, y: (p.clamp(1.0, 0.5) * p).mean(), "disorder"),
        (lambda p, y: (p[:, 3:] * p).mean(), "does not run|takes nothing"),
        (lambda p, y: p[:, 3:].sum() + p.mean(), "takes nothing"),
        (lambda p, y: p.mean(0, keepdim=True).logsumexp(1).sum(), "over samples"),
        (lambda p, y: sum(p[:, i % 3] for i in range(4200)).mean(), "unseen|steps"),
        (lambda p, y: (p - y).double().abs().mean(), "float64"),
        (lambda p, y: (p - y).long().float().mean(), "rounds"),
        (lambda p, y: (p - y.view(torch.int32)).abs().mean(), "bits"),
        (lambda p, y: (p - y).abs().pow(18.5).mean(), "power"),
        (lambda p, y: torch.atan(p - y).mean(), "of which there is no native form"),
        (lambda p, y: (p - y.abs_()).mean(), "in place"),
        (lambda p, y: (p.detach().mul_(2) * y).mean(), "in place"),
        (lambda p, y: ((p * 2)[:, 0].mul_(2) * y[:, 0]).mean(), "in place"),
        (lambda p, y: F.one_hot(y[:, 0].long()).sum(1).mul(p[:, 0]).mean(), "as many classes"),
        (lambda p, y: p.gather(1, y[:, :1].long().clamp(0, 2)).mean(), "no label"),
        (lambda p, y: p.gather(1, (y[:, :1] + 0.5).long()).mean(), "rounds"),
        (lambda p, y: p.gather(1, y[:, :2].long()).mean(), "no label"),
        (lambda p, y: p.gather(1, p[:, :1].long().abs()).mean(), "rounds|whole"),
        (lambda p, y: p[torch.arange(5), y[:5, 0].long()].mean(), "does not run|picks samples"),
        (lambda p, y: p[y[:, 0].long()].mean(), "picks"),
        (lambda p, y: torch.norm(p - y, dim=0).mean(), "over samples"),
        (lambda p, y: slope_of(p).square().mean() + (p - y).abs().mean(), "gradient of its own"),
        (lambda p, y: torch.norm(p - y), "over samples"),
        (lambda p, y: torch.norm(p - y, p=3, dim=1).mean(), "order 3"),
        (lambda p, y: (p * y).mean() if (p > 0).all() else p.mean(), "no native form"),
        (
            lambda p, y: (p.register_hook(torch.neg), (p - y).abs().mean())[1],
            "hooks|asks for register_hook",
        ),
        (lambda p, y: (torch.rand_like(p) * p).mean(), "of which there is no native form"),
        (lambda p, y: p.nothing, "does not run"),
        (lambda p, y: FACTOR.nothing, "does not run"),
        (lambda p: p.mean(), "does not run"),
        (lambda p, y: 0.0, "mean or a sum"),
    ],
)
def test_what_is_no_program(loss, words):
    with pytest.raises(Unreadable, match=words):
        read(loss)


def test_tensors_of_the_user_stay():
    before = QUANTILES.clone()
    with pytest.raises(Unreadable, match="in place"):
        read(lambda p, y: (p * QUANTILES.mul_(2)).mean())
    assert torch.equal(QUANTILES, before)


def test_weighted_classes_are_no_mean_over_samples():
    found = read(nn.CrossEntropyLoss(weight=QUANTILES), labels=True)
    assert isinstance(found, CrossEntropyAtPlaces)
    assert (found.places, found.weights) == (1, tuple(QUANTILES.tolist()))


def test_without_gradients_it_is_no_program():
    def loss(p, y):
        with torch.no_grad():
            far = (p - y).abs()
        return (far * p).mean()

    with pytest.raises(Unreadable, match="gradients off"):
        read(loss)


def test_targets_of_other_kinds():
    p = torch.randn(4, 3)
    for targets in (torch.zeros(4, 3).bool(), torch.zeros(4, 3).double(), torch.zeros(4, 2).long()):
        with pytest.raises(Unreadable, match="targets|several labels"):
            read_loss(lambda p, y: (p * y).mean(), p, targets)
    with pytest.raises(Unreadable, match="predictions"):
        read_loss(F.l1_loss, p[0, 0], p[0, 0])
    with pytest.raises(Unreadable, match="whole numbers"):
        read(lambda p, y: p.gather(1, (0 * y)[:, None]).mean(), labels=True)


def test_what_is_read_wrongly_is_found_out(monkeypatch):
    """Of what is spelled otherwise than it is, as lengths taken before a broadcast were."""

    def too_short(assume, x1, x2, dim=1, eps=1e-8):
        norms = [x / torch.linalg.vector_norm(x, 2, dim, keepdim=True) for x in (x1, x2)]
        return (norms[0] * norms[1]).sum(dim)

    def loss(p, y):
        return F.cosine_similarity(p, y[:, :1]).mean() + 0.25 * p.mean()

    p = torch.randn(5, 3, dtype=torch.float64)
    assert not isinstance(read_loss(loss, p, p), str)
    loss_programs._name_or_program.cache_clear()
    monkeypatch.setitem(spelled._SPELLED, F.cosine_similarity, too_short)
    if cpu.native is not None:
        with pytest.raises(Unreadable, match="makes other numbers"):
            read_loss(loss, p, p)
    loss_programs._name_or_program.cache_clear()


def test_random_numbers_of_the_user_stay():
    p = torch.randn(4, 3)
    before = torch.get_rng_state()
    read_loss(lambda p, y: (p - y).abs().tanh().mean(), p, p)
    assert torch.equal(before, torch.get_rng_state())


# ---- what it reads beside its arguments ----------------------------------------------------------


def test_values_are_told_apart(monkeypatch):
    scaled = lambda p, y: FACTOR * half(p - y).abs().mean()  # noqa: E731
    before = values_read(scaled)
    assert before is not None and before == values_read(scaled)
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert values_read(scaled) != before
    monkeypatch.setitem(globals(), "FACTOR", 1.0)
    assert values_read(scaled) == before
    monkeypatch.setattr(half, "__code__", (lambda x: 0.25 * x).__code__)
    assert values_read(scaled) != before


def test_lists_and_small_tensors_are_told_apart_by_what_is_in_them():
    shares, weights = [0.1, 0.5, 0.9], torch.tensor([1.0, 2.0, 3.0])

    def loss(p, y):
        return sum(q * p[:, i].mean() for i, q in enumerate(shares)) + (weights * y * p).mean()

    before = values_read(loss)
    assert before is not None and before == values_read(loss)
    shares[1] = 0.4
    assert values_read(loss) != before
    shares[1] = 0.5
    assert values_read(loss) == before
    weights.numpy()[0] = 7.0  # of which autograd's counter of changes hears nothing
    assert values_read(loss) != before
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.ones(3))
    before = values_read(weighted)
    weighted.pos_weight.data.fill_(2.0)
    assert values_read(weighted) != before


def test_values_of_closures_defaults_partials_and_modules():
    def make(factor):
        def loss(p, y, power=2):
            return factor * (p - y).pow(power).mean()

        def change(value):
            nonlocal factor
            factor = value

        return loss, change

    loss, change = make(1.0)
    before = values_read(loss)
    change(3.0)
    assert values_read(loss) != before
    after = values_read(loss)
    loss.__defaults__ = (4,)
    assert values_read(loss) != after
    partials = [functools.partial(F.huber_loss, delta=d) for d in (0.5, 0.5, 1.0)]
    assert values_read(partials[0]) == values_read(partials[1]) != values_read(partials[2])
    module = nn.SmoothL1Loss(beta=0.5)
    before = values_read(module)
    module.beta = 1.0
    assert values_read(module) != before


def test_a_reason_counts_that_a_loss_has_caught():
    def loss(p, y):
        try:
            return (p * y).mean() if p.shape[0] > 2 else p.mean()
        except Exception:
            return p.mean()

    def another(p, y):
        try:
            return torch.erf(p).mean()
        except Exception:
            return p.mean()

    for each in (loss, another):
        with pytest.raises(Unreadable):
            read(each)


def test_negative_slices_and_zeros_like():
    for loss, begin, width in [
        (lambda p, y: p[:, -5:2].sum(), 0, 2), (lambda p, y: p[:, -4:-1].sum(), 0, 2),
        (lambda p, y: p[:, -2:].sum(), 1, 2), (lambda p, y: p[:, -1].sum(), 2, 1),
    ]:  # fmt: skip
        first = read(loss).steps[0]
        assert (first[0], first[4], first[6]) == ("slice", begin, width)
    assert "larger" in steps(lambda p, y: torch.maximum(p, torch.zeros_like(p)).mean())


def test_many_steps_are_no_program():
    def loss(p, y):
        total = (p * y).mean()
        for i in range(1100):
            total = total + (i % 7 * p).abs().mean()
        return total

    with pytest.raises(Unreadable, match="steps"):
        read(loss)


def wrapping(function):
    @functools.wraps(function)
    def wrapped(p, y):
        return STATE[0] * function(p, y)

    return wrapped


STATE = [1.0]
LEARNED = torch.ones(3, requires_grad=True)
LARGE = torch.ones(65)
HOOKED = nn.MSELoss()
HOOKED.register_forward_hook(lambda *args: None)


def imports_inside(p, y):
    import random

    return random.random() * (p - y).mean()


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, y: STATE.append(1.0) or (p - y).mean(),
        lambda p, y: sum([STATE.pop() for _ in range(2)]) * (p - y).mean(),
        lambda p, y: (LEARNED * (p - y)).mean(),
        lambda p, y: (LARGE * (p - y)).mean(),
        lambda p, y: getattr(F, "mse_loss")(p, y),  # noqa: B009
        lambda p, y: eval("p - y").mean(),
        lambda p, y: (lambda q: q.mean())(p - y),
        lambda p, y: [exec("x = 1") for _ in range(2)] and (p - y).mean(),
        lambda p, y: print(p) or (p - y).mean(),
        lambda p, y: missing(p, y),  # noqa: F821
        wrapping(F.smooth_l1_loss),
        torch.compiler.disable(wrapping(F.l1_loss)),
        torch.enable_grad()(lambda p, y: (p - y).mean()),
        lambda p, y: (p - y).mean() * torch.get_num_threads(),
        lambda p, y: (p - y).mean() * torch.is_grad_enabled(),
        torch.ones(3).tolist,
        HOOKED,
        nn.CrossEntropyLoss(weight=torch.ones(65)),
        imports_inside,
        functools.partial(F.cross_entropy, weight=torch.ones(3, requires_grad=True)),
    ],
)
def test_values_that_nobody_can_tell(loss):
    assert values_read(loss) is None
    with pytest.raises(Unreadable, match="unseen"):
        read(loss)


def test_a_loss_that_might_do_more_is_not_run():
    calls = []
    with pytest.raises(Unreadable, match="unseen"):
        read(lambda p, y: calls.append(p) or ((p - y) ** 2).mean())
    assert not calls


def test_mathematics_and_what_is_built_in():
    assert steps(lambda p, y: math.sqrt(4) * abs(p - y).sum() / p.shape[0])[:2] == [
        "subtract",
        "absolute",
    ]


def test_what_is_detached_in_place_is_not_read():
    """The dispatcher is not told of it, so a gradient would go through."""
    with pytest.raises(Unreadable, match="detach_"):
        read(lambda p, y: ((p - y) ** 2).mean() + ((p - p.clone().detach_()) ** 2).mean())
