"""The norm kernels, with activation and pool, against the operations one after another."""

import pytest
import torch
import torch.nn.functional as F
from oracle import DOUBLE
from torch.autograd import gradcheck

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.kernels import norm_configs

EPS = 0.01


@pytest.fixture(autouse=True)
def on_triton():
    with fm.use_backend("triton"):
        yield


def problem(shape, device, dtype=DOUBLE, channels_last=True, given=("weight", "bias")):
    x = torch.randn(shape, dtype=dtype, device=device)
    if channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    affine = [
        torch.randn(shape[0], shape[2], dtype=dtype, device=device) if name in given else None
        for name in ("weight", "bias")
    ]
    return [z if z is None else z.requires_grad_() for z in (x, *affine)]


def plain(x, weight, bias, slope, pool):
    """One task after another, in PyTorch, whose double backward wants a weight."""
    weight = torch.ones_like(x[:, 0, :, 0, 0]) if weight is None else weight
    tasks = []
    for t in range(len(x)):
        own = [None if p is None else p[t] for p in (weight, bias)]
        z = F.leaky_relu(F.batch_norm(x[t], None, None, *own, training=True, eps=EPS), slope)
        tasks.append(z if pool == 1 else F.max_pool2d(z, pool))
    return torch.stack(tasks)


def derivatives(of, inputs):
    """Value, gradients and their gradients, along directions that are always the same."""
    known = [z for z in inputs if z is not None]
    torch.manual_seed(1)
    y = of(*inputs)
    outer = torch.randn(y.shape, dtype=DOUBLE).to(y).requires_grad_()
    first = torch.autograd.grad(y, known, outer, create_graph=True)
    along = [torch.randn(g.shape, dtype=DOUBLE).to(g) for g in first]
    *curved, _ = inputs  # all but the bias, in which the gradients are constant
    curved = [outer, *(z for z in curved if z is not None)]
    second = torch.autograd.grad(first, curved, along)
    return [z.detach() for z in (y, *first, *second)]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    "shape, pool, slope, given",
    [
        ((2, 3, 4, 5, 6), 2, 0.0, ("weight", "bias")),
        ((1, 2, 33, 2, 2), 2, 0.2, ("weight", "bias")),
        ((1, 60, 2, 3, 7), 2, 0.0, ("bias",)),
        ((2, 2, 3, 4, 3), 1, 0.0, ("weight",)),
        ((1, 2, 1, 2, 2), 2, 1.0, ()),
    ],
)
def test_block(shape, pool, slope, given, channels_last, device, poisoned):
    if not channels_last:
        shape = (*shape[:2], min(shape[2], 4), *shape[3:])  # they run one by one
    inputs = problem(shape, device, channels_last=channels_last, given=given)
    ours = derivatives(lambda *z: fmF.batch_norm_pool(*z, EPS, slope, pool), inputs)
    right = derivatives(lambda *z: plain(*z, slope, pool), inputs)
    torch.testing.assert_close(ours, right, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("pool", [1, 2])
def test_programs_of_several_tiles(pool, channels_last, device, poisoned, monkeypatch):
    monkeypatch.setattr(norm_configs, "_BLOCKS", 3)
    monkeypatch.setattr(norm_configs, "_BYTES", 256)
    inputs = problem((1, 9, 2, 3, 5), device, channels_last=channels_last)
    ours = derivatives(lambda *z: fmF.batch_norm_pool(*z, EPS, 0.2, pool), inputs)
    right = derivatives(lambda *z: plain(*z, 0.2, pool), inputs)
    torch.testing.assert_close(ours, right, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_error_is_that_of_the_same_mathematics_in_plain_pytorch(channels_last, device):
    inputs = problem((2, 5, 6, 6, 6), device, torch.float32, channels_last)
    with torch.no_grad():
        inputs[0] += 100  # a common offset, far above the deviation
    exact = [z.detach().double().requires_grad_() for z in inputs]
    right = derivatives(lambda *z: plain(*z, 0.0, 2), exact)
    ordinary = derivatives(lambda *z: plain(*z, 0.0, 2), inputs)
    ours = derivatives(lambda *z: fmF.batch_norm_pool(*z, EPS, 0.0, 2), inputs)
    for mine, theirs, true in zip(ours, ordinary, right, strict=True):
        assert (mine - true).norm() <= 2 * (theirs - true).norm() + 1e-6 * true.norm()


def by_hand(x, weight, bias):
    """PyTorch's batch norm is wrong in its third derivative: there its statistics stand still."""
    centred = x - x.mean((1, 3, 4), keepdim=True)
    normal = centred / (centred.square().mean((1, 3, 4), keepdim=True) + EPS).sqrt()
    scale, shift = (p[:, None, :, None, None] for p in (weight, bias))
    return torch.stack([F.max_pool2d(z.relu(), 2) for z in normal * scale + shift])


def test_block_has_derivatives_of_any_order(device):
    inputs = problem((1, 2, 1, 2, 2), device)

    def call(*z):
        return fmF.batch_norm_pool(*z, EPS, 0.0, 2)

    def slope(*z):
        return torch.autograd.grad(call(*z).sin().sum(), z, create_graph=True)

    def third(of):
        first = torch.autograd.grad(of(*inputs).sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in second), inputs)

    assert gradcheck(call, inputs, fast_mode=True)
    assert gradcheck(slope, inputs, fast_mode=True)
    torch.testing.assert_close(third(call), third(by_hand))


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_norms(norm, device):
    x, weight, bias = problem((1, 2, 2, 1, 3), device)
    if norm == "layer":
        weight, bias = (torch.randn(1, 3).to(x).requires_grad_() for _ in range(2))

    def call(*z):
        if norm == "layer":
            return fmF.layer_norm(z[0], (3,), *z[1:], EPS)
        if norm == "group":
            return fmF.group_norm(z[0], 2, *z[1:], EPS)
        return fmF.batch_norm(*z, EPS)

    ours = derivatives(call, (x, weight, bias))
    with fm.use_backend("reference"):
        right = derivatives(call, (x, weight, bias))
    torch.testing.assert_close(ours, right)


def test_a_weight_of_0_pools_the_first_pixel(device):
    inputs = problem((2, 3, 2, 4, 5), device)
    with torch.no_grad():
        inputs[1][:, 0] = 0
    ours = derivatives(lambda *z: fmF.batch_norm_pool(*z, EPS, 0.2, 2), inputs)
    right = derivatives(lambda *z: plain(*z, 0.2, 2), inputs)
    torch.testing.assert_close(ours, right)


def test_a_channel_with_one_value_has_no_gradient(device):
    x, weight, bias = problem((1, 3, 2, 2, 2), device)
    with torch.no_grad():
        x[:, :, 0] = 7
    y = fmF.batch_norm_pool(x, weight, bias, EPS, 1.0, 2)
    torch.testing.assert_close(y[:, :, 0], bias[:, None, 0, None, None].expand(1, 3, 1, 1))
    (slope,) = torch.autograd.grad(y.square().sum(), x)
    assert slope.isfinite().all()


def test_what_does_not_fit_is_refused(device):
    x, weight, bias = problem((2, 3, 4, 2, 2), device)
    for said, wrong in [
        (r"x must be \[T, S, C, H, W\]", lambda: fmF.batch_norm_pool(x.flatten(3))),
        ("negative_slope", lambda: fmF.batch_norm_pool(x, weight, bias, EPS, -0.1)),
        ("pool must be 1 or 2", lambda: fmF.batch_norm_pool(x, weight, bias, EPS, 0.0, 3)),
        ("pool must be", lambda: fmF.batch_norm_pool(x[..., :1], weight, bias, EPS, 0.0, 2)),
        (r"weight must be \[4\]", lambda: fmF.batch_norm_pool(x, weight[:, :2])),
    ]:
        with pytest.raises(ValueError, match=said):
            wrong()
