"""Linear layers of many tasks, and the activations between them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import DOUBLE
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from fastmeta import functional as fmF


def draw(*shape, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def one_by_one(x, weight, bias):
    def of(parameter, rank, t):
        return parameter if parameter is None or parameter.dim() == rank else parameter[t]

    return torch.stack([F.linear(x[t], of(weight, 2, t), of(bias, 1, t)) for t in range(len(x))])


@given(
    rows=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    i=st.integers(1, 4),
    o=st.integers(1, 4),
    shared=st.sets(st.sampled_from(["weight", "bias"])),
    with_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
)
def test_random_shapes_equal_one_task_after_another(rows, i, o, shared, with_bias, dtype):
    x = draw(*rows, i, dtype=dtype)
    weight = draw(*([] if "weight" in shared else rows[:1]), o, i, dtype=dtype)
    bias = draw(*([] if "bias" in shared else rows[:1]), o, dtype=dtype) if with_bias else None
    inputs = [z for z in (x, weight, bias) if z is not None]
    y, right = fmF.linear(x, weight, bias), one_by_one(x, weight, bias)
    torch.testing.assert_close(y, right)
    outer = torch.randn_like(right)
    torch.testing.assert_close(
        torch.autograd.grad(y, inputs, outer), torch.autograd.grad(right, inputs, outer)
    )


def test_derivatives_of_any_order():
    inputs = draw(2, 3, 2), draw(2, 3, 2), draw(3)

    def slope(*inputs):
        loss = fmF.linear(*inputs).sin().sum()
        return torch.autograd.grad(loss, inputs, create_graph=True)

    assert gradcheck(fmF.linear, inputs, check_forward_ad=True)
    assert gradgradcheck(fmF.linear, inputs)
    assert gradgradcheck(slope, inputs)


def test_torch_func():
    inputs = [torch.randn(4, *shape, dtype=DOUBLE) for shape in [(2, 3, 5), (2, 4, 5), (2, 4)]]

    def second(f):
        return grad(lambda *z: grad(lambda *z: f(*z).sin().sum(), 1)(*z).cos().sum(), (0, 1, 2))

    close = torch.testing.assert_close
    close(*(vmap(second(f))(*inputs) for f in (fmF.linear, one_by_one)))
    first = tuple(z[0] for z in inputs)
    close(*(jvp(second(f), first, first) for f in (fmF.linear, one_by_one)))


def test_what_does_not_fit_is_refused():
    x, weight, bias = draw(2, 3, 5), draw(2, 4, 5), draw(2, 4)
    for error, said, wrong in [
        (ValueError, r"x must be \[T, S, ..., I\]", lambda: fmF.linear(x[0], weight)),
        (ValueError, "no tasks or no samples", lambda: fmF.linear(x[:, :0], weight)),
        (TypeError, "x must be a floating tensor", lambda: fmF.linear(x.long(), weight)),
        (ValueError, r"weight must be \[4, 5\] or \[2, 4, 5\]", lambda: fmF.linear(x, weight[:1])),
        (ValueError, "weight must be", lambda: fmF.linear(x, weight[..., :3])),
        (ValueError, "weight must be", lambda: fmF.linear(x, bias[0])),
        (TypeError, "weight must be a tensor", lambda: fmF.linear(x, None)),
        (TypeError, "bias is torch.float32", lambda: fmF.linear(x, weight, bias.float())),
    ]:
        with pytest.raises(error, match=said):
            wrong()


# ---- activations -------------------------------------------------------------------------------

ACTIVATIONS = {
    "relu": (fmF.relu, F.relu),
    "leaky_relu": (lambda x: fmF.leaky_relu(x, 0.3), lambda x: F.leaky_relu(x, 0.3)),
    "tanh": (fmF.tanh, torch.tanh),
    "sigmoid": (fmF.sigmoid, torch.sigmoid),
    "sin": (lambda x: fmF.sin(x, 3.0), lambda x: torch.sin(3 * x)),
    "gelu": (fmF.gelu, F.gelu),
    "gelu tanh": (lambda x: fmF.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "softplus": (lambda x: fmF.softplus(x, 2.0), lambda x: F.softplus(x, 2.0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    ours, plain = ACTIVATIONS[name]
    x = draw(2, 3, 4)
    assert torch.equal(ours(x), plain(x))

    def slope(x):
        return torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)

    assert gradcheck(ours, x) and gradgradcheck(ours, x) and gradgradcheck(slope, x)
    right = torch.stack([grad(lambda x: plain(x).sum())(row) for row in x])
    torch.testing.assert_close(vmap(grad(lambda x: ours(x).sum()))(x), right)


def test_activations_refuse_what_is_not_floating():
    for name in ("relu", "leaky_relu", "tanh", "sigmoid", "sin", "gelu", "softplus"):
        with pytest.raises(TypeError, match="floating tensor"):
            getattr(fmF, name)(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="approximate must be"):
        fmF.gelu(torch.ones(2), "erf")
