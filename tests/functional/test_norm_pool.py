"""The native kernels of norm, activation and pool, against the operations one after another."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import DOUBLE, relative_error
from torch.autograd import gradcheck, gradgradcheck

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.backends import cpu, norms
from fastmeta.functional.normalize import kernels_for

pytestmark = pytest.mark.skipif(cpu.native is None, reason="the native kernels are not built")

EPS = 0.01
LAYOUTS = {
    "plain": lambda x: x.contiguous(),
    "samples first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels last": lambda x: x.movedim(2, 4).contiguous().movedim(4, 2),
    "samples first, channels last": lambda x: x.permute(1, 0, 3, 4, 2).contiguous().permute(
        1, 0, 4, 2, 3
    ),
    "turned": lambda x: x.transpose(3, 4).contiguous().transpose(3, 4),
    "every other": lambda x: torch.stack([x, x], -1).flatten(4)[..., ::2],
}  # fmt: skip


def problem(shape, dtype=DOUBLE, given=("weight", "bias"), offset=0.0):
    x = torch.randn(shape, dtype=dtype) + offset
    return x, *(
        torch.randn(shape[0], shape[2], dtype=dtype) if name in given else None
        for name in ("weight", "bias")
    )


def plain(x, weight, bias, slope, pool, eps=EPS):
    """One task after another, in PyTorch, whose double backward wants a weight."""
    weight = torch.ones_like(x[:, 0, :, 0, 0]) if weight is None else weight
    tasks = []
    for t in range(len(x)):
        own = [None if p is None else p[t] for p in (weight, bias)]
        z = F.leaky_relu(F.batch_norm(x[t], None, None, *own, training=True, eps=eps), slope)
        tasks.append(z if pool == 1 else F.max_pool2d(z, pool))
    return torch.stack(tasks)


def derivatives(of, inputs, layout=LAYOUTS["plain"], dtype=DOUBLE):
    """Value, gradients and their gradients, along directions that are always the same."""
    inputs = [z if z is None else z.to(dtype) for z in inputs]
    inputs[0] = layout(inputs[0])
    inputs = [z if z is None else z.requires_grad_() for z in inputs]
    known = [z for z in inputs if z is not None]
    generator = torch.Generator().manual_seed(1)

    def draw(like):
        return torch.randn(like.shape, dtype=DOUBLE, generator=generator).to(dtype)

    y = of(*inputs)
    outer = layout(draw(y)).requires_grad_()
    first = torch.autograd.grad(y, known, outer, create_graph=True)
    along = [draw(g) for g in first]
    along[0] = layout(along[0])
    *curved, _ = inputs  # all but the bias, in which the gradients are constant
    curved = [outer, *(z for z in curved if z is not None)]
    second = torch.autograd.grad(first, curved, along)
    return [z.detach() for z in (y, *first, *second)]


@given(
    t=st.integers(1, 3),
    s=st.integers(1, 4),
    c=st.integers(1, 20),
    size=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    pool=st.sampled_from([1, 2]),
    slope=st.sampled_from([0.0, 0.1, 1.0]),
    given=st.sets(st.sampled_from(["weight", "bias"])),
    layout=st.sampled_from([*LAYOUTS]),
    seed=st.integers(0, 1000),
)
def test_random_shapes_equal_one_operation_after_another(
    t, s, c, size, pool, slope, given, layout, seed
):
    torch.manual_seed(seed)
    size = [max(n, pool) for n in size]
    s = s + 1 if size == [1, 1] else s
    inputs = problem((t, s, c, *size), given=given)
    assert kernels_for(*inputs) is norms
    ours = derivatives(
        lambda *z: fmF.batch_norm_pool(*z, EPS, slope, pool), inputs, LAYOUTS[layout]
    )
    right = derivatives(lambda *z: plain(*z, slope, pool), inputs)
    torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


def test_large_images_of_every_length_of_a_row():
    for width in (31, 32, 33, 46, 47):
        inputs = problem((1, 3, 2, 9, width))
        ours = derivatives(lambda *z: fmF.batch_norm_pool(*z, EPS, 0.1, 2), inputs)
        right = derivatives(lambda *z: plain(*z, 0.1, 2), inputs)
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("slope", [0.2, 1.0])
@pytest.mark.parametrize("layout", ["samples first", "channels last"])
def test_derivatives_of_any_order(pool, slope, layout):
    inputs = [LAYOUTS[layout](z) if z.dim() == 5 else z for z in problem((2, 2, 2, 2, 3))]
    inputs = [z.requires_grad_() for z in inputs]

    def call(*z):
        return fmF.batch_norm_pool(*z, EPS, slope, pool)

    def slopes(*z):
        return torch.autograd.grad(call(*z).sin().sum(), z, create_graph=True)

    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)
    assert gradcheck(slopes, inputs)
    assert gradgradcheck(slopes, inputs)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("layout", ["samples first", "channels last"])
@pytest.mark.parametrize("slope, pool", [(1.0, 1), (0.0, 2)])
@pytest.mark.parametrize("shape", [(1, 20, 40, 28, 28), (1, 50, 64, 9, 9), (1, 2, 40, 65, 65)])
def test_errors_in_float32_are_those_of_pytorch(shape, slope, pool, layout, offset):
    x, weight, bias = problem(shape, torch.float32)
    x = (x * torch.linspace(0.5, 3, shape[1])[:, None, None, None] + offset).double()
    inputs = (x.float().double(), weight.double(), bias.double())

    def of(run, dtype, layout="plain"):
        return derivatives(lambda *z: run(*z, slope, pool), inputs, LAYOUTS[layout], dtype)

    def native(x, weight, bias, slope, pool):
        return fmF.batch_norm_pool(x, weight, bias, EPS, slope, pool)

    right = of(plain, DOUBLE)
    ours = of(native, torch.float32, layout)
    theirs = of(plain, torch.float32)
    if offset and slope < 1:  # the mean's last bit decides where the activation has its kink
        ours, theirs, right = ours[:1], theirs[:1], right[:1]
    for found, other, exact in zip(ours, theirs, right, strict=True):
        ours_off, theirs_off = (relative_error([z.double()], [exact]) for z in (found, other))
        assert ours_off <= 2 * theirs_off


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("layout", ["samples first", "channels last"])
def test_threads_change_no_bit(dtype, layout):
    inputs = problem((3, 40, 19, 21, 22))
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(
                derivatives(
                    lambda *z: fmF.batch_norm_pool(*z, EPS, 0.1, 2), inputs, LAYOUTS[layout], dtype
                )
            )
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_ties_go_to_the_first_pixel():
    x = torch.randn(2, 3, 4, 1, 8, dtype=DOUBLE).repeat_interleave(2, 3).repeat_interleave(2, 4)
    inputs = (x, torch.randn(2, 4, dtype=DOUBLE), torch.randn(2, 4, dtype=DOUBLE))
    ours = derivatives(lambda *z: fmF.batch_norm_pool(*z, EPS, 0.5, 2), inputs)
    right = derivatives(lambda *z: plain(*z, 0.5, 2), inputs)
    torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("layout", ["samples first", "channels last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_channel_and_no_other(value, layout):
    x, weight, bias = problem((2, 3, 9, 7, 6), torch.float32)
    clean = fmF.batch_norm_pool(LAYOUTS[layout](x), weight, bias)
    x[1, 2, 8, 6, 5] = value
    y = fmF.batch_norm_pool(LAYOUTS[layout](x), weight, bias)
    assert y[1, :, 8].isnan().all()
    clean[1, :, 8] = y[1, :, 8] = 0
    assert torch.equal(y, clean)


def test_a_constant_channel_is_its_bias():
    x = torch.full((1, 3, 2, 5, 5), 1e4 + 0.1)
    bias = torch.tensor([0.5, 2.0])
    y = fmF.batch_norm(x, torch.ones(2), bias)
    assert torch.equal(y, bias[:, None, None].expand_as(y))
    # One value a norm: its mean.
    rows = torch.randn(2, 3, 4, 1)
    assert torch.equal(fmF.layer_norm(rows, [1]), torch.zeros_like(rows))


def test_the_backend_may_change_between_forward_and_backward():
    inputs = [z.requires_grad_() for z in problem((2, 3, 4, 5, 6))]

    def slopes(first, then):
        with fm.use_backend(first):
            y = fmF.batch_norm_pool(*inputs, EPS, 0.1, 2)
        with fm.use_backend(then):
            grads = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
            return grads, torch.autograd.grad(sum(g.cos().sum() for g in grads), inputs)

    torch.testing.assert_close(slopes("cpu", "reference"), slopes("cpu", "cpu"))
    torch.testing.assert_close(slopes("reference", "cpu"), slopes("cpu", "cpu"))


def test_gradients_under_vmap_and_turned_signs():
    inputs = [z.requires_grad_() for z in problem((2, 3, 4, 4, 6))]
    y = fmF.batch_norm_pool(*inputs, EPS, 0.1, 2)
    outer = torch.randn(3, *y.shape, dtype=DOUBLE)
    batched = torch.func.vmap(lambda g: torch.autograd.grad(y, inputs, g, retain_graph=True))(outer)
    one_by_one = [torch.autograd.grad(y, inputs, g, retain_graph=True) for g in outer]
    for together, *alone in zip(batched, *one_by_one, strict=True):
        torch.testing.assert_close(together, torch.stack(alone))
    turned = torch.imag(torch.conj(torch.complex(outer[0], -outer[0])))
    assert turned.is_neg()
    torch.testing.assert_close(torch.autograd.grad(y, inputs, turned), one_by_one[0])


def test_shared_parameters_and_nothing_else_than_the_gradient_that_is_wanted():
    x, weight, bias = problem((2, 3, 4, 4, 6))
    weight, bias = weight[0].requires_grad_(), bias[0].requires_grad_()
    y = fmF.batch_norm_pool(x, weight, bias, EPS, 0.1, 2)
    right = plain(x, weight.expand(2, -1), bias.expand(2, -1), 0.1, 2)
    outer = torch.randn_like(y)
    for of in ((weight,), (bias,), (weight, bias)):
        ours, theirs = (torch.autograd.grad(z, of, outer, retain_graph=True) for z in (y, right))
        torch.testing.assert_close(ours, theirs)
