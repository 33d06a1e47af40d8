"""Errors that a forward catches are not ours, and those that it raises are its own."""

import contextlib

import pytest
import torch
from stale_cases import Bent, assert_as_the_reference, tasks_of

import fastmeta as fm
from fastmeta.inner_loop.arithmetic.written import written_of


def with_an_error(x):
    try:
        return 2 * x if (x > 0.5).any() else x
    except RuntimeError:
        return -x


def with_any_error(x):
    scale = 3.0
    with contextlib.suppress(Exception):
        scale = float(x.detach().amax())
    return scale * x


def with_an_error_of_fx(x):
    try:
        return x * max(1, int(x[0, 0] * 100))
    except TypeError:
        return x


CATCHING = [with_an_error, with_any_error, with_an_error_of_fx]


@pytest.mark.parametrize("engine", ["auto", "vmap"])
@pytest.mark.parametrize("bend", CATCHING)
def test_errors_of_ours_that_a_forward_catches(bend, engine):
    meta = fm.MAML(Bent(bend), loss="mse", inner_lr=0.1, engine=engine)
    for factor in (1, 10):
        x, y = factor * torch.randn(3, 7, 3), torch.randn(3, 7, 2)
        assert_as_the_reference(meta, fm.TaskBatch(x, y, x, y))


@pytest.mark.parametrize("bend", CATCHING)
def test_torch_fx_traces_no_forward_that_catches_errors(bend):
    with pytest.raises(ValueError, match=f"{bend.__name__} catches exceptions"):
        fm.MAML(Bent(bend), loss="mse", engine="layered")(tasks_of())


# ---- the number of samples as a text -------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [str, repr, format, "{}".format, lambda n: f"{n:d}", lambda n: f"{(n,)}"[1:-2]],
)
def test_the_number_of_samples_as_a_text(text):
    def bend(x):
        return x.tanh() * {"7": 2.0}.get(text(x.shape[0]), 1.0)

    meta = fm.MAML(Bent(bend), loss="mse", inner_lr=0.1)
    assert_as_the_reference(meta, tasks_of(5))
    assert_as_the_reference(meta, tasks_of(7))


def test_an_error_says_what_sizes_it_likes():
    def bend(x):
        if x.shape[-1] != 5:
            raise ValueError(f"{x.shape[-1]} features of {x.shape[0]} samples")
        return x

    assert "it does not run: ValueError: 4 features of" in written_of(Bent(bend), [3])


# ---- numbers that only tensors tell, and not what torch.fx traces with ---------------------------


def of_a_tensor(x):
    return 2 * x if isinstance(x, torch.Tensor) and (x > 10).any() else x.tanh()


def of_a_size(x):
    return 2 * x if isinstance(x.shape[0], int) and float(x.detach().amax()) > 10 else x.tanh()


@pytest.mark.parametrize("bend", [of_a_tensor, of_a_size])
def test_a_branch_on_numbers_that_a_proxy_does_not_come_to(bend):
    meta = fm.MAML(Bent(bend), loss="mse", inner_lr=0.1)
    for factor in (0.1, 100):
        x, y = factor * torch.randn(3, 7, 3), torch.randn(3, 7, 2)
        assert_as_the_reference(meta, fm.TaskBatch(x, y, x, y))
    assert "asks for numbers" in fm.explain(meta, tasks_of()).passed_over["layered"]
