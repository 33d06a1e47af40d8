"""A forward that drops the dimension of its samples where there is one: never numbers of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop import checks

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")

ENGINES = ["auto", "vmap", "layered", "reference"]
SIZES = [(5, 5), (5, 1), (1, 5), (1, 1)]


class Squeezed(nn.Module):
    def __init__(self, outputs=1, dim=None):
        super().__init__()
        self.layer, self.dim = nn.Linear(6, outputs), dim

    def forward(self, x):
        return torch.squeeze(self.layer(x), *[] if self.dim is None else [self.dim])


class Fixed(nn.Module):
    """As many predictions for any number of samples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        return self.layer(x[:1]).expand(5, 1)


def tasks_of(support, query, sample=(1,), weighted=False, labels=False):
    torch.manual_seed(support + 10 * query)
    xs = [torch.randn(3, n, 6) for n in (support, query)]
    if labels:
        ys = [torch.randint(2, x.shape[:2]) for x in xs]
    else:
        ys = [torch.rand(*x.shape[:2], *sample) for x in xs]
    weights = [torch.rand(3, n) + 0.1 for n in (support, query)] if weighted else []
    return fm.TaskBatch(xs[0], ys[0], xs[1], ys[1], *weights)


def result(meta, tasks):
    """The losses, or a sentence that names the samples."""
    try:
        return meta(tasks).loss.tolist()
    except ValueError as error:
        assert "support_" in str(error) or "query_" in str(error)
        return str(error)


def mean_square(p, y):
    return ((p - y) ** 2).mean()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", ["mse", "bce", mean_square, F.l1_loss])
@pytest.mark.parametrize("dim", [None, 0])
def test_lone_samples_are_refused_in_any_order_of_batches(engine, loss, dim):
    if engine == "layered" and dim is None:
        pytest.skip("it has no squeeze() of all dimensions")
    sample = () if dim is None else (1,)
    for order in (SIZES, SIZES[::-1]):
        meta = fm.MAML(Squeezed(dim=dim), loss=loss, engine=engine)
        plain = fm.MAML(meta.model, loss=loss, engine="reference")
        for sizes in order:
            tasks = tasks_of(*sizes, sample)
            found = result(meta, tasks)
            if 1 in sizes and (isinstance(loss, str) or dim is None):
                assert isinstance(found, str)
            elif isinstance(found, list):  # a loss of one's own may take [1] of a lone sample
                assert found == pytest.approx(plain(tasks).loss.tolist(), rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_meta_sgd(engine):
    meta = fm.MetaSGD(Squeezed(dim=0), loss="mse", engine=engine)
    meta(tasks_of(5, 5))
    with pytest.raises(ValueError, match=r"query_y is \[3, 1, 1\], so \[1\] a sample, .* \[\]"):
        meta(tasks_of(5, 1))


@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
@pytest.mark.parametrize(("loss", "labels"), [("cross_entropy", True), (F.mse_loss, False)])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_rows_at_all(engine, loss, labels, weighted):
    for sizes, said in (((5, 1), "query_x"), ((1, 5), "support_x"), ((1, 1), "support_x")):
        for first in (sizes, (5, 5)):
            meta = fm.MAML(Squeezed(2), loss=loss, engine=engine)
            result(meta, tasks_of(*first, (2,), weighted, labels))
            with pytest.raises(ValueError, match=rf"makes \[2\] of a task's {said} \[1, 6\]; .*-1"):
                meta(tasks_of(*sizes, (2,), weighted, labels))


@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
@pytest.mark.parametrize(("support", "query"), [(5, 7), (7, 5), (5, 1)])
def test_a_number_of_predictions_that_is_not_that_of_the_samples(engine, support, query):
    meta = fm.MAML(Fixed(), loss="mse", engine=engine)
    result(meta, tasks_of(5, 5))
    with pytest.raises(ValueError, match=r"makes \[5, 1\] of a task's (support|query)_x"):
        meta(tasks_of(support, query))


@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
def test_adapting_and_predicting(engine):
    meta = fm.MAML(Squeezed(), loss="mse", engine=engine)
    five, one = tasks_of(5, 5, ()), tasks_of(1, 1, ())
    adapted = meta.adapt(five.support_x, five.support_y)
    assert adapted(five.query_x).shape == (3, 5)
    with pytest.raises(ValueError, match=r"makes \[\] of a task's x \[1, 6\]"):
        adapted(one.query_x)
    with pytest.raises(ValueError, match=r"makes \[\] of a task's support_x \[1, 6\]"):
        meta.adapt(one.support_x, one.support_y)


@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
@pytest.mark.parametrize(("dim", "sample"), [(None, ()), (0, (1,))])
def test_reptile(engine, dim, sample):
    meta = fm.Reptile(Squeezed(dim=dim), loss="mse", engine=engine)
    meta(tasks_of(5, 5, sample))
    with pytest.raises(ValueError, match="task's x|query_y"):
        meta(tasks_of(5, 1, sample))


@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
def test_proto_maml(engine):
    meta = fm.ProtoMAML(Squeezed(4, 0), engine=engine)
    tasks = tasks_of(6, 1, labels=True)
    y = torch.arange(6).remainder(2).expand(3, 6)
    with pytest.raises(ValueError, match=r"makes \[2\] of a task's query_x"):
        meta(fm.TaskBatch(tasks.support_x, y, tasks.query_x, tasks.query_y))


class AtLeastThree(nn.Linear):
    def forward(self, x):
        return F.pad(super().forward(x), (0, 0, 0, max(3 - len(x), 0)))


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_proto_maml_of_fewer_queries_than_predictions(engine):
    meta, tasks = fm.ProtoMAML(AtLeastThree(6, 4), engine=engine), tasks_of(6, 2, labels=True)
    y = torch.arange(6).remainder(2).expand(3, 6)
    with pytest.raises(ValueError, match=r"makes \[3, 2\] of a task's query_x \[2, 6\]"):
        meta(fm.TaskBatch(tasks.support_x, y, tasks.query_x, tasks.query_y))


def test_a_size_is_tried_once(monkeypatch):
    tried, try_once = [], checks.predictions_of

    def counted(loop, parameters, tasks, name):
        tried.append(name)
        return try_once(loop, parameters, tasks, name)

    monkeypatch.setattr(checks, "predictions_of", counted)
    meta = fm.MAML(nn.Linear(6, 1), loss="mse")
    for sizes in ((5, 5), (5, 3), (5, 5), (3, 5), (3, 3), (5, 3)):
        meta(tasks_of(*sizes))
    assert tried == ["query_x"]
    meta(tasks_of(4, 2))
    assert tried == ["query_x", "support_x", "query_x"]
