"""Every operation on every device here, with two derivatives, against float64 on the CPU."""

import pytest
import torch
from freed import marked
from torch.nn import functional as F

from fastmeta import functional as fmF

T, S, Q, N, D = 3, 8, 5, 4, 6
LABELS = torch.arange(S).remainder(N).repeat(T, 1)
QUERY_LABELS = torch.arange(Q).remainder(N).repeat(T, 1)


def prototype_loss(metric):
    def run(support, query):
        y, query_y = (labels.to(support.device) for labels in (LABELS, QUERY_LABELS))
        loss, logits = fmF.prototype_loss(
            support, y, query, query_y, n_way=N, metric=metric, temperature=3.0
        )
        return loss.sum() + logits.sin().sum()

    return run


# A function of tensors, and their shapes.
OPERATIONS = {
    "linear": (fmF.linear, [(T, S, D), (T, N, D), (T, N)]),
    "linear-shared": (fmF.linear, [(T, S, D), (N, D), (N,)]),
    "conv2d": (
        lambda x, w, b: fmF.conv2d(x, w, b, padding=1),
        [(T, S, 2, 7, 5), (T, 3, 2, 3, 3), (T, 3)],
    ),
    "conv2d-stride": (
        lambda x, w, b: fmF.conv2d(x, w, b, stride=2), [(T, S, 2, 7, 5), (T, 3, 2, 3, 3), (T, 3)]
    ),
    "batch_norm": (fmF.batch_norm, [(T, S, 2, 5, 5), (T, 2), (T, 2)]),
    "layer_norm": (
        lambda x, w, b: fmF.layer_norm(x, (D,), w, b), [(T, S, D), (T, D), (T, D)]
    ),
    "tanh": (fmF.tanh, [(T, S, D)]),
    "gelu": (fmF.gelu, [(T, S, D)]),
    "max_pool2d": (lambda x: fmF.max_pool2d(x, 2), [(T, S, 2, 6, 6)]),
    "avg_pool2d": (lambda x: fmF.avg_pool2d(x, 2), [(T, S, 2, 6, 6)]),
    "cross_entropy": (lambda x: fmF.cross_entropy(x, LABELS.to(x.device)), [(T, S, N)]),
    "mse_loss": (fmF.mse_loss, [(T, S, N), (T, S, N)]),
    "prototypes": (lambda x: fmF.prototypes(x, LABELS.to(x.device), N), [(T, S, D)]),
    **{
        f"pairwise-{metric}": (
            lambda x, y, metric=metric: fmF.pairwise_distance(x, y, metric), [(T, Q, D), (T, N, D)]
        )
        for metric in ("sqeuclidean", "euclidean", "cosine", "dot")
    },
    **{
        f"prototype_loss-{metric}": (prototype_loss(metric), [(T, S, D), (T, Q, D)])
        for metric in ("sqeuclidean", "cosine")
    },
}  # fmt: skip


def derivatives(function, arrays, device, dtype):
    """The value, its gradients, and the gradients of a function of those."""
    inputs = [a.to(device, dtype).requires_grad_() for a in arrays]
    value = function(*inputs)
    first = torch.autograd.grad(value.cos().sum(), inputs, create_graph=True)
    slope = sum((g * g.detach().sin()).sum() for g in first)
    second = torch.autograd.grad(slope, inputs, materialize_grads=True)
    return [value.detach(), *(g.detach() for g in first), *second]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operation(device, name, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    function, shapes = OPERATIONS[name]
    torch.manual_seed(0)
    arrays = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    exact = derivatives(function, arrays, torch.device("cpu"), torch.float64)
    found = derivatives(function, arrays, device, dtype)
    for got, wanted in zip(found, exact, strict=True):
        assert got.device.type == device.type and got.dtype is dtype
        error = (got.double().cpu() - wanted).norm()
        scale = max(float(wanted.norm()), 1.0)
        assert float(error) < (1e-4 if dtype is torch.float32 else 1e-11) * scale


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_graph_is_freed_with_its_last_result(device, name):
    """A node that holds its own output would keep all memory of every step."""
    function, shapes = OPERATIONS[name]
    inputs, nodes = marked([torch.randn(shape, device=device) for shape in shapes])
    value = function(*inputs).sum()
    value.backward()
    assert any(node() is not None for node in nodes)
    del inputs, value
    assert all(node() is None for node in nodes)


def test_the_nearest_prototypes(device):
    torch.manual_seed(0)
    x, bank = torch.randn(1, 9, D), torch.randn(70, D)
    values, indices = fmF.nearest_prototype(x.to(device), bank.to(device), k=3)
    exact = torch.cdist(x.double(), bank.double()).square().topk(3, largest=False)
    assert torch.equal(indices.cpu(), exact.indices)
    assert torch.allclose(values.cpu(), F.relu(exact.values.float()), rtol=1e-5)
