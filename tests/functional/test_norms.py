"""Norms with the statistics of each task, and the derivatives that torch.vmap gets wrong."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import DOUBLE, assert_slope
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from fastmeta import functional as fmF

EPS = 0.01


def batch(f, x, weight, bias):
    return f.batch_norm(x, weight, bias, EPS)


def layer(f, x, weight, bias):
    return f.layer_norm(x, x.shape[f.FIRST + 2 :], weight, bias, EPS)


def group(f, x, weight, bias):
    return f.group_norm(x, 2, weight, bias, EPS)


def instance(f, x, weight, bias):
    return f.instance_norm(x, weight, bias, EPS)


class Ours:
    """fastmeta.functional, and where a sample begins."""

    FIRST = 1
    batch_norm, layer_norm = staticmethod(fmF.batch_norm), staticmethod(fmF.layer_norm)
    group_norm, instance_norm = staticmethod(fmF.group_norm), staticmethod(fmF.instance_norm)


class OneTask:
    FIRST = 0
    layer_norm, group_norm = staticmethod(F.layer_norm), staticmethod(F.group_norm)

    @staticmethod
    def batch_norm(x, weight, bias, eps):
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)

    @staticmethod
    def instance_norm(x, weight, bias, eps):
        return F.instance_norm(x, None, None, weight, bias, eps=eps)


NORMS = {"batch": batch, "layer": layer, "group": group, "instance": instance}


def one_by_one(norm, x, weight, bias):
    def of(parameter, t):
        per_task = parameter is not None and parameter.dim() > rank
        return parameter[t] if per_task else parameter

    rank = len(own_shape(norm, x))
    return torch.stack(
        [NORMS[norm](OneTask, x[t], of(weight, t), of(bias, t)) for t in range(len(x))]
    )


def ours(norm, x, weight, bias):
    return NORMS[norm](Ours, x, weight, bias)


def own_shape(norm, x):
    return x.shape[3:] if norm == "layer" else x.shape[2:3]


def problem(norm, shape=(2, 3, 4, 2, 2), given=("weight", "bias"), shared=()):
    x = torch.randn(*shape, dtype=DOUBLE)
    parameters = [
        torch.randn(*([] if name in shared else x.shape[:1]), *own_shape(norm, x), dtype=DOUBLE)
        if name in given
        else None
        for name in ("weight", "bias")
    ]
    return [z if z is None else z.requires_grad_() for z in (x, *parameters)]


@given(
    norm=st.sampled_from([*NORMS]),
    t=st.integers(1, 4),
    s=st.integers(1, 4),
    c=st.sampled_from([2, 4]),
    pixels=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    given=st.sets(st.sampled_from(["weight", "bias"])),
    shared=st.sets(st.sampled_from(["weight", "bias"])),
    samples_first=st.booleans(),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    seed=st.integers(0, 1000),
)
def test_random_shapes_equal_one_task_after_another(
    norm, t, s, c, pixels, given, shared, samples_first, dtype, seed
):
    torch.manual_seed(seed)
    pixels[-1] += 1  # several values for each norm
    inputs = [
        z if z is None else z.detach().to(dtype).requires_grad_()
        for z in problem(norm, (t, s, c, *pixels), given, shared)
    ]
    known = [z for z in inputs if z is not None]
    right = one_by_one(norm, *inputs)
    if samples_first:  # as it comes out of a convolution
        inputs[0] = inputs[0].transpose(0, 1).contiguous().transpose(0, 1)
    y = ours(norm, *inputs)
    torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-4)
    outer = torch.randn_like(right)
    torch.testing.assert_close(
        torch.autograd.grad(y, known, outer),
        torch.autograd.grad(right, known, outer),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("given", [(), ("weight", "bias"), ("bias",)])
def test_derivatives_of_any_order(norm, given):
    inputs = [z for z in problem(norm, (2, 2, 2, 1, 3), given) if z is not None]

    def call(x, *parameters):
        known = dict(zip(given, parameters, strict=True))
        return ours(norm, x, known.get("weight"), known.get("bias"))

    def slope(*inputs):
        return torch.autograd.grad(call(*inputs).sin().sum(), inputs, create_graph=True)

    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True)
    assert gradcheck(slope, inputs)
    if len(inputs) == 3 or norm == "batch":
        assert gradgradcheck(slope, inputs)


def test_batch_norm_of_rows():
    inputs = problem("batch", (2, 5, 3))
    torch.testing.assert_close(ours("batch", *inputs), one_by_one("batch", *inputs))
    assert gradgradcheck(lambda *z: ours("batch", *z), inputs)


def test_layer_norm_of_the_last_dimensions_alone():
    x, weight = torch.randn(2, 3, 4, 5, dtype=DOUBLE), torch.randn(2, 5, dtype=DOUBLE)
    right = torch.stack([F.layer_norm(x[t], (5,), weight[t]) for t in range(2)])
    torch.testing.assert_close(fmF.layer_norm(x, (5,), weight), right)


# ---- trap: the fused norms under vmap ----------------------------------------------------------


def step_and_loss(norm_of):
    """The loss after one step on it, as a function of (x, weight, bias)."""

    def loss(*inputs):
        return norm_of(*inputs).tanh().square().sum()

    def after_step(*inputs):
        slopes = grad(loss, (0, 1, 2))(*inputs)
        return loss(*(z - 0.1 * slope for z, slope in zip(inputs, slopes, strict=True)))

    return after_step


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_vmap_of_the_fused_norm_is_wrong_at_second_order_and_ours_is_right(norm):
    inputs = [z.detach() for z in problem(norm, (3, 4, 2, 3, 3))]
    fused = step_and_loss(lambda *z: NORMS[norm](OneTask, *z))
    # A task alone has a task dimension of 1, and vmap makes more tasks of it.
    mine = step_and_loss(lambda x, *p: ours(norm, x[None], *(z[None] for z in p))[0])

    def total():
        tasks = zip(*leaves, strict=True)
        return torch.stack([fused(*task) for task in tasks]).sum()

    leaves = [z.clone().requires_grad_() for z in inputs]
    assert_slope(total, leaves)
    right = torch.autograd.grad(total(), leaves)
    good, wrong = (
        grad(lambda *z, f=f: vmap(f)(*z).sum(), (0, 1, 2))(*inputs) for f in (mine, fused)
    )
    torch.testing.assert_close(good, right)
    errors = [(w - r).norm() / r.norm() for w, r in zip(wrong, right, strict=True)]
    if max(errors) < 1e-9:
        pytest.skip("this PyTorch has repaired vmap of the fused norm")
    assert max(errors) > 1e-5


@pytest.mark.parametrize("norm", NORMS)
def test_vmap_and_forward_mode(norm):
    inputs = [z.detach() for z in problem(norm, (2, 3, 4, 1, 2))]
    several = [torch.stack([z, 2 * z.cos()]) for z in inputs]

    def second(f):
        def slopes(*z):
            return sum(g.cos().sum() for g in grad(lambda *z: f(*z).sin().sum(), (0, 1, 2))(*z))

        return slopes

    def along(f):
        return lambda *z: jvp(f, z, directions)[1].sin().sum()

    directions = tuple(torch.randn_like(z) for z in inputs)
    mine, plain = (lambda *z, f=f: f(norm, *z) for f in (ours, decomposed))
    close = torch.testing.assert_close
    close(*(vmap(grad(second(f), (0, 1, 2)))(*several) for f in (mine, plain)))
    close(*(jvp(grad(second(f)), tuple(inputs), directions)[1] for f in (mine, plain)))
    close(grad(along(mine), (0, 1, 2))(*inputs), grad(along(plain), (0, 1, 2))(*inputs))
    with torch.no_grad():
        close(jvp(mine, tuple(inputs), directions), jvp(plain, tuple(inputs), directions))
    with pytest.raises(RuntimeError, match="jvp of jvp"):
        jvp(along(mine), tuple(inputs), directions)


def decomposed(norm, x, weight, bias):
    whole = x.unflatten(2, (2, -1)) if norm == "group" else x
    dims = {"batch": (1, 3, 4), "layer": (3, 4), "group": (3, 4, 5), "instance": (3, 4)}[norm]
    variance, mean = torch.var_mean(whole, dims, correction=0, keepdim=True)
    y = ((whole - mean) * (variance + EPS).rsqrt()).reshape(x.shape)
    between = (slice(None), None, None) if norm == "layer" else (slice(None), None, ..., None, None)
    return y * weight[between] + bias[between]


def test_what_does_not_fit_is_refused():
    x, weight, bias = problem("batch")
    for error, said, wrong in [
        (ValueError, r"x must be \[T, S, C, ...\]", lambda: fmF.batch_norm(x[0, 0, 0])),
        (ValueError, "no tasks or no samples", lambda: fmF.batch_norm(x[:0])),
        (TypeError, "floating tensor", lambda: fmF.batch_norm(x.long())),
        (ValueError, "more than one value", lambda: fmF.batch_norm(x[:, :1, :, :1, :1])),
        (ValueError, r"weight must be \[4\] or \[2, 4\]", lambda: fmF.batch_norm(x, weight[:, :3])),
        (TypeError, "bias is torch.float32", lambda: fmF.batch_norm(x, weight, bias.float())),
        (ValueError, "must end in normalized_shape", lambda: fmF.layer_norm(x, (3,))),
        (ValueError, "must end in normalized_shape", lambda: fmF.layer_norm(x, ())),
        (ValueError, "num_groups=3 does not divide", lambda: fmF.group_norm(x, 3)),
        (ValueError, "num_groups must be", lambda: fmF.group_norm(x, 0)),
        (ValueError, "has no pixels", lambda: fmF.group_norm(x[..., :0], 2)),
        (ValueError, "more than one pixel", lambda: fmF.instance_norm(x[..., :1, :1])),
        (ValueError, r"x must be \[T, S, C, L, ...\]", lambda: fmF.instance_norm(x[..., 0, 0])),
    ]:
        with pytest.raises(error, match=said):
            wrong()
