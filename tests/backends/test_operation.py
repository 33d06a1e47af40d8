"""The operators behind the kernels: PyTorch's own checks, and that they say what they cannot."""

import pytest
import torch
from interpreter import takes_tensors_without_values
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fastmeta as fm
import fastmeta.functional as F
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.native is None, reason="the native kernels are not built")

CPU = torch.device("cpu")
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # "cpu": Triton's interpreter
NATIVE, TRITON = "fastmeta.backends.prototypes", "fastmeta.backends.triton_prototypes"
FLOATS = [torch.float32, torch.float64]


def images(*shape, like):
    return torch.randn(*shape, **like)


def convolution(like):
    x, weight = images(2, 3, 2, 5, 4, like=like), images(2, 4, 2, 3, 2, like=like)
    grad = images(2, 3, 4, 3, 3, like=like)  # stride 2, padding 1
    across = x.transpose(0, 1).contiguous().transpose(0, 1)
    return x, across, weight, images(2, 4, like=like), grad


def of_convolutions(like, prefix="", *precision):
    x, across, weight, bias, grad = convolution(like)
    window, end = ([2, 2], [1, 1]), precision
    if not precision:  # the native ones dilate
        window = (*window, [1, 1])
    gradient = [True] * len(precision)  # the Triton kernel gives that of the bias too
    yield f"{prefix}convolve", (x, weight, bias, *window, *end)
    yield f"{prefix}convolve", (across, weight[:1].expand_as(weight), None, *window, *end)
    yield f"{prefix}convolve_input_gradient", (grad, weight, [5, 4], *window, *end)
    yield f"{prefix}convolve_weight_gradient", (grad, x, [3, 2], *window, *gradient, *end)
    if precision:
        yield f"{prefix}convolve_weight_gradient", (grad, across, [3, 2], *window, False, *end)


def of_norms(like, prefix=""):
    by_pixels, by_channels = images(2, 3, 2, 4, 6, like=like), images(3, 2, 4, 4, 3, like=like)
    for x, pool in ((by_pixels, 1), (by_channels.permute(1, 0, 4, 2, 3), 2)):
        channels = (2, x.shape[2])
        sides = [images(*channels, like=like) if pool > 1 else None for _ in range(2)]
        mean, rstd = images(*channels, like=like), images(*channels, like=like).abs()
        grad = images(*x.shape[:3], x.shape[3] // pool, x.shape[4] // pool, like=like)
        grads = [torch.randn_like(x), *(images(*channels, like=like) for _ in range(2))]
        rest = (grad, x, *sides, mean, rstd, 0.1, pool)
        yield f"{prefix}norm", (x, *sides, 1e-5, 0.1, pool)
        yield f"{prefix}norm_backward", rest
        yield f"{prefix}norm_second_backward", (grads, *rest)


def of_pools(like):
    x = images(2, 3, 2, 6, 17, like=like)
    at = torch.randint(4, (2, 3, 2, 3, 8)).to(**like)
    by_channels = x.movedim(2, 4).contiguous().movedim(4, 2)
    for image in (x, x.transpose(0, 1).contiguous().transpose(0, 1), by_channels):
        yield "max_pool", (image,)
        yield "max_pool_gather", (image, at)
    yield "max_pool_scatter", (at * 2, at, [6, 17])


def of_distances(like, prefix=""):
    x, y = torch.randn(2, 5, 7, **like), torch.randn(2, 4, 7, **like)
    shared = y[:1].expand_as(y)
    yield f"{prefix}squared_distances", (x, y)
    yield f"{prefix}squared_distances", (x, shared)
    yield f"{prefix}project_differences", (torch.randn_like(x), x, y)
    yield f"{prefix}pull_differences", (torch.randn(2, 4, 5, **like).mT, x, y)
    if not prefix or like["dtype"] is torch.float32:
        yield f"{prefix}nearest", (x, shared, 2, "dot")


def of_prototypes(like, kernels):
    device = like["device"]
    support, query = torch.randn(2, 6, 7, **like), torch.randn(2, 5, 7, **like)
    support_y = torch.tensor([0, 1, 2, 0, 1, 2], device=device).expand(2, 6)
    query_y = torch.randint(3, (2, 5), device=device)
    weight = torch.rand(2, 6, **like) + 0.5
    temperature = torch.tensor([0.5, 2.0], **like)
    yield "class_means", (kernels, support, support_y, 3, None)
    yield "class_means", (kernels, support, support_y, 3, weight)
    plain = (support, support_y, None, query, query_y, None, 3, "sqeuclidean", 0.5, None)
    weighted = (
        support, support_y, weight, query, query_y, weight[:, :5], 3, "cosine", 1.0, temperature
    )  # fmt: skip
    grad = torch.randn(2, **like)
    yield "prototype_loss", (kernels, *plain, False)
    yield "prototype_loss", (kernels, *weighted, True)
    yield "prototype_loss_backward", (kernels, grad, *plain, [False, True, False])
    yield "prototype_loss_backward", (kernels, grad, *weighted, [True, True, True])


def of_linear(like):
    x, weight, bias = (torch.randn(2, *shape, **like) for shape in ((3, 5), (4, 5), (4,)))
    yield "triton_linear", (x, weight, bias, "ieee")
    yield "triton_linear", (x, weight, None, "ieee")
    yield "triton_linear_weight_gradient", (torch.randn(2, 3, 4, **like), x, True, "ieee")
    yield "triton_linear_weight_gradient", (torch.randn(2, 3, 4, **like), x, False, "ieee")


def samples():
    """(operator, arguments), of every operator."""
    torch.manual_seed(0)
    for dtype in FLOATS:
        like = {"dtype": dtype, "device": CPU}
        yield from of_convolutions(like)
        yield from of_norms(like)
        yield from of_pools(like)
        yield from of_distances(like)
        yield from of_prototypes(like, NATIVE)
    like = {"dtype": torch.float32, "device": GPU}
    yield from of_linear(like)
    yield from of_convolutions(like, "triton_", "ieee")
    yield from of_norms(like, "triton_")
    yield from of_distances(like, "triton_")
    yield from of_prototypes(like, TRITON)


def defined():
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("fastmeta::") for name in names if name.startswith("fastmeta::")}


def test_every_operator_is_checked():
    assert {name for name, _ in samples()} == defined()


@pytest.mark.parametrize("name", sorted({name for name, _ in samples()}))
def test_opcheck(name):
    if name.startswith("triton_") and not takes_tensors_without_values():
        pytest.skip("this Triton's interpreter wants numbers")
    for of, arguments in samples():
        if of == name:
            torch.library.opcheck(getattr(torch.ops.fastmeta, name).default, arguments)


def test_half_precision_is_loaded_as_it_is():
    for dtype in (torch.bfloat16, torch.float16):
        features = {"dtype": dtype, "device": CPU}
        support, query = torch.randn(2, 6, 7, **features), torch.randn(2, 5, 7, **features)
        labels = torch.tensor([0, 1, 2, 0, 1, 2]).expand(2, 6)
        task = (support, labels, None, query, labels[:, :5], None, 3, "dot", 1.0, None)
        torch.library.opcheck(torch.ops.fastmeta.prototype_loss.default, (NATIVE, *task, True))
        torch.library.opcheck(
            torch.ops.fastmeta.prototype_loss_backward.default,
            (NATIVE, torch.randn(2), *task, [True, True, False]),
        )
        torch.library.opcheck(torch.ops.fastmeta.nearest.default, (query, support, 1, "dot"))


def test_an_operator_has_no_derivative():
    x = torch.randn(2, 5, 7, requires_grad=True)
    found = torch.ops.fastmeta.squared_distances(x, x.detach())
    with pytest.raises(RuntimeError, match="call fastmeta.functional instead"):
        found.sum().backward()


def test_fake_tensors_get_shapes_and_strides():
    x, weight = torch.randn(2, 3, 2, 5, 4), torch.randn(2, 4, 2, 3, 3)
    right = F.batch_norm_pool(F.conv2d(x, weight, padding=1))
    with FakeTensorMode() as mode:
        fake = F.batch_norm_pool(F.conv2d(*map(mode.from_tensor, (x, weight)), padding=1))
    assert (fake.shape, fake.stride()) == (right.shape, right.stride())


def test_who_only_watches_changes_nothing():
    x, weight = torch.randn(2, 3, 2, 5, 4), torch.randn(2, 4, 2, 3, 3)
    support = torch.randn(2, 6, 7)
    labels = torch.tensor([0, 1, 2, 0, 1, 2]).expand(2, 6)
    model = nn.Linear(7, 3)
    tasks = fm.TaskBatch(support, labels, support, labels)

    def results():
        yield F.conv2d(x, weight)
        yield from F.prototype_loss(support, labels, support, labels, n_way=3)
        yield fm.ProtoNet(model)(tasks).loss
        yield fm.MAML(model, engine="vmap")(tasks).loss

    right = list(results())
    with FlopCounterMode(display=False):
        seen = list(results())
        with pytest.raises(ValueError, match=r"label outside \[0, 3\)"):
            F.prototype_loss(support, labels + 1, support, labels, n_way=3)
    assert all(map(torch.equal, seen, right))
