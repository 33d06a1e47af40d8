"""What the layered engine promises beside its numbers: memory, threads, state that is read anew."""

import threading

import pytest
import torch
from layered_cases import Functional, layered, maml, with_inputs
from oracle import (
    DOUBLE,
    assert_exact,
    classification_tasks,
    gradients,
    outer_loss,
)
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop.reading.rewrite import Program
from fastmeta.inner_loop.reading.trace import trace
from fastmeta.models import conv4


def test_auto_prefers_it_to_vmap_and_explains():
    choice = fm.explain(Functional())
    assert choice.name == "layered"
    assert choice.passed_over["vmap"] == "not asked: layered comes first"


def saved_bytes(steps):
    """Bytes that the forward keeps, and the most alive at once until the backward ends."""
    meta = maml(conv4(3, 2, 4, 8, layers=2), inner_steps=steps)
    tasks = classification_tasks([2, 8, 8])
    alive = {"now": 0, "most": 0}

    class Held:
        def __init__(self, tensor):
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            alive["now"] += self.bytes
            alive["most"] = max(alive["most"], alive["now"])

        def __del__(self):
            alive["now"] -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        loss = outer_loss(meta, tasks)
        kept = alive["now"]
        loss.backward()
    return kept, alive["most"]


def test_memory_grows_with_the_steps_by_the_weights_alone():
    (kept_few, most_few), (kept_many, most_many) = saved_bytes(4), saved_bytes(24)
    parameters = conv4(3, 2, 4, 8, layers=2).parameters()
    fast_weights = 3 * sum(p.numel() for p in parameters) * 8
    assert kept_many - kept_few == 20 * fast_weights
    assert most_many - most_few == 20 * fast_weights


def test_a_few_tasks_at_a_time_give_the_same(monkeypatch):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    model[0].bias.requires_grad_(False)
    calls = []
    run = Program.run

    def counted(self, parameters, x):
        calls.append(len(x))
        return run(self, parameters, x)

    monkeypatch.setattr(Program, "run", counted)
    for size, wanted in ((1, {1}), (2 * 5 * 72 * 8, {2, 1})):
        monkeypatch.setattr(layered, "_AT_ONCE_BYTES", size)
        meta, tasks = maml(model, learn_inner_lr="tensor"), classification_tasks([2, 6, 6], q=5)
        meta(tasks)
        calls.clear()
        assert_exact(meta, tasks, with_inputs(meta, tasks), tolerance=1e-10)
        assert set(calls) == wanted


def test_a_few_tasks_at_a_time_with_parameters_of_their_own(monkeypatch):
    model, tasks = conv4(3, 2, 3, 8, layers=2).double(), classification_tasks([2, 8, 8])
    parameters = {
        name: (p.detach() + 0.1 * torch.randn(3, *p.shape, dtype=DOUBLE)).requires_grad_()
        for name, p in model.named_parameters()
    }
    rates = {name: torch.full((1,), 0.1, dtype=DOUBLE) for name in list(parameters)[2:]}

    def slopes():
        fast = fm.functional.inner_sgd(
            model, parameters, tasks.support_x, tasks.support_y, lr=rates, steps=2,
            loss="cross_entropy",
        )  # fmt: skip
        total = sum(p.sin().sum() for p in fast.values())
        return torch.autograd.grad(total, list(parameters.values()))

    with fm.use_backend("reference"):
        right = slopes()
    for size in (1, 2**24):
        monkeypatch.setattr(layered, "_AT_ONCE_BYTES", size)
        torch.testing.assert_close(slopes(), right)


def test_two_threads_may_share_a_model():
    model, tasks = conv4(3, 2, 3, 8, layers=2).double(), classification_tasks([2, 8, 8])
    metas = [maml(model), maml(model, inner_steps=1)]
    inputs = list(model.parameters())
    right = [gradients(meta, tasks, inputs) for meta in metas]
    wrong = []

    def work(which):
        for _ in range(5):
            metas[which]._plans.clear()  # so that it traces again
            ours = gradients(metas[which], tasks, inputs)
            if not all(torch.equal(a, b) for a, b in zip(ours, right[which], strict=True)):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tracing_leaves_other_threads_alone():
    others = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    seen = []

    class Slow(nn.Linear):
        def forward(self, x):
            thread = threading.Thread(
                target=lambda: seen.append((others(torch.ones(3, 2)), self.weight))
            )
            thread.start()
            thread.join()
            return super().forward(x)

    model = Slow(2, 3)
    trace(nn.Sequential(model))
    output, weight = seen[0]
    assert isinstance(output, torch.Tensor) and weight is model.weight


# ---- Python state ------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.factor, self.factors, self.function = 1.0, [2.0, {"a": 3.0}], torch.tanh

    def forward(self, x):
        return self.function(self.linear(x)) * self.factor * self.factors[0] * self.factors[1]["a"]


def test_python_state_is_read_anew_when_it_changes():
    model, tasks = Scaled(), classification_tasks([2])
    meta = maml(model)
    assert_exact(meta, tasks)
    model.factor = 0.5
    assert_exact(meta, tasks)
    model.factors[0] = -1.0
    assert_exact(meta, tasks)
    model.factors[1]["a"] = 0.1
    assert_exact(meta, tasks)
    model.function = torch.sigmoid
    assert_exact(meta, tasks)
    model.linear = nn.Sequential(nn.Linear(2, 4, dtype=DOUBLE), nn.Linear(4, 3, dtype=DOUBLE))
    assert_exact(maml(model), tasks)


def test_state_that_cannot_be_watched_any_more_is_refused():
    model, tasks = Scaled(), classification_tasks([2])
    meta = maml(model)
    meta(tasks)
    model.factors[1] = {"a": 3.0, "numbers": iter([])}
    with pytest.raises(ValueError, match="Scaled.factors holds a list_iterator, of which a later"):
        meta(tasks)


def test_buffers_are_read_at_every_call():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 3)
            self.register_buffer("shift", torch.ones(3))

        def forward(self, x):
            return (self.linear(x) + self.shift).tanh()

    model, tasks = Shifted(), classification_tasks([2])
    meta = maml(model)
    for _ in range(2):
        assert_exact(meta, tasks)
        model.shift = torch.randn(3, dtype=DOUBLE)
    model.shift.fill_(-1)
    assert_exact(meta, tasks)
