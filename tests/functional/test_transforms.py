"""fm.functional under torch.func and forward AD: right, or refused with the way out."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from oracle import DOUBLE
from torch import func, nn

import fastmeta as fm
import fastmeta.functional as F
from fastmeta.backends import cpu

LABELS = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]])


def double(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def positive(*shape):
    return torch.rand(*shape, dtype=DOUBLE) + 0.5


torch.manual_seed(0)
IMAGES, FEATURES, OTHERS = double(2, 6, 3, 4, 4), double(2, 6, 5), double(2, 6, 5)
NETWORK = nn.Linear(5, 3).double()
PARAMETERS = dict(NETWORK.named_parameters())
CASES = {
    "linear": (F.linear, [FEATURES, double(2, 4, 5)]),
    "conv2d": (F.conv2d, [IMAGES, double(2, 4, 3, 3, 3)]),
    "batch_norm": (F.batch_norm, [IMAGES, positive(2, 3)]),
    "layer_norm": (lambda x, w: F.layer_norm(x, (4, 4), w), [IMAGES, positive(2, 4, 4)]),
    "group_norm": (lambda x, w: F.group_norm(x, 3, w), [IMAGES, positive(2, 3)]),
    "batch_norm_pool": (F.batch_norm_pool, [IMAGES, positive(2, 3)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), [IMAGES]),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS), [FEATURES]),
    "prototypes": (lambda x: F.prototypes(x, LABELS, 3), [FEATURES]),
    "pairwise_distance": (F.pairwise_distance, [FEATURES, OTHERS]),
    "nearest_prototype": (lambda x, y: F.nearest_prototype(x, y, 2)[0], [FEATURES, OTHERS]),
    "prototype_loss": (
        lambda s, q, t: F.prototype_loss(s, LABELS, q, LABELS, n_way=3, temperature=t)[0],
        [FEATURES, OTHERS, positive(2)],
    ),
    "hessian_vector_product": (
        lambda x: F.hessian_vector_product(
            NETWORK, PARAMETERS, x, LABELS, PARAMETERS, "cross_entropy"
        )["weight"],
        [FEATURES],
    ),
}
# Where PyTorch's own operations take a batch of gradients as it comes.
TAKES_A_BATCH = {"linear", "cross_entropy", "prototypes", "hessian_vector_product"}
if cpu.unavailable() is not None:  # products and sums of PyTorch then
    TAKES_A_BATCH |= {"pairwise_distance", "nearest_prototype", "prototype_loss"}

every_function = pytest.mark.parametrize("name", CASES)


def scalar_of(function):
    return lambda *inputs: function(*inputs).square().sum()


def plain_gradients(function, inputs, directions=None):
    """By autograd.grad; with `directions`, of the first derivative along them."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = scalar_of(function)(*leaves)
    if directions is not None:
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        value = sum((g * v).sum() for g, v in zip(gradients, directions, strict=True))
    return torch.autograd.grad(value, leaves)


def assert_close(ours, right):
    for value, expected in zip(ours, right, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@every_function
def test_grad_and_its_derivatives(name):
    function, inputs = CASES[name]
    everything = tuple(range(len(inputs)))
    gradient = func.grad(scalar_of(function), everything)
    first, second = plain_gradients(function, inputs), plain_gradients(function, inputs, inputs)
    assert_close(gradient(*inputs), first)
    assert_close(func.jvp(gradient, tuple(inputs), tuple(inputs))[1], second)

    def along(*inputs_again):
        return sum((g * x).sum() for g, x in zip(gradient(*inputs_again), inputs, strict=True))

    assert_close(func.grad(along, everything)(*inputs), second)


@every_function
def test_forward_derivatives(name):
    function, inputs = CASES[name]
    gradients = plain_gradients(function, inputs)
    right = sum((g * x).sum() for g, x in zip(gradients, inputs, strict=True))
    ours = func.jvp(scalar_of(function), tuple(inputs), tuple(inputs))[1]
    with forward_ad.dual_level():
        dual = scalar_of(function)(*[forward_ad.make_dual(x, x) for x in inputs])
        assert_close([ours, forward_ad.unpack_dual(dual).tangent], [right, right])


@every_function
def test_vmap(name):
    function, inputs = CASES[name]
    stacked = [torch.stack([x, 1.5 * x]) for x in inputs]
    each = list(zip(*stacked, strict=True))
    assert_close(func.vmap(function)(*stacked), [function(*one) for one in each])
    everything = tuple(range(len(inputs)))
    ours = func.vmap(func.grad(scalar_of(function), everything))(*stacked)
    for i, one in enumerate(each):
        assert_close([of[i] for of in ours], plain_gradients(function, one))


@every_function
def test_batches_of_gradients(name):
    function, inputs = CASES[name]
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    one = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
    grads = torch.stack([torch.ones_like(y), torch.full_like(y, 2.0)])

    def gradient(grad):
        return torch.autograd.grad(y, leaves, grad, retain_graph=True)

    assert_close(func.vmap(gradient)(grads), [torch.stack([g, 2 * g]) for g in one])
    if name in TAKES_A_BATCH:
        ours = torch.autograd.grad(y, leaves, grads, is_grads_batched=True)
        assert_close(ours, [torch.stack([g, 2 * g]) for g in one])
        return
    with pytest.raises(RuntimeError, match=r"one at a time.*torch.func.vmap over torch.func.vjp"):
        torch.autograd.grad(y, leaves, grads, is_grads_batched=True)
    _, pullback = func.vjp(function, *inputs)
    assert_close(func.vmap(pullback)(grads), [torch.stack([g, 2 * g]) for g in one])


def test_labels_under_vmap_are_looked_at():
    logits = torch.stack([FEATURES, OTHERS])
    labels = torch.stack([LABELS, LABELS.flip(0)])
    right = [F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)]
    assert_close(func.vmap(F.cross_entropy)(logits, labels), right)
    with pytest.raises(ValueError, match=r"labels outside \[0, 5\)"):
        func.vmap(F.cross_entropy)(logits, labels + 4)


@pytest.mark.parametrize(
    "transform",
    [func.grad, func.vmap, lambda f: lambda x: func.jvp(f, (x,), (x,)), func.jacrev, func.hessian],
    ids=["grad", "vmap", "jvp", "jacrev", "hessian"],
)
def test_learners_say_what_to_do_instead(transform):
    meta = fm.MAML(NETWORK)

    def loss(x):
        return meta(fm.TaskBatch(x, LABELS, OTHERS, LABELS)).loss.sum()

    def adapted(x):
        return F.inner_sgd(
            NETWORK, PARAMETERS, x, LABELS, lr=0.1, steps=1, loss="cross_entropy"
        )["weight"].sum()  # fmt: skip

    for function in (loss, adapted):
        x = torch.stack([FEATURES, OTHERS]) if transform is func.vmap else FEATURES
        with pytest.raises(RuntimeError, match="does not run inside torch.func transforms"):
            transform(function)(x)


def test_a_traced_learner_asks_for_the_number_of_classes():
    def loss(x):
        return fm.ProtoNet(NETWORK)(fm.TaskBatch(x, LABELS, OTHERS, LABELS)).loss

    with pytest.raises(RuntimeError, match="cannot look for the number of classes: give n_way"):
        func.linearize(loss, FEATURES)
