"""The losses' kernels against plain PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DOUBLE
from torch.autograd import gradcheck, gradgradcheck

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.backends import triton_losses as raw
from fastmeta.kernels import loss_configs
from fastmeta.kernels.aot import launches

OURS = {"cross_entropy": fmF.cross_entropy, "mse": fmF.mse_loss, "bce": fmF.bce}
PLAIN = {
    "cross_entropy": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "mse": lambda x, y: (x - y).square().reshape(len(x), -1).mean(1),
    "bce": lambda x, y: (F.softplus(x) - y * x).reshape(len(x), -1).mean(1),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def on_triton():
    with fm.use_backend("triton"):
        yield


def problem(name, shape, dtype=DOUBLE, weighted=False, scale=1.0):
    """Predictions, targets and weights of tasks that differ."""
    x = (scale * torch.randn(shape, dtype=DOUBLE)).to(DEVICE, dtype)
    if name == "cross_entropy":
        y = torch.randint(shape[2], shape[:2]).to(DEVICE)
    else:
        y = torch.rand(shape, dtype=DOUBLE).to(x)
    weight = (torch.rand(shape[:2], dtype=DOUBLE) + 0.1).to(x) if weighted else None
    return x, y, weight


def plain(name, x, y, weight):
    """One task after another."""
    weights = [None] * len(x) if weight is None else weight
    of_tasks = []
    for t, w in enumerate(weights):
        losses = PLAIN[name](x[t], y[t])
        of_tasks.append(losses.mean() if w is None else (w * losses).sum() / w.sum())
    return torch.stack(of_tasks)


def derivatives(of, x):
    """Losses, gradient and its gradients, along directions that are always the same."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    loss = of(x)
    outer = torch.randn(loss.shape, dtype=DOUBLE).to(loss).requires_grad_()
    (first,) = torch.autograd.grad(loss, x, outer, create_graph=True)
    along = torch.randn(first.shape, dtype=DOUBLE).to(first)
    second = torch.autograd.grad(first, (x, outer), along, materialize_grads=True)
    return [z.detach() for z in (loss, first, *second)]


def compare(name, shape, weighted, **options):
    x, y, weight = problem(name, shape, weighted=weighted, **options)
    ours = derivatives(lambda x: OURS[name](x, y, weight), x)
    right = derivatives(lambda x: plain(name, x, y, weight), x)
    torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 1), (3, 70, 33)])
@pytest.mark.parametrize("name", OURS)
def test_loss_and_two_derivatives(name, shape, weighted, poisoned):
    compare(name, shape, weighted)


@settings(max_examples=10)
@given(
    st.sampled_from(sorted(OURS)),
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.booleans(),
)
def test_of_any_shape(name, shape, weighted):
    with fm.use_backend("triton"):
        compare(name, shape, weighted)


@pytest.mark.parametrize("name", OURS)
def test_samples_that_do_not_fit_into_one_block(name, monkeypatch, poisoned):
    monkeypatch.setattr(loss_configs, "MOST_OUTPUTS", 32)
    compare(name, (2, 11, 5), True)


@pytest.mark.parametrize("name", OURS)
def test_large_predictions_lose_nothing(name):
    compare(name, (2, 4, 3), False, scale=300.0)


@pytest.mark.parametrize("name", ["mse", "bce"])
def test_outputs_of_any_rank_and_layout(name):
    for shape in ((2, 3), (2, 3, 2, 4)):
        x, y, _ = problem(name, shape)
        x, y = x.transpose(0, -1).contiguous().transpose(0, -1), y.flip(0)
        weight = torch.rand(3, 2, dtype=DOUBLE).to(x).T  # not contiguous
        ours = derivatives(lambda x: OURS[name](x, y, weight), x)  # noqa: B023
        right = derivatives(lambda x: plain(name, x, y, weight), x)  # noqa: B023
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("name", OURS)
def test_gradients_are_those_of_differences(name):
    x, y, weight = problem(name, (2, 3, 2), weighted=True)
    x.requires_grad_()

    def loss(x):
        return OURS[name](x, y, weight)

    def slope(x):
        return torch.autograd.grad(loss(x).sin().sum(), x, create_graph=True)[0]

    assert gradcheck(loss, x, fast_mode=True)
    assert gradgradcheck(loss, x, fast_mode=True)
    assert gradcheck(slope, x, fast_mode=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", OURS)
def test_higher_derivatives(name, weighted):
    """Composed of differentiable operations, in the third order and where a graph is built."""
    x, y, weight = problem(name, (2, 3, 4), weighted=weighted)
    x.requires_grad_()

    def orders(of):
        found = [of(x)]
        for _ in range(3):
            found += torch.autograd.grad(found[-1].sin().sum(), x, create_graph=True)
        return found

    ours = orders(lambda x: OURS[name](x, y, weight))
    torch.testing.assert_close(ours, orders(lambda x: plain(name, x, y, weight)))


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("name", OURS)
def test_the_error_is_that_of_the_same_mathematics_in_plain_pytorch(name, scale):
    x, y, weight = problem(name, (16, 25, 5), torch.float32, weighted=True, scale=scale)
    doubled = [z.double() if z.is_floating_point() else z for z in (y, weight)]
    right = derivatives(lambda x: plain(name, x, *doubled), x.double())
    ordinary = derivatives(lambda x: plain(name, x, y, weight), x)
    ours = derivatives(lambda x: OURS[name](x, y, weight), x)
    for mine, theirs, true in zip(ours, ordinary, right, strict=True):
        assert mine.dtype is torch.float32
        assert (mine - true).norm() <= 2 * (theirs - true).norm() + 1e-7 * true.norm()


def test_small_losses_keep_their_digits():
    x = torch.tensor([[[-9.0], [-30.0]]], device=DEVICE)
    right = F.softplus(x.double()).mean().view(1)
    torch.testing.assert_close(fmF.bce(x, torch.zeros_like(x)).double(), right, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OURS)
def test_half_precision_is_summed_in_float32(name, dtype, poisoned):
    x, y, weight = problem(name, (2, 9, 5), dtype, weighted=True)
    wide = [z.float() if z.is_floating_point() else z for z in (y, weight)]
    ours = derivatives(lambda x: OURS[name](x, y, weight), x)
    # Directions are drawn and rounded alike.
    right = derivatives(lambda x: plain(name, x.float(), *wide).to(dtype), x)
    # To the nearest on the card; the interpreter cuts off bfloat16, a unit at most.
    unit = torch.finfo(dtype).eps
    for mine, true in zip(ours, right, strict=True):
        assert mine.dtype is dtype
        torch.testing.assert_close(mine, true, rtol=2 * unit, atol=2 * unit * true.abs().max())


def test_what_is_not_of_one_dtype_has_the_wider_one():
    x, y, _ = problem("mse", (2, 3, 2), torch.float32)
    loss = fmF.mse_loss(x.requires_grad_(), y.double())
    assert loss.dtype is DOUBLE
    torch.testing.assert_close(loss, plain("mse", x, y.double(), None))
    (slope,) = torch.autograd.grad(loss.sum(), x)
    assert slope.dtype is torch.float32


@pytest.mark.parametrize("label", [-1, 3, -(10**12), 10**12])
def test_a_label_outside_is_neither_read_nor_written(label, poisoned):
    x, y, _ = problem("cross_entropy", (2, 3, 3))
    right = [
        raw.forward(x, y, None, "cross_entropy"),
        raw.backward(torch.ones(2).to(x), x, y, None, "cross_entropy"),
        raw.second_backward(x, torch.ones(2).to(x), x, y, None, "cross_entropy")[1],
    ]
    y[1, 2] = label  # would be far outside of any tensor
    ones = torch.ones(2).to(x)
    loss = raw.forward(x, y, None, "cross_entropy")
    slope = raw.backward(ones, x, y, None, "cross_entropy")
    _, curve = raw.second_backward(x, ones, x, y, None, "cross_entropy")
    assert loss[1].isnan()
    for found, wanted in zip((loss, slope, curve), right, strict=True):
        torch.testing.assert_close(found[0], wanted[0])
    for found, wanted in zip((slope, curve), right[1:], strict=True):
        assert found[1, 2].isnan().all()
        torch.testing.assert_close(found[1, :2], wanted[1, :2])
    with pytest.raises(ValueError, match="labels outside"):
        fmF.cross_entropy(x, y)


@pytest.mark.parametrize("name", OURS)
def test_no_number_stays_none(name):
    x, y, weight = problem(name, (2, 3, 4), weighted=True)
    x[0, 1, 2] = float("nan")
    loss = OURS[name](x, y, weight)
    assert loss[0].isnan() and loss[1].isfinite()


def test_weights_of_zero_are_padding_and_of_a_whole_task_no_mean():
    x, y, weight = problem("cross_entropy", (2, 3, 4), weighted=True)
    weight[0, 1] = 0
    weight[1] = 0
    loss = fmF.cross_entropy(x, y, weight)
    kept = torch.tensor([0, 2], device=DEVICE)
    torch.testing.assert_close(
        loss[:1], plain("cross_entropy", x[:1, kept], y[:1, kept], weight[:1, kept])
    )
    assert loss[1].isnan()


def test_each_of_the_three_is_one_launch():
    x, y, weight = problem("cross_entropy", (2, 3, 4), weighted=True)
    x.requires_grad_()

    def step():
        loss = fmF.cross_entropy(x, y, weight)
        (slope,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
        torch.autograd.grad(slope, x, torch.ones_like(slope))

    names = [kernel.__name__ for kernel, _, _ in launches(step)]
    assert names == ["task_loss_kernel", "task_loss_gradient_kernel", "task_loss_gradient_kernel"]


def is_fused(loss):
    return type(loss.grad_fn).__name__ == "_LossBackward"


def test_what_the_kernels_do_not_take_runs_in_pytorch():
    x, y, weight = problem("mse", (2, 3, 4), weighted=True)
    x.requires_grad_()
    assert is_fused(fmF.mse_loss(x, y, weight))
    for inputs in [
        (x, y.clone().requires_grad_(), weight),
        (x, y, weight.clone().requires_grad_()),
        (x, (4 * y).long(), None),
        (torch.zeros(1, 1, 2049, dtype=DOUBLE, device=DEVICE).requires_grad_(),) * 2 + (None,),
        (torch.zeros(1, 2**16 + 1, 1, device=DEVICE).requires_grad_(),) * 2 + (None,),
    ]:
        loss = fmF.mse_loss(*inputs)
        assert not is_fused(loss)
        torch.autograd.grad(loss.sum(), [z for z in inputs if z is not None and z.requires_grad])
    with fm.use_backend("reference"):
        assert not is_fused(fmF.mse_loss(x, y, weight))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert is_fused(fmF.mse_loss(x, y, weight))
        assert not is_fused(fmF.mse_loss(x.bfloat16(), y.bfloat16()))


def test_under_torch_func_and_for_a_batch_of_gradients():
    x, y, weight = problem("bce", (2, 3, 4), weighted=True)

    def loss(x):
        return fmF.bce(x, y, weight)

    jacobian = torch.func.jacrev(loss)(x)
    torch.testing.assert_close(torch.func.jacfwd(loss)(x), jacobian)
    x.requires_grad_()
    of_tasks = torch.eye(2, dtype=DOUBLE, device=DEVICE)
    (batched,) = torch.autograd.grad(loss(x), x, of_tasks, is_grads_batched=True)
    torch.testing.assert_close(batched, jacobian)
    hessian = torch.autograd.functional.hessian(lambda x: loss(x).sum(), x, vectorize=True)
    with fm.use_backend("reference"):
        right = torch.autograd.functional.hessian(lambda x: loss(x).sum(), x)
    torch.testing.assert_close(hessian, right)
