"""A forward that differentiates at once: the bits of two calls, whatever backward comes."""

import pytest
import torch
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.functional.habit import Habit

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


@pytest.fixture(params=[(3, 24, 2, 5), (20, 64, 1, 4)], ids=["narrow", "wide"])
def case(request):
    inputs, width, steps, tasks = request.param  # of a wide one the values are kept for two calls
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 2))
    shapes = [(tasks, 6, inputs), (tasks, 6, 2), (tasks, 7, inputs), (tasks, 7, 2)]
    batch = fm.TaskBatch(*(torch.randn(shape) for shape in shapes))
    return model, steps, batch


def learner(case, **options):
    model, steps, _ = case
    options = {"inner_lr": 0.1, "loss": "mse", "engine": "resident"} | options
    return fm.MAML(model, inner_steps=steps, **options)


def gradients(meta, batch, objective):
    meta.zero_grad()
    objective(meta(batch)).backward()
    return [None if p.grad is None else p.grad.clone() for p in meta.parameters()]


def without_it(monkeypatch):
    monkeypatch.setattr(Habit, "expected", lambda habit: None)


def mean(out):
    return out.loss.mean()


def uneven(out):
    return (out.loss * torch.arange(1.0, len(out.loss) + 1)).sum()


def of_predictions(out):
    return out.predictions.square().mean()


def of_both(out):
    return out.loss.mean() + 0.1 * out.predictions.square().mean()


OBJECTIVES = [mean, uneven, of_predictions, of_both]


@pytest.fixture
def calls(monkeypatch):
    """Which native functions ran."""
    names: list[str] = []
    kernels = cpu.kernels("float32")
    assert kernels.step is not None

    def noted(name, function):
        return lambda *arguments: (names.append(name), function(*arguments))[1]

    step = kernels.step._replace(run=noted("step", kernels.step.run))
    watched = kernels._replace(
        forward=noted("forward", kernels.forward),
        backward=noted("backward", kernels.backward),
        step=step,
    )
    monkeypatch.setattr(cpu, "kernels", lambda dtype: watched)
    return names


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_bits_as_two_calls(case, objective, monkeypatch):
    at_once = gradients(learner(case), case[2], objective)
    without_it(monkeypatch)
    for ours, theirs in zip(at_once, gradients(learner(case), case[2], objective), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_is_the_reference_engine_s(case, objective):
    meta = learner(case)
    oracle = learner(case, engine="reference")
    for _ in range(3):  # the habit changes on the way
        for ours, theirs in zip(
            gradients(meta, case[2], objective), gradients(oracle, case[2], objective), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-6)


def test_a_mean_takes_one_native_call(case, calls):
    gradients(learner(case), case[2], mean)
    assert calls == ["step"]


def test_an_uneven_sum_takes_two_from_its_second_time_on(case, calls):
    meta = learner(case)
    gradients(meta, case[2], uneven)
    assert calls == ["step", "forward", "backward"]
    del calls[:]
    gradients(meta, case[2], uneven)
    assert calls == ["forward", "backward"]
    del calls[:]
    gradients(meta, case[2], mean)
    gradients(meta, case[2], mean)
    assert calls == ["forward", "backward", "step"]


def test_a_gradient_of_predictions_takes_two_from_its_second_time_on(case, calls):
    meta = learner(case)
    gradients(meta, case[2], of_both)
    del calls[:]
    gradients(meta, case[2], of_both)
    assert calls == ["forward", "backward"]


def test_forwards_without_a_backward_stop_it(case, calls):
    meta = learner(case)
    for _ in range(4):
        meta(case[2])
    assert calls == ["step", "step", "forward", "forward"]
    gradients(meta, case[2], mean)
    del calls[:]
    meta(case[2])
    assert calls == ["step"]


def test_nothing_is_differentiated_where_no_gradient_can_be_asked_for(case, calls):
    with torch.no_grad():
        learner(case)(case[2])
    assert calls == ["forward"]


def test_gradients_of_inputs_take_two_calls(case, calls):
    model, steps, batch = case
    x = batch.support_x.clone().requires_grad_()
    batch = fm.TaskBatch(x, batch.support_y, batch.query_x, batch.query_y)
    learner(case)(batch).loss.mean().backward()
    assert calls == ["forward", "backward"]
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_second_backward_through_the_same_graph(case, objective):
    meta = learner(case)
    value = objective(meta(case[2]))
    value.backward(retain_graph=True)
    once = [p.grad.clone() for p in meta.parameters()]
    value.backward()
    for p, first in zip(meta.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * first, rtol=1e-6, atol=0)


def test_a_graph_that_is_used_bit_by_bit(case):
    meta = learner(case)
    weight, bias = list(meta.parameters())[:2]
    loss = meta(case[2]).loss.mean()
    (of_weight,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (of_bias,) = torch.autograd.grad(loss, bias)
    whole = gradients(learner(case), case[2], mean)
    assert torch.equal(of_weight, whole[0]) and torch.equal(of_bias, whole[1])


def test_a_parameter_changed_before_the_backward_is_an_error(case):
    meta = learner(case)
    loss = meta(case[2]).loss.mean()
    with torch.no_grad():
        next(meta.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("learn", ["tensor", "element"])
@pytest.mark.parametrize("per_step", [False, True])
def test_rates_are_learned_by_the_same_bits(case, learn, per_step, monkeypatch):
    options = {"learn_inner_lr": learn, "per_step_lr": per_step}
    at_once = gradients(learner(case, **options), case[2], mean)
    without_it(monkeypatch)
    two_calls = gradients(learner(case, **options), case[2], mean)
    assert len(at_once) > 4
    for ours, theirs in zip(at_once, two_calls, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("frozen", ["0.weight", "2.bias"])
def test_frozen_parameters_get_no_gradient(case, order, frozen, monkeypatch):
    model = case[0]
    model.get_parameter(frozen).requires_grad_(False)
    at_once = gradients(learner(case, order=order), case[2], mean)
    without_it(monkeypatch)
    two_calls = gradients(learner(case, order=order), case[2], mean)
    assert sum(g is None for g in at_once) == 1
    for ours, theirs in zip(at_once, two_calls, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_do_not_depend_on_the_threads(case, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = gradients(learner(case), case[2], mean)
        torch.set_num_threads(3)
        for ours, theirs in zip(found, gradients(learner(case), case[2], mean), strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


def test_a_gradient_of_no_number_stays_one(case):
    meta = learner(case)
    (meta(case[2]).loss.mean() * float("nan")).backward()
    assert all(p.grad.isnan().all() for p in meta.parameters())


def test_images_too(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 3),
    )  # fmt: skip
    x = [torch.randn(2, 6, 1, 8, 8) for _ in range(2)]
    y = [torch.randint(3, (2, 6)) for _ in range(2)]
    batch = fm.TaskBatch(x[0], y[0], x[1], y[1])
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, engine="resident")
    at_once = gradients(meta, batch, mean)
    without_it(monkeypatch)
    for ours, theirs in zip(at_once, gradients(meta, batch, mean), strict=True):
        assert torch.equal(ours, theirs)


def test_a_gradient_of_zeros_that_lie_nowhere(case):
    meta = learner(case)
    meta(case[2]).loss.backward(gradient=torch._efficientzerotensor((len(case[2]),)))
    assert not any(p.grad.any() for p in meta.parameters())


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_without_a_gradient_there_is_none(case):
    meta = learner(case)
    Nothing.apply(meta(case[2]).loss).sum().backward()
    fast = meta.adapt(case[2].support_x, case[2].support_y).parameters
    Nothing.apply(next(iter(fast.values()))).sum().backward()
    assert all(p.grad is None for p in meta.parameters())
