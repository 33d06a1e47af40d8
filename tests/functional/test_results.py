"""What an operation returns may be changed in place, as PyTorch's own results may."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

import fastmeta as fm
import fastmeta.functional as fmF

OPERATIONS = {
    "conv2d": lambda x, w, b: fmF.conv2d(x, w),
    "conv2d with a bias": lambda x, w, b: fmF.conv2d(x, w, b, 2, 1),
    "conv2d in groups": lambda x, w, b: fmF.conv2d(x, w[:, :, :1], b, groups=2),
    "gradient for the input": lambda x, w, b: fmF.conv2d_input_gradient(x, w, (8, 8)),
    "gradient for the weight": lambda x, w, b: fmF.conv2d_weight_gradient(x, x * 2, 1),
    "conv_transpose2d": lambda x, w, b: fmF.conv_transpose2d(x, w, stride=2),
    "linear": lambda x, w, b: fmF.linear(x[:, :, 0], w[:, :, 0, 0].repeat(1, 1, 2)),
    "batch_norm": lambda x, w, b: fmF.batch_norm(x, b, b),
    "batch_norm_pool": lambda x, w, b: fmF.batch_norm_pool(x, b, b, 1e-5, 0.0, 2),
    "group_norm": lambda x, w, b: fmF.group_norm(x, 1, b, b),
    "instance_norm": lambda x, w, b: fmF.instance_norm(x, b, b),
    "max_pool2d": lambda x, w, b: fmF.max_pool2d(x, 2),
    "avg_pool2d": lambda x, w, b: fmF.avg_pool2d(x, 2),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_results_may_be_changed_in_place(name, backend):
    leaves = [torch.randn(3, 4, 2, 6, 6), torch.randn(3, 2, 2, 3, 3), torch.rand(3, 2)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def gradients(changes):
        y = OPERATIONS[name](*leaves)
        if changes:
            y.mul_(0.5).flatten(2).relu_()
        else:
            y = F.relu(0.5 * y)
        first = torch.autograd.grad(
            y.sin().sum(), leaves, create_graph=True, allow_unused=True, materialize_grads=True
        )
        second = sum(g.sin().sum() for g in first)
        return first, torch.autograd.grad(second, leaves, allow_unused=True, materialize_grads=True)

    with fm.use_backend(backend) if backend else contextlib.nullcontext():
        changed, right = gradients(True), gradients(False)
    for ours, theirs in zip(changed, right, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_a_view_of_an_argument_stays_one():
    x = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="view"):
        _First.apply(x).mul_(2)


class _First(fm.functional.eager.Function):
    @staticmethod
    def forward(x):
        return x[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass
