import dataclasses
import decimal
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.functional.losses import named, takes_weight

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


def test_labels_at_places():
    scores = torch.randn(T, S, N, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(N, (T, S, 2, 3))
    plain = torch.stack([F.cross_entropy(scores[t], labels[t]) for t in range(T)])
    torch.testing.assert_close(fmF.cross_entropy(scores, labels), plain)
    weight = torch.rand(T, S, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fmF.cross_entropy, (scores, labels, weight))
    assert torch.autograd.gradgradcheck(fmF.cross_entropy, (scores, labels, weight))
    with pytest.raises(ValueError, match=r"do not fit: \[\d+, \d+, \d+, 2, 3\] and"):
        fmF.cross_entropy(scores, labels[..., :2])


@pytest.mark.parametrize("name", ["mse", "bce"])
def test_compiled_without_a_break(name):
    scores, targets = problem(name)
    compiled = torch.compile(OURS[name], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(scores, targets), OURS[name](scores, targets))


def test_large_logits_stay_finite():
    logits = torch.tensor([[[1000.0, -1000.0]]])
    assert fmF.bce(logits, torch.tensor([[[1.0, 0.0]]])).item() == 0
    assert fmF.cross_entropy(logits, torch.tensor([[1]])).item() == 2000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_bce_has_all_digits_at_any_logit(dtype, target):
    size = torch.tensor([0.0, 1e-3, 1, 5, 19.9, 20.1, 30, 36, 39.9, 40.1, 80], dtype=dtype)
    logits = torch.cat([size, -size])[:, None, None]  # each a task of one number
    given = logits.clone().requires_grad_()
    losses = fmF.bce(given, torch.full_like(logits, target))
    (slopes,) = torch.autograd.grad(losses.sum(), given, create_graph=True)
    (curves,) = torch.autograd.grad(slopes.sum(), given)

    exact = [_bce_in_decimals(x, target) for x in logits.flatten().tolist()]
    size = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        losses.double(), torch.tensor(exact, dtype=torch.float64), rtol=size, atol=0
    )
    p, q = logits.double().sigmoid(), (-logits.double()).sigmoid()
    slope, given_away = (1 - target) * p - target * q, 0 if target in (0, 1) else size
    torch.testing.assert_close(slopes.double(), slope, rtol=size, atol=given_away)
    torch.testing.assert_close(curves.double(), p * q, rtol=0, atol=size)


def _bce_in_decimals(logit, target):
    with decimal.localcontext(prec=60):
        x, t = decimal.Decimal(logit), decimal.Decimal(target)
        return float(max(x, 0) - t * x + (1 + (-abs(x)).exp()).ln())


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


class TestNamed:
    """PyTorch's own losses go to the engines by name."""

    LABELS = torch.zeros(2, 3, dtype=torch.int64)

    @pytest.mark.parametrize(
        ("loss", "name"),
        [
            ("mse", "mse"),
            (F.cross_entropy, "cross_entropy"),
            (F.mse_loss, "mse"),
            (F.binary_cross_entropy_with_logits, "bce"),
            (nn.CrossEntropyLoss(), "cross_entropy"),
            (nn.MSELoss(), "mse"),
            (nn.BCEWithLogitsLoss(), "bce"),
        ],
    )
    def test_with_nothing_set(self, loss, name):
        targets = self.LABELS if name == "cross_entropy" else torch.rand(2, 3, 4)
        assert named(loss, targets) == named(loss) == name

    @pytest.mark.parametrize(
        "loss",
        [
            F.l1_loss,
            nn.CrossEntropyLoss(weight=torch.ones(3)),
            nn.CrossEntropyLoss(label_smoothing=0.1),
            nn.CrossEntropyLoss(ignore_index=0),
            nn.MSELoss(reduction="sum"),
            nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
            lambda predictions, targets: F.mse_loss(predictions, targets),
        ],
    )
    def test_not_with_anything_else(self, loss):
        assert named(loss, self.LABELS) is loss

    def test_not_one_with_hooks_or_a_class_or_a_forward_of_its_own(self):
        hooked, hooked_behind, changed = nn.MSELoss(), nn.MSELoss(), nn.MSELoss()
        hooked.register_forward_hook(lambda *_: None)
        hooked_behind.register_full_backward_pre_hook(lambda *_: None)
        changed.forward = F.l1_loss
        own = type("Own", (nn.MSELoss,), {})()
        for loss in (hooked, hooked_behind, changed, own):
            assert named(loss) is loss

    def test_an_object_without_a_hash_is_known_by_its_call(self):
        @dataclasses.dataclass
        class Scaled:
            by: float

            def __call__(self, predictions, targets):
                return self.by * F.mse_loss(predictions, targets)

        x, y = torch.randn(2, 5, 3), torch.randn(2, 5, 1)
        meta = fm.MAML(nn.Linear(3, 1), loss=Scaled(2.0))
        tasks = fm.TaskBatch(x, y, x, y)
        first = meta(tasks).loss
        meta.loss = Scaled(2.0)
        assert torch.equal(meta(tasks).loss, first)
        meta.loss.by = 4.0
        assert not torch.equal(meta(tasks).loss, first)

    def test_whole_numbers_have_no_name_but_in_cross_entropy(self):
        assert named(F.mse_loss, self.LABELS) is F.mse_loss
        x, y = torch.randn(2, 5, 3), torch.randint(4, (2, 5, 1))
        tasks = fm.TaskBatch(x, y, x, y)
        model = nn.Linear(3, 1)
        oracle = fm.MAML(model, loss=F.mse_loss, inner_lr=0.1, engine="reference")
        meta = fm.MAML(model, loss=F.mse_loss, inner_lr=0.1)
        try:
            expected = oracle(tasks).loss
        except RuntimeError as error:  # before PyTorch 2.12 it has no gradient
            with pytest.raises(RuntimeError, match=re.escape(str(error))):
                meta(tasks)
        else:
            torch.testing.assert_close(meta(tasks).loss, expected)

    def test_class_probabilities_have_no_name(self):
        assert named(F.cross_entropy, torch.rand(2, 3, 5)) is F.cross_entropy

    def test_a_setting_that_changes_later(self):
        loss = nn.CrossEntropyLoss()
        model = nn.Linear(3, 4)
        meta = fm.MAML(model, loss=loss, inner_lr=0.1)
        x, y = torch.randn(2, 5, 3), torch.randint(4, (2, 5))
        tasks = fm.TaskBatch(x, y, x, y)
        before = meta(tasks).loss
        loss.label_smoothing = 0.5
        after = meta(tasks).loss
        oracle = fm.MAML(model, loss=loss, inner_lr=0.1, engine="reference")
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, oracle(tasks).loss)

    def test_the_fast_engine_takes_them(self):
        model = nn.Linear(3, 4)
        x, y = torch.randn(2, 5, 3), torch.randint(4, (2, 5))
        tasks = fm.TaskBatch(x, y, x, y)
        by_function = fm.MAML(model, loss=F.cross_entropy, inner_lr=0.1)
        by_name = fm.MAML(model, loss="cross_entropy", inner_lr=0.1)
        assert by_function.choice().name == by_name.choice().name
        assert torch.equal(by_function(tasks).loss, by_name(tasks).loss)

    def test_ignored_labels_are_told_what_to_do(self):
        x, y = torch.randn(2, 5, 3), torch.randint(4, (2, 5))
        y[0, 0] = -100
        with pytest.raises(ValueError, match="weight of 0"):
            fm.MAML(nn.Linear(3, 4), loss=F.cross_entropy)(fm.TaskBatch(x, y, x, y))

    def test_class_probabilities_still_work(self):
        model = nn.Linear(3, 4)
        x, y = torch.randn(2, 5, 3), torch.rand(2, 5, 4).softmax(-1)
        tasks = fm.TaskBatch(x, y, x, y)
        meta = fm.MAML(model, loss=F.cross_entropy, inner_lr=0.1)
        oracle = fm.MAML(model, loss=F.cross_entropy, inner_lr=0.1, engine="reference")
        torch.testing.assert_close(meta(tasks).loss, oracle(tasks).loss)
