"""The accuracy that comes with the loss of prototypes, and the values of a temperature."""

import math

import pytest
import torch
from torch.func import grad, vmap

import fastmeta as fm
from fastmeta import functional as fmF

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")
BACKENDS = ("reference", "cpu")


def problem(t=3, n=7, q=70, d=9, dtype=torch.float32):
    return {
        "support": torch.randn(t, 2 * n, d, dtype=dtype),
        "support_y": torch.arange(2 * n).expand(t, -1) % n,
        "query": torch.randn(t, q, d, dtype=dtype),
        "query_y": torch.randint(n, (t, q)),
        "n_way": n,
    }


def judged(task, **options):
    return fmF.prototype_loss(**task, **options, return_accuracy=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [{}, {"q": 1}, {"n": 1}, {"t": 40, "q": 9}, {"t": 1, "q": 333}])
def test_accuracy_is_that_of_the_logits(backend, metric, dtype, shape):
    task = problem(**shape, dtype=dtype)
    with fm.use_backend(backend):
        loss, logits, accuracy = judged(task, metric=metric)
        without = fmF.prototype_loss(**task, metric=metric)
    assert len(without) == 2 and torch.equal(loss, without[0]) and torch.equal(logits, without[1])
    right = (logits.argmax(-1) == task["query_y"]).to(dtype).mean(1)
    assert accuracy.dtype is dtype and not accuracy.requires_grad
    torch.testing.assert_close(accuracy, right, rtol=0, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_first(backend):
    task = problem(t=1, n=4, q=8)
    task["support"] = torch.tensor([[[1.0], [3.0], [3.0], [1.0]] * 2])  # classes 1 and 2 alike
    task["query"] = torch.tensor([[[3.0]] * 4 + [[1.0]] * 4])
    for labels, right in (([1] * 4 + [0] * 4, 1.0), ([2] * 4 + [3] * 4, 0.0)):
        task["query_y"] = torch.tensor([labels])
        with fm.use_backend(backend):
            assert judged(task)[2].tolist() == [right]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
def test_a_query_with_a_nan_counts_as_wrong(backend, metric):
    task = problem(t=1, n=3, q=9)
    task["query"][0, 4] = math.nan
    task["query_y"][0, 4] = 0  # what argmax makes of NaN alone
    with fm.use_backend(backend):
        _, logits, accuracy = judged(task, metric=metric)
    hits = logits.argmax(-1) == task["query_y"]
    hits[0, 4] = False
    torch.testing.assert_close(accuracy, hits.float().mean(1))
    output = fm.tasks.MetaOutput(accuracy, logits, task["query_y"])
    torch.testing.assert_close(output.accuracy, accuracy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_logit_that_is_nan_makes_a_query_wrong(backend):
    task = problem(t=1, n=3, q=40)
    task["support"][0, 2] = math.nan  # class 2: no query is right, whatever the other logits
    with fm.use_backend(backend):
        assert judged(task)[2].item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_are_weighed_and_padding_does_not_count(backend):
    task = problem()
    weight = torch.rand(3, 70)
    weight[:, ::3] = 0
    with fm.use_backend(backend):
        right = (judged(task)[1].argmax(-1) == task["query_y"]) * weight
        task["query"][:, ::3], task["query_y"][:, ::3] = math.nan, -9
        task["query_weight"] = weight
        _, _, accuracy = judged(task)
    torch.testing.assert_close(accuracy, right.sum(1) / weight.sum(1))
    assert 0 < float(accuracy.min()) < 1


def test_accuracy_under_torch_func_and_with_gradients():
    task = problem(t=2)
    support = task.pop("support")

    def of(support):
        loss, _, accuracy = judged({**task, "support": support})
        return loss.sum(), accuracy

    slopes, found = vmap(grad(of, has_aux=True))(torch.stack([support, -support]))
    for i, each in enumerate((support, -support)):
        each = each.clone().requires_grad_()
        loss, accuracy = of(each)
        loss.backward()
        torch.testing.assert_close(found[i], accuracy)
        torch.testing.assert_close(slopes[i], each.grad)


def test_protonet_takes_the_accuracy_that_came_with_the_loss():
    tasks = fm.TaskBatch(*(problem()[k] for k in ("support", "support_y", "query", "query_y")))
    output = fm.ProtoNet(torch.nn.Identity())(tasks)
    assert output.counted is not None and output.accuracy is output.counted
    right = (output.predictions.argmax(-1) == output.targets).float().mean(1)
    torch.testing.assert_close(output.accuracy, right)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("per_task", [False, True])
def test_the_values_of_a_temperature_are_looked_at(backend, wrong, per_task):
    task = problem()
    temperature = torch.tensor([1.0, wrong, 2.0]) if per_task else torch.tensor(wrong)
    for learned in (False, True):
        with fm.use_backend(backend), pytest.raises(ValueError, match="temperature must be above"):
            fmF.prototype_loss(**task, temperature=temperature.requires_grad_(learned))

    def total(temperature):
        return fmF.prototype_loss(**task, temperature=temperature)[0].sum()

    with pytest.raises(ValueError, match="temperature must be above"):
        grad(total)(temperature.detach())
    with pytest.raises(ValueError, match="temperature must be above"):
        vmap(total)(torch.stack([torch.ones_like(temperature), temperature.detach()]))


def test_the_origin_of_composed_means_is_no_padding():
    x = torch.randn(2, 60, 5) / 16 + 1e4
    labels, weight = torch.arange(60).expand(2, 60) % 2, torch.ones(2, 60)
    weight[0, :3] = 0
    x[0, :3] = math.nan
    with fm.use_backend("reference"):
        found = fmF.prototypes(x, labels, 2, weight)
    kept = (x.double().nan_to_num() - 1e4) * weight[..., None]
    member = torch.nn.functional.one_hot(labels, 2).double() * weight[..., None]
    right = member.mT @ kept / member.sum(1)[..., None] + 1e4
    # Rounded once to float32's 2^-10 at 1e4, and a little more; from an origin of 0 it is as much
    # as products and sums of 1e4 lose.
    assert float((found.double() - right).abs().max()) <= 0.51 * 2**-10
