"""The prototype kernels against plain PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from freed import marked
from oracle import DOUBLE

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.backends import triton_prototypes as raw
from fastmeta.kernels.prototype_configs import MOST_CLASSES

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")
SHAPES = [  # T, S, Q, D, N
    (2, 7, 5, 6, 3), (1, 1, 1, 1, 1), (2, 6, 3, 140, 5), (1, 45, 3, 3, 40), (1, 23, 3, 3, 20),
]  # fmt: skip
WEIGHTED = [*zip(SHAPES, [False, False, True, True, True], strict=True)]
NAN = float("nan")


def task(shape, device, dtype=DOUBLE, weighted=False):
    """support, support_y, support_weight, query, query_y, query_weight, as for `loss_forward`."""
    T, S, Q, D, N = shape
    any_class = torch.randint(N, (T, S - N))
    order = torch.stack([torch.randperm(S) for _ in range(T)])
    support_y = torch.cat([torch.arange(N).expand(T, N), any_class], 1).gather(1, order)
    support, query = torch.randn(T, S, D, dtype=dtype), torch.randn(T, Q, D, dtype=dtype)
    query_y = torch.randint(N, (T, Q))
    weights = [torch.rand(T, n, dtype=dtype) + 0.5 if weighted else None for n in (S, Q)]
    given = (support, support_y, weights[0], query, query_y, weights[1])
    return tuple(z if z is None else z.to(device) for z in given)


def plain(support, support_y, support_weight, query, query_y, query_weight, n_way, metric, tau):
    """Loss [T] and logits, class by class."""
    ones = torch.ones_like(support[..., 0]) if support_weight is None else support_weight
    means = torch.stack([
        torch.stack([
            (ones[t][y == n, None] * support[t][y == n]).sum(0) / ones[t][y == n].sum()
            for n in range(n_way)
        ])
        for t, y in enumerate(support_y)
    ])  # fmt: skip
    logits = -plain_distance(query, means, metric) / tau[:, None, None]
    losses = torch.stack([F.cross_entropy(z, y, reduction="none")
                          for z, y in zip(logits, query_y, strict=True)])  # fmt: skip
    if query_weight is None:
        return losses.mean(1), logits
    return (losses * query_weight).sum(1) / query_weight.sum(1), logits


def plain_distance(x, y, metric):
    x, y = x[:, :, None], y[:, None]
    if metric == "dot":
        return -(x * y).sum(-1)
    if metric == "cosine":
        return 1 - F.cosine_similarity(x, y, -1)
    square = (x - y).square().sum(-1)
    return square if metric == "sqeuclidean" else square.sqrt()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape, weighted", WEIGHTED)
def test_loss_and_gradients(shape, metric, weighted, device, poisoned):
    given = task(shape, device, weighted=weighted)
    tau = torch.linspace(0.5, 1.5, shape[0], dtype=DOUBLE, device=device).requires_grad_()
    loss, logits, record = raw.loss_forward(given, shape[-1], metric, tau.detach(), True)
    support, query = given[0].clone().requires_grad_(), given[3].clone().requires_grad_()
    leaves = (support, query, tau)
    right, right_logits = plain(
        support, *given[1:3], query, *given[4:], shape[-1], metric, tau
    )  # fmt: skip
    close = torch.testing.assert_close
    close(loss, right.detach())
    close(logits, right_logits.detach())
    hits = (right_logits.argmax(2) == given[4]).double()
    weight = torch.ones_like(hits) if given[5] is None else given[5]
    close(record.found.accuracy, (hits * weight).sum(1) / weight.sum(1))
    outer = torch.randn_like(loss)
    found = raw.loss_backward(record, given, outer, (True, True, True))
    close(found, torch.autograd.grad(right, leaves, outer))
    assert raw.loss_backward(record, given, outer, (False, False, False)) == (None, None, None)


def test_a_share_of_every_loss(device):
    given = task(SHAPES[0], device)
    apart, *_ = raw.loss_forward(given, 3, "cosine", 1.0, True)
    in_all, *_ = raw.loss_forward(given, 3, "cosine", 1.0, True, share=0.25)
    assert in_all.shape == ()
    torch.testing.assert_close(in_all, 0.25 * apart.sum())


@pytest.mark.parametrize("metric", METRICS)
def test_the_error_is_that_of_the_same_mathematics_in_plain_pytorch(metric, device):
    shape = (2, 20, 6, 64, 5)
    exact = task(shape, device)
    given = tuple(z if z is None or not z.is_floating_point() else z.float() for z in exact)
    exact = tuple(z if z is None or not z.is_floating_point() else z.double() for z in given)
    tau = torch.ones(2, device=device)

    def slopes(of, kind):
        leaves = [z.clone().requires_grad_() for z in (of[0], of[3])]
        loss, _ = plain(leaves[0], *of[1:3], leaves[1], *of[4:], 5, metric, tau.to(kind))
        return torch.autograd.grad(loss.sum(), leaves)

    _, _, record = raw.loss_forward(given, 5, metric, 1.0, True)
    ours = raw.loss_backward(record, given, torch.ones(2, device=device), (True, True, False))
    right, ordinary = slopes(exact, DOUBLE), slopes(given, torch.float32)
    for mine, theirs, true in zip(ours, ordinary, right, strict=False):
        budget = 2 * (theirs - true).norm() + 1e-7 * true.norm()
        assert (mine - true).norm() <= budget


@pytest.mark.parametrize("metric", METRICS)
def test_sums_over_pairs(metric, device, poisoned):
    from fastmeta.kernels.pairwise import pairwise

    for T, _, Q, D, N in SHAPES:
        x = torch.randn(T, D, Q, dtype=DOUBLE, device=device).mT  # not contiguous
        y = torch.randn(N, D, dtype=DOUBLE, device=device).expand(T, N, D)  # shared by all tasks
        torch.testing.assert_close(pairwise(x, y, metric, x), plain_distance(x, y, metric))
        difference = x[:, :, None] - y[:, None]
        h = torch.randn(T, N, Q, dtype=DOUBLE, device=device).mT
        torch.testing.assert_close(raw.pull(h, x, y), (h[..., None] * difference).sum(2))
        torch.testing.assert_close(
            raw.project(2 * x, x, y), 2 * (x[:, :, None] * difference).sum(3)
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_means_of_classes_of_none_to_hundreds_of_samples(weighted, device, poisoned):
    from fastmeta.kernels.class_means import class_means

    counts = (3, 0, 8, 290, 9, 1)
    y = torch.cat([torch.full((count,), n) for n, count in enumerate(counts)])
    y = torch.stack([y[torch.randperm(len(y))] for _ in range(2)]).to(device)
    x = torch.randn(2, 130, len(y[0]), dtype=DOUBLE, device=device).mT  # not contiguous
    weight = torch.rand(y.shape, dtype=DOUBLE, device=device) + 0.5
    weight[:, ::7] = 0
    weight = weight if weighted else None
    share = F.one_hot(y).to(DOUBLE) * (1 if weight is None else weight[..., None])
    means, mass = class_means(x, y, weight, 6, x)
    right = share.sum(1)
    torch.testing.assert_close(mass, right)
    torch.testing.assert_close(means, share.mT @ x / right[..., None], equal_nan=True)


def test_a_large_common_offset_loses_nothing(device):
    given = task((1, 8, 5, 16, 4), device, torch.float32)
    near = [None if z is None else z.double() if z.is_floating_point() else z for z in given]
    far = list(given)
    far[0], far[3] = given[0] + 1e4, given[3] + 1e4
    near[0], near[3] = far[0].double() - 1e4, far[3].double() - 1e4  # what the sum was rounded to
    one = torch.ones(1, dtype=DOUBLE, device=device)
    right, logits = plain(*near, 4, "sqeuclidean", one)
    loss, found, record = raw.loss_forward(tuple(far), 4, "sqeuclidean", 1.0, True)
    # The means are rounded to float32 at 1e4: half a unit is 5e-4, and of D = 16 features.
    assert (found - logits).abs().max() < 2 * 16 * 5e-4 * 8
    assert raw.loss_backward(record, tuple(far), loss, (True, True, False))[1].isfinite().all()


@pytest.mark.parametrize("place", [0, 2])
def test_a_sample_far_from_the_others_costs_other_classes_nothing(device, place):
    given = list(task((1, 6, 5, 8, 3), device, torch.float32))
    given[1] = torch.arange(6, device=device)[None] % 3
    given[0][:, place] += 1e8
    means = raw.class_means(given[0], given[1], 3, None)
    for n in {0, 1, 2} - {place % 3}:
        right = given[0][:, n::3].double().mean(1)
        assert (means[:, n] - right).abs().max() < 1e-6


def test_labels_out_of_range_are_neither_read_nor_written(device, poisoned):
    given = list(task((2, 7, 5, 4, 3), device, weighted=True))
    good = [z.clone() for z in given]
    for place, bad in ((0, 10**12), (1, -(10**12))):  # would be far outside of any tensor
        given[1][:, place], given[4][:, place] = bad, bad
    assert raw.loss_forward(tuple(given), 3, "sqeuclidean", 1.0, True) is None
    assert raw.class_means(given[0], given[1], 3, given[2]) is None
    for weights, samples in ((2, 0), (5, 3)):  # as padding they may be anything
        for of in (given, good):
            of[weights][:, :2] = 0
            of[samples][:, :2] = NAN if of is given else 0.0
    good[1][:, :2] = good[4][:, :2] = 0
    if raw.loss_forward(tuple(good), 3, "cosine", 1.0, True) is None:
        good[1][:, 2:5] = given[1][:, 2:5] = torch.arange(3, device=device)
    for metric in ("euclidean", "cosine"):
        loss, _, record = raw.loss_forward(tuple(given), 3, metric, 1.0, True)
        right, _, other = raw.loss_forward(tuple(good), 3, metric, 1.0, True)
        torch.testing.assert_close(loss, right)
        outer = torch.ones_like(loss)
        found = raw.loss_backward(record, tuple(given), outer, (True, True, True))
        torch.testing.assert_close(
            found, raw.loss_backward(other, tuple(good), outer, (True, True, True))
        )


def test_what_does_not_fit_is_told(device):
    features, labels = task((2, 7, 5, 4, 3), device)[:2]
    weight = torch.ones(2, 7, dtype=DOUBLE, device=device)

    def fits(labels=labels, weight=None):
        return raw.class_means(features, labels, 3, weight) is not None

    assert fits() and fits(weight=weight)
    assert not fits(labels.clamp(max=1))  # a class without a sample
    assert not fits(labels + 1)
    for wrong in (-1.0, NAN, float("inf")):
        bad = weight.clone()
        bad[1, 3] = wrong
        assert not fits(weight=bad)
    assert not fits(weight=0 * weight)


def test_vectors_of_zeros_have_cosine_distance_1_and_gradient_0(device):
    given = list(task((1, 3, 4, 5, 3), device))
    given[0][0, 0], given[3][0, 0] = 0, 0
    _, logits, record = raw.loss_forward(tuple(given), 3, "cosine", 1.0, True)
    assert (logits[0, 0] == -1).all() and (logits[0, :, given[1][0, 0]] == -1).all()
    of_support, of_query, _ = raw.loss_backward(
        record, tuple(given), torch.ones(1, dtype=DOUBLE, device=device), (True, True, True)
    )
    assert (of_query[0, 0] == 0).all() and (of_support[0, 0] == 0).all()
    assert of_query.isfinite().all() and of_support.isfinite().all()


def test_half_precision_is_summed_in_float32(device):
    from fastmeta.kernels.class_means import class_means
    from fastmeta.kernels.prototype import prototype_loss
    from fastmeta.kernels.prototype_gradient import prototype_gradient

    given = task((2, 7, 5, 33, 3), device, torch.bfloat16)
    wide = tuple(z.float() if z is not None and z.is_floating_point() else z for z in given)
    sums, tau = wide[0], torch.ones(2, device=device)
    means, mass = class_means(*given[:3], 3, sums)
    right, right_mass = class_means(*wide[:3], 3, sums)
    torch.testing.assert_close((means, mass), (right, right_mass), rtol=0, atol=0)
    found = prototype_loss(given[3], means, given[4], None, tau, "sqeuclidean", sums)
    same = prototype_loss(wide[3], means, given[4], None, tau, "sqeuclidean", sums)
    torch.testing.assert_close(found.loss, same.loss, rtol=0, atol=0)
    outer = torch.ones(2, device=device)
    of_query, of_means, _ = prototype_gradient(
        outer, given[3], means, given[4], None, tau, "sqeuclidean", found
    )
    wanted, right, _ = prototype_gradient(
        outer, wide[3], means, given[4], None, tau, "sqeuclidean", found
    )
    torch.testing.assert_close(of_means, right, rtol=0, atol=0)
    # To the nearest on the card; the interpreter cuts off, which is a unit of 8 bits at most.
    torch.testing.assert_close(of_query.float(), wanted, rtol=2**-7, atol=0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 150, 10), (1, 1, 1, 1, 1), (1, 2, 3, 70, 64)])
def test_nearest(shape, metric, device, poisoned):
    T, Q, D, N, k = shape
    if metric == "cosine":  # of unit vectors, all of whose products are exact: many ties
        x, y = (F.one_hot(torch.randint(D, (T, n)), D).float().to(device) for n in (Q, N))
    else:
        x, y = (torch.randint(-2, 3, (T, n, D)).float().to(device) for n in (Q, N))
    y[:, N // 2 :: 7] = NAN
    assert raw.can_find(x, y, k) is None
    values, indices = raw.nearest(x, y, k, metric)
    right = fmF.pairwise_distance(x, y, metric) if metric != "cosine" else 1 - x @ y.mT
    right, order = right.sort(dim=2, stable=True)
    torch.testing.assert_close(indices, order[..., :k])
    torch.testing.assert_close(values, right[..., :k], equal_nan=True)


@pytest.fixture
def on_triton():
    with fm.use_backend("triton"):
        yield


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
def test_the_public_loss_has_derivatives_of_any_order(metric, device, on_triton):
    given = task((1, 2, 2, 2, 2), device, weighted=True)
    tau = torch.full((1,), 0.7, dtype=DOUBLE, device=device)
    leaves = [z.requires_grad_() for z in (given[0], given[3], tau)]

    def loss(support, query, tau):
        return fmF.prototype_loss(
            support, given[1], query, given[4], n_way=2, metric=metric, temperature=tau,
            support_weight=given[2], query_weight=given[5],
        )[0]  # fmt: skip

    def derivatives(of):
        first = torch.autograd.grad(of(*leaves).sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)
        return [*torch.autograd.grad(of(*leaves).sum(), leaves), *first, *second]

    ours = derivatives(loss)
    right = derivatives(lambda s, q, tau: plain(s, *given[1:3], q, *given[4:], 2, metric, tau)[0])
    torch.testing.assert_close(ours, right)


@pytest.mark.parametrize(
    "half, metric, n_way",
    [(torch.bfloat16, metric, 3) for metric in METRICS]
    + [(torch.float16, "sqeuclidean", 3), (torch.bfloat16, "cosine", MOST_CLASSES + 1)],
)
def test_the_public_loss_loads_half_precision_as_it_is(half, metric, n_way, device, on_triton):
    given = task((2, n_way + 2, 5, 9, n_way), device, half, weighted=True)

    def run(change):
        support, query = (change(z).detach().requires_grad_() for z in (given[0], given[3]))
        loss, logits = fmF.prototype_loss(
            support, given[1], query, given[4], n_way=n_way, metric=metric, temperature=2.0,
            support_weight=change(given[2]), query_weight=change(given[5]),
        )  # fmt: skip
        return loss, logits, *torch.autograd.grad(loss.sum(), (support, query))

    found, right = run(lambda z: z), run(torch.Tensor.float)
    assert [z.dtype for z in found] == [torch.float32, torch.float32, half, half]
    torch.testing.assert_close(found[:2], right[:2], rtol=0, atol=0)
    # To the nearest on the card; the interpreter cuts off, which is a unit of 8 bits at most.
    smallest = torch.finfo(half).smallest_normal * torch.finfo(half).eps
    for mine, wanted in zip(found[2:], right[2:], strict=True):
        torch.testing.assert_close(mine.float(), wanted, rtol=2**-7, atol=smallest)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_no_whole_copy_of_half_precision_is_made(half, device, on_triton, monkeypatch):
    given = task((2, 7, 5, 33, 3), device, half)
    support, query = (given[i].requires_grad_() for i in (0, 3))

    def fail(*args, **kwargs):
        raise AssertionError("features were converted as a whole")

    monkeypatch.setattr(torch.Tensor, "float", fail)
    loss, _ = fmF.prototype_loss(support, given[1], query, given[4], n_way=3)
    loss.sum().backward()
    assert support.grad.dtype is half and query.grad.dtype is half


def test_the_nearest_of_half_precision_are_those_of_float32(device, on_triton):
    x, y = (torch.randn(2, n, 7, device=device).bfloat16() for n in (5, 70))
    found = fmF.nearest_prototype(x, y, 3)
    right = fmF.nearest_prototype(x.float(), y.float(), 3)
    torch.testing.assert_close(found, right, rtol=0, atol=0)


@pytest.mark.parametrize("n_way", [2, 40])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_padding_is_inert_where_its_distance_overflows(metric, n_way, device, on_triton):
    """As zeros a padding is further from these classes than float32 has numbers for."""
    far = 2.0**64
    labels = torch.arange(n_way, device=device).repeat(1, 2)
    support = far + 2.0**42 * torch.randn(1, 2 * n_way, 5, device=device).round()
    query = far + 2.0**42 * torch.randn(1, 3, 5, device=device).round()
    tau = torch.tensor(2.0**90, device=device)
    leaves = [z.requires_grad_() for z in (support, query, tau)]
    loss, _ = fmF.prototype_loss(
        support, labels, query, labels[:, :3].fmod(2), n_way=n_way, metric=metric,
        temperature=tau, query_weight=torch.tensor([[1.0, 1.0, 0.0]], device=device),
    )  # fmt: skip
    found = torch.autograd.grad(loss.sum(), leaves)
    assert all(bool(x.isfinite().all()) for x in (loss, *found))
    assert bool(found[1][:, :2].any()) and not bool(found[1][:, 2].any())


def test_the_graph_of_the_public_loss_is_freed(device, on_triton):
    support, y, _, query, query_y, _ = task((2, 7, 5, 6, 3), device)
    (support, query), nodes = marked([support, query])
    loss, logits = fmF.prototype_loss(support, y, query, query_y, n_way=3)
    loss.sum().backward()
    assert all(node() is not None for node in nodes)
    del support, query, loss, logits
    assert all(node() is None for node in nodes)


def test_logits_changed_in_place_before_the_backward_are_told(device, on_triton):
    support, y, _, query, query_y, _ = task((2, 7, 5, 6, 3), device)
    loss, logits = fmF.prototype_loss(support.requires_grad_(), y, query, query_y, n_way=3)
    with torch.no_grad():
        logits.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.sum().backward()


def test_the_public_functions_reach_the_kernels(device, on_triton, monkeypatch):
    from fastmeta.kernels import class_means, nearest, pairwise, prototype

    reached = []

    def telling(name, kernel):
        def told(*args):
            reached.append(name)
            return kernel(*args)

        return told

    modules = {"class_means": class_means, "nearest": nearest, "pairwise": pairwise,
               "prototype_loss": prototype}  # fmt: skip
    for name, module in modules.items():
        monkeypatch.setattr(module, name, telling(name, getattr(module, name)))
    x, y, _, query, query_y, _ = task((2, 3, 2, 4, 3), device, torch.bfloat16)
    means = fmF.prototypes(x, y, 3)
    fmF.pairwise_distance(query, means)
    fmF.prototype_loss(x, y, query, query_y, n_way=3)
    values, indices = fmF.nearest_prototype(query, means[0], 2, "cosine")
    assert reached == ["class_means", "pairwise", "class_means", "prototype_loss", "nearest"]
    with fm.use_backend("reference"):
        right = fmF.nearest_prototype(query, means[0], 2, "cosine")
    torch.testing.assert_close((values, indices), right)
    with pytest.raises(ValueError, match="no sample of class"):
        fmF.prototypes(x, y.clamp(max=1), 3)
    with pytest.raises(ValueError, match="outside"):
        fmF.prototype_loss(x, y, query, query_y + 3, n_way=3)


def test_accuracy_and_temperatures_of_the_public_loss(device, on_triton):
    x, y, _, query, query_y, weight = task((2, 6, 9, 4, 3), device, torch.float32, weighted=True)
    y = torch.arange(6, device=device).expand(2, 6) % 3
    given = {"support": x, "support_y": y, "query": query, "query_y": query_y, "n_way": 3}
    _, logits, accuracy = fmF.prototype_loss(
        **given, query_weight=weight, return_accuracy=True, temperature=torch.ones(2, device=device)
    )
    hits = (logits.argmax(-1) == query_y) * weight
    torch.testing.assert_close(accuracy, hits.sum(1) / weight.sum(1))
    for wrong in (0.0, -1.0, NAN, float("inf")):
        temperature = torch.tensor([1.0, wrong], device=device)
        with pytest.raises(ValueError, match="temperature must be above"):
            fmF.prototype_loss(**given, temperature=temperature)


def test_what_nearest_does_not_take():
    x, y = torch.zeros(1, 2, 3), torch.zeros(1, 100, 3)
    assert "float64" in raw.can_find(x.double(), y.double(), 1)
    assert "at most 64" in raw.can_find(x, y, 65)
    assert "2^31" in raw.can_find(x, torch.zeros(1, 1, 3).expand(1, 2**31, 3), 1)
