"""Layers with few outputs, whose lanes run along their inputs (csrc/cpu/inner_products.h)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastmeta as fm

pytestmark = pytest.mark.skipif(
    fm.available_backends()["cpu"] is not True, reason="the native kernels are not built"
)
# Lanes are columns of one task where the processors have a task each at most.
FEW_TASKS = 2


def chain(widths: list[int], bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        # Sigmoid: what it makes of a lane that holds nothing is not 0.
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.Sigmoid()]
    return nn.Sequential(*layers[:-1]).double()


def leaf(*shape: int, offset: int = 0) -> Tensor:
    """Where in memory vectors begin (offset 0), or do not."""
    storage = torch.randn(offset + torch.Size(shape).numel(), dtype=torch.float64)
    return storage[offset:].view(shape).detach().requires_grad_()


def outcome(meta: fm.MAML, backend: str, *arrays: Tensor) -> list[Tensor]:
    with fm.use_backend(backend):
        out = meta(fm.TaskBatch(*arrays))
    wanted = [*(p for p in meta.parameters() if p.requires_grad), arrays[0], arrays[2]]
    total = (out.loss * torch.arange(1.0, len(out.loss) + 1)).sum()
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    gradients = [torch.zeros(()) if g is None else g for g in found]
    return [out.loss, out.predictions, *gradients]


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(
        st.sampled_from([1, 2, 3, 5, 7, 8, 256, 264, 512]), min_size=2, max_size=4
    ),
    shots=st.integers(1, 9),
    queries=st.integers(1, 12),
    steps=st.integers(1, 3),
    order=st.sampled_from([1, 2]),
    bias=st.booleans(),
    learned=st.sampled_from([None, "tensor", "element"]),
    per_step=st.booleans(),
    frozen=st.sampled_from(["nothing", "weights", "biases", "last"]),
    offset=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_it_is_the_reference(
    widths: list[int], shots: int, queries: int, steps: int, order: int, bias: bool,
    learned: str | None, per_step: bool, frozen: str, offset: int, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    model = chain(widths, bias)
    last = f"{len(model) - 1}."
    adapts = {
        "nothing": lambda name: True,
        "weights": lambda name: not bias or name.endswith("bias"),
        "biases": lambda name: name.endswith("weight"),
        "last": lambda name: len(widths) == 2 or not name.startswith(last),
    }[frozen]
    meta = fm.MAML(
        model, inner_lr=0.1, inner_steps=steps, loss="mse", order=order,
        learn_inner_lr=learned, per_step_lr=per_step and learned is not None,
        adapt_parameters=adapts,
    )  # fmt: skip
    x = [leaf(FEW_TASKS, n, widths[0], offset=offset) for n in (shots, queries)]
    y = [torch.randn(FEW_TASKS, n, widths[-1], dtype=torch.float64) for n in (shots, queries)]
    ours, right = (outcome(meta, b, x[0], y[0], x[1], y[1]) for b in ("cpu", "reference"))
    for mine, theirs in zip(ours, right, strict=True):
        assert (mine - theirs).norm() <= 1e-10 * theirs.norm() + 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_bit_depends_on_where_the_samples_lie_or_on_threads(dtype: torch.dtype) -> None:
    model = chain([512, 5], True).to(dtype)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, loss="mse")
    arrays = [torch.randn(FEW_TASKS, n, w, dtype=dtype) for n in (10, 15) for w in (512, 5)]

    def run(offset: int, threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        moved = []
        for array in arrays:
            storage = torch.empty(array.numel() + offset, dtype=dtype)
            moved.append(storage[offset:].view(array.shape).copy_(array))
        out = meta(fm.TaskBatch(*moved))
        return [out.loss, out.predictions, *torch.autograd.grad(out.loss.mean(), meta.parameters())]

    threads = torch.get_num_threads()
    try:
        expected = run(0, 1)
        for found in (run(1, 1), run(3, 2), run(0, 2)):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_fast_weights_are_in_pytorch_s_layout() -> None:
    model = chain([512, 5], True)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, loss="mse")
    x, y = torch.randn(FEW_TASKS, 9, 512).double(), torch.randn(FEW_TASKS, 9, 5).double()
    with fm.use_backend("cpu"):
        ours = meta.adapt(x, y)
    with fm.use_backend("reference"):
        right = meta.adapt(x, y)
    for name, value in right.parameters.items():
        torch.testing.assert_close(ours.parameters[name], value)
