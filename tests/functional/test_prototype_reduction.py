"""`prototype_loss` with a reduction: the mean or the sum over tasks."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from oracle import DOUBLE
from torch import Tensor

from fastmeta import use_backend
from fastmeta.functional import prototype_loss

T, N, S, Q, D = 3, 4, 8, 6, 5


def arguments(dtype: torch.dtype, weighted: bool) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(T + D)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    features = draw(T, S, D).requires_grad_(), draw(T, Q, D).requires_grad_()
    labels = [torch.arange(n).remainder(N).repeat(T, 1) for n in (S, Q)]
    more = {"temperature": torch.tensor([1.0, 2.0, 3.0], dtype=dtype, requires_grad=True)}
    if weighted:
        more |= {"support_weight": draw(T, S).abs() + 0.1, "query_weight": draw(T, Q).abs() + 0.1}
    return (features[0], labels[0], features[1], labels[1]), more


REDUCED = {"mean": torch.mean, "sum": torch.sum}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCED)
def test_it_is_the_reduction_of_what_comes_without(
    reduction: str, weighted: bool, backend: str | None
) -> None:
    given, more = arguments(torch.float64, weighted)
    wanted = given[0], given[2], more["temperature"]
    with use_backend(backend) if backend else nullcontext():
        loss, logits = prototype_loss(*given, n_way=N, **more)
        right = torch.autograd.grad(3 * REDUCED[reduction](loss) + logits.sum(), wanted)
        found, same = prototype_loss(*given, n_way=N, **more, reduction=reduction)
        ours = torch.autograd.grad(3 * found + same.sum(), wanted)
    assert found.shape == () and torch.equal(logits, same)
    torch.testing.assert_close(found, REDUCED[reduction](loss), rtol=1e-14, atol=0)
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", REDUCED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_made_with_the_loss_are_those_of_a_backward(
    dtype: torch.dtype, reduction: str
) -> None:
    given, _ = arguments(dtype, False)
    steps = []
    for _ in range(4):  # the first two wait for what the backward asks
        loss, _ = prototype_loss(*given, n_way=N, reduction=reduction)
        (loss * 0.7).backward()
        steps.append([loss.detach(), *(given[i].grad.clone() for i in (0, 2))])
        given[0].grad = given[2].grad = None
    for later in steps[1:]:
        assert all(map(torch.equal, later, steps[0]))
    loss, _ = prototype_loss(*given, n_way=N)
    loss = REDUCED[reduction](loss)
    (loss * 0.7).backward()
    tolerance = 1e-2 if dtype is torch.bfloat16 else 1e-6
    for found, right in zip(steps[-1], [loss.detach(), given[0].grad, given[2].grad], strict=True):
        torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance)


def test_it_can_be_changed_in_place() -> None:
    for tasks in (1, T):
        given = tuple(x[:tasks].detach() for x in arguments(torch.float32, False)[0])
        query = given[2].requires_grad_()
        loss, _ = prototype_loss(*given, n_way=N, reduction="mean")
        loss += 1
        loss.backward()
        assert query.grad is not None


@pytest.mark.parametrize("reduction", REDUCED)
def test_it_is_twice_differentiable(reduction: str) -> None:
    given, more = arguments(torch.float64, True)

    def loss_of(support: Tensor, query: Tensor, temperature: Tensor) -> Tensor:
        return prototype_loss(
            support, given[1], query, given[3], n_way=N, reduction=reduction,
            **{**more, "temperature": temperature},
        )[0]  # fmt: skip

    inputs = given[0], given[2], more["temperature"]
    assert torch.autograd.gradcheck(loss_of, inputs)
    assert torch.autograd.gradgradcheck(loss_of, inputs)


def test_it_is_compiled_and_transformed() -> None:
    given, _ = arguments(torch.float32, False)

    def mean_of(support: Tensor) -> Tensor:
        return prototype_loss(support, *given[1:], n_way=N, reduction="mean")[0]

    (right,) = torch.autograd.grad(mean_of(given[0]), given[0])
    compiled = torch.compile(mean_of, backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(given[0]), given[0])
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(torch.func.grad(mean_of)(given[0].detach()), right)
    several = torch.stack([given[0].detach(), 2 * given[0].detach()])
    losses = torch.func.vmap(mean_of)(several)
    torch.testing.assert_close(losses, torch.stack([mean_of(x) for x in several]))


def test_the_accuracy_stays_that_of_each_task() -> None:
    given, _ = arguments(torch.float32, False)
    *_, apart = prototype_loss(*given, n_way=N, return_accuracy=True)
    *_, accuracy = prototype_loss(*given, n_way=N, return_accuracy=True, reduction="sum")
    assert accuracy.shape == (T,) and torch.equal(accuracy, apart)


@pytest.mark.parametrize("wrong", ["average", "", None, 1])
def test_another_reduction_is_refused(wrong: object) -> None:
    given, _ = arguments(torch.float32, False)
    with pytest.raises(ValueError, match="reduction must be"):
        prototype_loss(*given, n_way=N, reduction=wrong)  # type: ignore[arg-type]


def test_gradients_of_a_double_are_those_of_the_oracle() -> None:
    given, _ = arguments(DOUBLE, False)
    means = torch.stack([given[0][:, n::N].mean(1) for n in range(N)], 1)
    logits = -(given[2].unsqueeze(2) - means.unsqueeze(1)).square().sum(3)
    right = torch.nn.functional.cross_entropy(logits.flatten(0, 1), given[3].flatten())
    found, _ = prototype_loss(*given, n_way=N, reduction="mean")
    torch.testing.assert_close(found, right)
    pairs = (torch.autograd.grad(loss, (given[0], given[2])) for loss in (found, right))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", [{}, {"reduction": "mean"}, {"return_accuracy": True}], ids=str)
@pytest.mark.parametrize("temperature", ["number", "tensor"])
def test_another_number_of_tasks_compiles_nothing_after_the_second(
    options: dict[str, object], temperature: str
) -> None:
    graphs = []

    def counted(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    tau = 2.0 if temperature == "number" else torch.tensor(2.0, requires_grad=True)
    compiled = torch.compile(
        lambda *given: prototype_loss(*given, n_way=N, temperature=tau, **options)[0],
        backend=counted, fullgraph=True,
    )  # fmt: skip
    for tasks in range(2, 7):
        features = torch.randn(tasks, S, D, requires_grad=True), torch.randn(tasks, Q, D)
        labels = [torch.arange(n).remainder(N).repeat(tasks, 1) for n in (S, Q)]
        compiled(features[0], labels[0], features[1], labels[1]).sum().backward()
    torch.compiler.reset()
    assert len(graphs) == 2
