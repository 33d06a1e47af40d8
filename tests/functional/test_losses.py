import pytest
import torch
import torch.nn.functional as F

from fastmeta import functional as fmF
from fastmeta.functional.losses import takes_weight

T, S, N = 3, 4, 5


def problem(name):
    scores = torch.randn(T, S, N, dtype=torch.float64, requires_grad=True)
    if name == "cross_entropy":
        return scores, torch.randint(N, (T, S))
    return scores, torch.rand(T, S, N, dtype=torch.float64)


OURS = {"cross_entropy": fmF.cross_entropy, "mse": fmF.mse_loss, "bce": fmF.bce}
PLAIN = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "bce": F.binary_cross_entropy_with_logits,
}


@pytest.mark.parametrize("name", OURS)
def test_each_task_has_the_plain_loss(name):
    scores, targets = problem(name)
    plain = torch.stack([PLAIN[name](scores[t], targets[t]) for t in range(T)])
    torch.testing.assert_close(OURS[name](scores, targets), plain)


@pytest.mark.parametrize("name", OURS)
def test_weights_count_samples(name):
    scores, targets = problem(name)
    weight = torch.tensor([0.0, 2, 0, 1], dtype=torch.float64).expand(T, S)
    repeated = torch.tensor([1, 1, 3])
    expected = OURS[name](scores[:, repeated], targets[:, repeated])
    torch.testing.assert_close(OURS[name](scores, targets, weight), expected)


@pytest.mark.parametrize("name", OURS)
def test_twice_differentiable(name):
    scores, targets = problem(name)
    weight = torch.rand(T, S, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(OURS[name], (scores, targets, weight))
    assert torch.autograd.gradgradcheck(OURS[name], (scores, targets, weight))


def test_large_logits_stay_finite():
    logits = torch.tensor([[[1000.0, -1000.0]]])
    assert fmF.bce(logits, torch.tensor([[[1.0, 0.0]]])).item() == 0
    assert fmF.cross_entropy(logits, torch.tensor([[1]])).item() == 2000


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: fmF.cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3)), ValueError, "logits"),
        (
            lambda: fmF.cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3)),
            TypeError,
            "labels must be int64",
        ),
        (
            lambda: fmF.cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[0, 4]])),
            ValueError,
            r"labels outside \[0, 4\)",
        ),
        (
            lambda: fmF.cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[-100, 0]])),
            ValueError,
            "-100",
        ),
        (lambda: fmF.mse_loss(torch.zeros(1, 2, 1), torch.zeros(1, 2)), ValueError, "one shape"),
        (
            lambda: fmF.bce(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.ones(2)),
            ValueError,
            "weight",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_only_a_sample_weight_counts_as_weight():
    assert takes_weight("mse")
    assert takes_weight(lambda predictions, targets, weight: 0)
    assert not takes_weight(lambda predictions, targets: 0)
    assert not takes_weight(F.cross_entropy)  # its weight is of classes
    assert not takes_weight(torch.nn.MSELoss())
