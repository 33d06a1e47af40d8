"""The products of linear and conv2d by the Triton kernels, through the public operations.

Random shapes against plain PyTorch in float64, and derivatives of any order. What is right for the
operations at large is in tests/functional.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DOUBLE, relative_error
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.functional.conv2d import conv2d_input_gradient, conv2d_weight_gradient
from fastmeta.functional.precision import products_in
from fastmeta.kernels import configs
from fastmeta.kernels import conv2d as conv2d_kernels
from fastmeta.kernels import linear as linear_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _triton(poisoned):
    with fm.use_backend("triton"):
        yield


def draw(*shape, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype, device=DEVICE, requires_grad=True)


def in_some_layout(x, layout):
    """The same values, elsewhere in memory."""
    if layout == "channels last":
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    elif layout == "tasks second":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "every second":
        x = torch.stack([x, torch.full_like(x, float("nan"))], -1).flatten(-2)[..., ::2]
    return x.detach().requires_grad_()


def conv_by_task(x, weight, bias, stride, padding):
    def of(parameter, rank, t):
        return parameter if parameter is None or parameter.dim() == rank else parameter[t]

    tasks = [
        F.conv2d(x[t], of(weight, 4, t), of(bias, 1, t), stride, padding) for t in range(len(x))
    ]
    return torch.stack(tasks)


def linear_by_task(x, weight, bias):
    def of(parameter, rank, t):
        return parameter if parameter is None or parameter.dim() == rank else parameter[t]

    return torch.stack([F.linear(x[t], of(weight, 2, t), of(bias, 1, t)) for t in range(len(x))])


def assert_same(ours, right, inputs):
    """Values, gradients, and the gradient of a function of both."""
    torch.testing.assert_close(ours, right)
    outer = torch.randn_like(right)
    first = [torch.autograd.grad(y, inputs, outer, create_graph=True) for y in (ours, right)]
    torch.testing.assert_close(*first)
    sums = [sum(g.square().sum() for g in gradients) for gradients in first]
    second = [torch.autograd.grad(s, inputs, allow_unused=True) for s in sums]
    for of_ours, of_right in zip(*second, strict=True):
        if of_right is not None:
            torch.testing.assert_close(of_ours, of_right)


LAYOUTS = st.sampled_from(["plain", "channels last", "tasks second", "every second"])


@settings(max_examples=6)
@given(
    t=st.integers(1, 2),
    s=st.integers(1, 2),
    c=st.sampled_from([1, 3, 16]),
    o=st.sampled_from([1, 3, 16]),
    image=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    shared=st.sets(st.sampled_from(["weight", "bias"])),
    with_bias=st.booleans(),
    layout=LAYOUTS,
    seed=st.integers(0, 1000),
)
def test_conv2d(t, s, c, o, image, kernel, stride, padding, shared, with_bias, layout, seed):
    torch.manual_seed(seed)
    if any(n + 2 * p < k for n, p, k in zip(image, padding, kernel, strict=True)):
        return
    x = in_some_layout(draw(t, s, c, *image), layout)
    weight = draw(*([] if "weight" in shared else [t]), o, c, *kernel)
    bias = draw(*([] if "bias" in shared else [t]), o) if with_bias else None
    inputs = [z for z in (x, weight, bias) if z is not None]
    ours = fmF.conv2d(x, weight, bias, stride, padding)
    assert_same(ours, conv_by_task(x, weight, bias, stride, padding), inputs)


@settings(max_examples=6)
@given(
    t=st.integers(1, 2),
    s=st.integers(1, 20),
    inner=st.lists(st.integers(1, 3), max_size=1),
    i=st.integers(1, 40),
    o=st.integers(1, 40),
    shared=st.sets(st.sampled_from(["weight", "bias"])),
    with_bias=st.booleans(),
    layout=LAYOUTS,
    seed=st.integers(0, 1000),
)
def test_linear(t, s, inner, i, o, shared, with_bias, layout, seed):
    torch.manual_seed(seed)
    x = in_some_layout(draw(t, s, *inner, i), layout)
    weight = draw(*([] if "weight" in shared else [t]), o, i)
    bias = draw(*([] if "bias" in shared else [t]), o) if with_bias else None
    inputs = [z for z in (x, weight, bias) if z is not None]
    assert_same(fmF.linear(x, weight, bias), linear_by_task(x, weight, bias), inputs)


@pytest.mark.parametrize("stride, padding", [(1, 0), ((2, 1), (0, 2))])
def test_derivatives_of_conv2d(stride, padding):
    inputs = draw(2, 1, 1, 3, 2), draw(2, 2, 1, 2, 2), draw(2, 2)

    def call(x, weight, bias):
        return fmF.conv2d(x, weight, bias, stride, padding)

    def slope(x, weight, bias):
        loss = call(x, weight, bias).sin().sum()
        return torch.autograd.grad(loss, (x, weight, bias), create_graph=True)

    assert gradcheck(call, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)
    if stride != 1:  # of third order, for which the interpreter takes half a minute
        assert gradgradcheck(slope, inputs, fast_mode=True)


def test_the_gradients_of_conv2d_are_operations_of_their_own():
    x, weight = draw(2, 1, 1, 3, 3), draw(2, 2, 1, 2, 2)
    outer = torch.randn_like(fmF.conv2d(x, weight)).requires_grad_()

    def of_x(g, weight):
        return conv2d_input_gradient(g, weight, (3, 3))

    def of_weight(g, x):
        return conv2d_weight_gradient(g, x, (2, 2))

    assert gradgradcheck(of_x, (outer, weight), fast_mode=True)
    assert gradgradcheck(of_weight, (outer, x), fast_mode=True)


def test_derivatives_of_linear():
    inputs = draw(2, 3, 2), draw(2, 3, 2), draw(2, 3)

    def slope(*inputs):
        loss = fmF.linear(*inputs).sin().sum()
        return torch.autograd.grad(loss, inputs, create_graph=True)

    assert gradcheck(fmF.linear, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(slope, inputs, fast_mode=True)


def test_torch_func():
    shapes = [(2, 3, 5), (2, 4, 5), (2, 4)]
    inputs = [torch.randn(2, *shape, dtype=DOUBLE, device=DEVICE) for shape in shapes]

    def second(f):
        return grad(lambda *z: grad(lambda *z: f(*z).sin().sum(), 1)(*z).cos().sum(), (0, 1, 2))

    both = fmF.linear, linear_by_task
    torch.testing.assert_close(*(vmap(second(f))(*inputs) for f in both))
    first = tuple(z[0] for z in inputs)
    torch.testing.assert_close(*(jvp(second(f), first, first) for f in both))


def test_float32_is_as_near_as_pytorch():
    x, weight = torch.randn(2, 3, 16, 9, 9), torch.randn(2, 17, 16, 3, 3)
    x, weight = x.to(DEVICE), weight.to(DEVICE)
    right = conv_by_task(x.double(), weight.double(), None, 1, 1)
    plain = conv_by_task(x, weight, None, 1, 1)
    ours = fmF.conv2d(x, weight, None, 1, 1)
    assert relative_error([ours], [right]) <= 2 * relative_error([plain], [right])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "c, o, stride, padding", [(5, 3, 1, 1), (16, 16, (2, 1), (0, 2)), (1, 70, 1, 0)]
)
def test_weights_with_their_outputs_last(monkeypatch, c, o, stride, padding, shared):
    """As many rows would have them, for which the interpreter has no time."""
    monkeypatch.setattr(configs, "turns_weights", lambda *_, **__: True)
    x, weight, bias = draw(2, 2, c, 6, 5), draw(*([] if shared else [2]), o, c, 3, 2), draw(2, o)
    ours = fmF.conv2d(x, weight, bias, stride, padding)
    assert_same(ours, conv_by_task(x, weight, bias, stride, padding), [x, weight, bias])


@pytest.mark.parametrize("shared", [False, True])
def test_linear_with_outputs_last(monkeypatch, shared):
    monkeypatch.setattr(configs, "turns_weights", lambda *_, **__: True)
    x, weight, bias = draw(2, 3, 20), draw(*([] if shared else [2]), 70, 20), draw(2, 70)
    assert_same(fmF.linear(x, weight, bias), linear_by_task(x, weight, bias), [x, weight, bias])


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_not_finite_stays_so(monkeypatch, turned):
    monkeypatch.setattr(configs, "turns_weights", lambda *_, **__: turned)
    x, weight = (torch.randn(2, 2, 3, 4, 4, device=DEVICE) for _ in range(2))
    weight = weight[..., :2, :2].contiguous()
    x[0, 0, 0, 1, 1], x[0, 1, 2, 3, 3], weight[1, 0, 1, 0, 1] = torch.inf, torch.nan, -torch.inf
    x[1, 0, 0, 0, 0], weight[1, 1, 0, 0, 0] = torch.finfo(torch.float32).max, 0.5
    weight.requires_grad_()
    ours, right = fmF.conv2d(x, weight), conv_by_task(x, weight, None, 1, 0)
    torch.testing.assert_close(ours, right, equal_nan=True)
    outer = torch.randn_like(right)
    gradients = [torch.autograd.grad(y, weight, outer) for y in (ours, right)]
    torch.testing.assert_close(*gradients, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32x3", "tf32", "bf16"])
def test_each_precision_is_as_near_as_pytorch_in_it(monkeypatch, precision):
    """A layer of Conv4-64 with rows enough for weights with their outputs last."""
    shapes = (2, 3, 64, 14, 14), (2, 64, 64, 3, 3), (2, 3, 64, 14, 14)
    x, weight, outer = (torch.randn(shape, device=DEVICE) for shape in shapes)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", precision == "tf32")
    plainly = torch.bfloat16 if precision == "bf16" else torch.float32

    def results(conv, dtype):
        inputs = [z.to(dtype).requires_grad_() for z in (x, weight)]
        y = conv(*inputs, None, 1, 1)
        return [y, *torch.autograd.grad(y, inputs, outer.to(dtype))]

    right, plain = results(conv_by_task, DOUBLE), results(conv_by_task, plainly)
    with products_in(precision):
        ours = results(fmF.conv2d, torch.float32)
    for found, near, exact in zip(ours, plain, right, strict=True):
        assert relative_error([found], [exact]) <= 2 * relative_error([near], [exact])


def test_a_long_sum_is_split_and_repeats():
    grad_y, x = draw(1, 700, 3, dtype=torch.float32), draw(1, 700, 5, dtype=torch.float32)
    first = linear_kernels.weight_gradient(grad_y.detach(), x.detach(), True, "ieee")
    again = linear_kernels.weight_gradient(grad_y.detach(), x.detach(), True, "ieee")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    right = grad_y.mT.double() @ x.double(), grad_y.double().sum(1)
    assert relative_error(first, right) < 1e-6


@pytest.mark.skipif(DEVICE == "cuda", reason="takes no memory on a CPU alone")
def test_offsets_are_64_bit():
    """Strides of 32 bits whose multiples are none, in memory of which few pages are touched."""
    apart = 2**30 + 64
    room = torch.tensor([]).set_(torch.UntypedStorage(4 * (2 * apart + 64)))
    x = room.as_strided((3, 2, 3), (apart, 3, 1))
    x.copy_(torch.arange(18.0).reshape(3, 2, 3))
    weight = torch.randn(3, 2, 3)
    y = linear_kernels.product(x, weight, None, "ieee")
    torch.testing.assert_close(y, x.clone() @ weight.mT)
    images = room.as_strided((3, 1, 1, 2, 3), (apart, 6, 6, 3, 1))
    kernel = torch.randn(3, 2, 1, 1, 2)
    z = conv2d_kernels.convolve(images, kernel, None, (1, 1), (0, 0), "ieee")
    torch.testing.assert_close(z, conv_by_task(images.clone(), kernel, None, 1, 0))


@pytest.mark.skipif(DEVICE == "cuda", reason="bfloat16 products run on a GPU")
def test_the_interpreter_refuses_bfloat16():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    tasks = fm.TaskBatch(*(torch.randn(2, 3, 2) for _ in range(4)))
    with pytest.raises(ValueError, match="interpreter has no products in bfloat16"):
        fm.MAML(model, loss="mse", precision="bf16")(tasks)


def test_precision_needs_the_kernels():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    tasks = fm.TaskBatch(*(torch.randn(2, 3, 2) for _ in range(4)))
    with pytest.raises(ValueError, match=r"precision must be one of"):
        fm.MAML(model, precision="fp8")
    with fm.use_backend("reference"), pytest.raises(ValueError, match="not of the reference"):
        fm.MAML(model, loss="mse", precision="tf32")(tasks)
    with fm.use_backend("cpu"), pytest.raises(ValueError, match="which it does not use"):
        fm.MAML(model, loss="mse", precision="tf32")(tasks)
    out = fm.MAML(model.to(DEVICE), loss="mse", precision="tf32")(tasks.to(DEVICE))
    out.loss.sum().backward()
    assert model[0].weight.grad.isfinite().all()
