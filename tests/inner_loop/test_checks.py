"""What is told to the user before any engine runs."""

import pytest
import torch
import torch.nn.functional as F
from oracle import classification_tasks, regression_tasks
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastmeta as fm
from fastmeta.models import mlp


def classify(model, loss="cross_entropy", **options):
    return fm.MAML(model.double(), loss=loss, **options)


@pytest.mark.parametrize("backend", ["auto", "vmap", "reference"])
@pytest.mark.parametrize(
    ("model", "loss", "error", "said"),
    [
        (mlp([3, 3]), "cross_entropy", ValueError, r"cannot take .* \[5, 2\]"),
        (mlp([2, 2]), "cross_entropy", ValueError, r"labels from 0 to 2, .*\[0, 2\)"),
        (mlp([2, 3]), "mse", TypeError, "floating targets"),
        (nn.Sequential(nn.Linear(2, 3), nn.Flatten(0)), "cross_entropy", ValueError, r"\[15\]"),
        (nn.Sequential(nn.Linear(2, 3), nn.Unflatten(1, (3, 1))), "cross_entropy", ValueError,
         r"a sample are \[3, 1\]"),
        (nn.LSTM(2, 3), "cross_entropy", TypeError, "must return a tensor, not tuple"),
        (mlp([2, 3]), lambda p, y: F.cross_entropy(p, y, reduction="none"), ValueError,
         r"a scalar a task, not \[5\]"),
        (mlp([2, 3]), lambda p, y: (p.argmax(-1) == y).double().mean(), ValueError,
         "differentiable"),
        (mlp([2, 3]), lambda p, y: F.cross_entropy(p, y).item(), TypeError,
         r"returns a float: leave \.item\(\) and float\(\) out"),
        (mlp([2, 3]), lambda p, y: (F.cross_entropy(p, y), {}), TypeError, "returns a tuple"),
        (mlp([2, 3]), lambda p, y: None, TypeError, "returns a NoneType"),
        (mlp([2, 3]), lambda y, p: F.cross_entropy(p, y), TypeError, "the other way round"),
        (mlp([2, 3]), lambda p, y: p @ p, RuntimeError, "size|shape"),
        (nn.LazyLinear(3), "cross_entropy", ValueError, "run the module once"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(backend, model, loss, error, said):
    tasks = classification_tasks([2])
    tasks.support_y[0, :3] = torch.tensor([0, 1, 2])
    with pytest.raises(error, match=said):
        classify(model, loss, engine=backend)(tasks)


class Heads(nn.Linear):
    def __init__(self, kind):
        super().__init__(2, 6)
        self.kind = kind

    def forward(self, x):
        mean, spread = super().forward(x).chunk(2, -1)
        return self.kind([("mean", mean), ("spread", spread)])


class Sides(nn.Linear):
    def forward(self, left, right):
        return super().forward(left + right)


class Late(nn.Linear):
    def forward(self, x, scale=1.0):
        return super().forward(x) * None


@pytest.mark.parametrize("backend", ["auto", "vmap", "reference"])
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Heads(dict), r"not dict: let its forward join .*torch.cat.* take it apart"),
        (Heads(tuple), r"not tuple: let its forward join"),
        (Sides(2, 3), r"forward needs left, right, .* one input, support_x: join them"),
        (Late(2, 3), r"unsupported operand"),
    ],
)
def test_the_way_out_of_several_inputs_and_outputs_is_told(backend, model, said):
    with pytest.raises(TypeError, match=said):
        classify(model, engine=backend)(classification_tasks([2]))


@pytest.mark.parametrize("steps", [1, 2])
def test_an_operation_with_one_derivative_is_told_of_order_1(steps):
    bag = nn.Sequential(nn.EmbeddingBag(7, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = torch.randint(7, (2, 5, 3)), torch.randint(3, (2, 5))
    tasks = fm.TaskBatch(x, y, x, y)
    meta = classify(bag, inner_steps=steps, engine="vmap")
    loss = meta(tasks).loss.sum()  # which needs no second derivative
    with pytest.raises(NotImplementedError, match="_embedding_bag_backward.* order=1 does") as told:
        loss.backward()
    assert isinstance(told.value.__cause__, NotImplementedError)
    classify(bag, inner_steps=steps, order=1)(tasks).loss.sum().backward()


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.prototypes = nn.Linear(2, 4), nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return -torch.cdist(self.layer(x), self.prototypes)


def ctc(predictions, y):
    log = predictions.log_softmax(-1)[:, None]
    return F.ctc_loss(log, y[None, :2] % 2 + 1, [len(predictions)], [2])


@pytest.mark.parametrize(
    ("model", "loss", "said"),
    [
        (Distances(), "cross_entropy", "_cdist_backward.* so does .*norm.* for torch.cdist$"),
        (mlp([2, 8, 3]), F.multi_margin_loss, "multi_margin.* so does torch.relu of the margins"),
        (mlp([2, 8, 3]), ctc, "_ctc_loss_backward.* order=1 .*other operations for the same$"),
    ],
)
def test_the_way_around_an_operation_is_its_own(model, loss, said):
    meta = classify(model.double(), loss)
    with pytest.raises(NotImplementedError, match=said):
        meta(classification_tasks([2])).loss.sum().backward()


class OfOne(nn.Module):
    def forward(self, predictions):
        return predictions.mean()


def test_a_loss_takes_predictions_and_targets():
    for loss in (lambda p: p.mean(), lambda p, y, scale: (scale * p).mean(), OfOne()):
        with pytest.raises(TypeError, match=r"loss must take \(predictions, targets\)"):
            classify(mlp([2, 3]), loss)
    for loss in (lambda *both: both[0].mean(), lambda p, y, weight: (weight * p[:, 0]).sum()):
        classify(mlp([2, 3]), loss)


def test_whole_numbers_as_inputs_are_told_of_floats():
    tasks = classification_tasks([2])
    whole = fm.TaskBatch(
        tasks.support_x.long()[..., None], tasks.support_y, tasks.query_x.long()[..., None],
        tasks.query_y,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"support_x\.float\(\) has floating numbers"):
        classify(mlp([1, 3]))(whole)


def test_targets_must_be_shaped_like_the_predictions():
    tasks = regression_tasks(outputs=1)
    flat = fm.TaskBatch(
        tasks.support_x, tasks.support_y[..., 0], tasks.query_x, tasks.query_y[..., 0]
    )
    with pytest.raises(ValueError, match=r"support_y is \[3, 5\], so \[\] a sample, .* \[1\]"):
        classify(mlp([2, 1]), "mse")(flat)
    with pytest.raises(TypeError, match="int64 labels"):
        classify(mlp([2, 1]))(tasks)


def test_labels_are_checked_in_every_batch():
    meta, tasks = classify(mlp([2, 3])), classification_tasks([2])
    meta(tasks)
    bad = classification_tasks([2])
    bad.query_y[1, 0] = 3
    with pytest.raises(ValueError, match="query_y has labels"):
        meta(bad)
    bad.query_y[1, 0] = -100
    with pytest.raises(ValueError, match="labels from -100"):
        meta(bad)


def test_dtypes_and_devices_must_agree():
    meta = classify(mlp([2, 3]))
    with pytest.raises(TypeError, match="support_x is torch.float32, the parameters torch.float64"):
        meta(classification_tasks([2]).to(dtype=torch.float32))
    with pytest.raises(TypeError, match="is on cpu, support_x on meta"):
        meta(classification_tasks([2]).to("meta"))


def test_weights_and_batch_norm_do_not_go_together():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    x, y = torch.randn(2, 4, 2).double(), torch.zeros(2, 4, dtype=torch.int64)
    tasks = fm.TaskBatch(x, y, x, y, query_weight=torch.ones(2, 4).double())
    with pytest.raises(ValueError, match=r"batch norms \(1\)"):
        classify(model)(tasks)


def test_weights_need_a_loss_that_takes_them():
    x, y = torch.randn(2, 4, 2).double(), torch.zeros(2, 4, dtype=torch.int64)
    tasks = fm.TaskBatch(x, y, x, y, torch.ones(2, 4).double(), torch.ones(2, 4).double())
    with pytest.raises(ValueError, match="need a loss that takes them"):
        classify(mlp([2, 3]), lambda p, y: F.cross_entropy(p, y))(tasks)

    def weighted(predictions, targets, weight):
        losses = F.cross_entropy(predictions, targets, reduction="none")
        return (weight * losses).sum() / weight.sum()

    model = mlp([2, 3])
    right = classify(model)(tasks).loss
    for loss in (weighted, F.cross_entropy):  # the latter goes by its name
        torch.testing.assert_close(classify(model, loss)(tasks).loss, right)


def test_no_parameter_that_adapts():
    with pytest.raises(ValueError, match="no parameter adapts"):
        classify(nn.Sequential(nn.Flatten(), nn.Tanh()))
    model = mlp([2, 3]).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter adapts"):
        classify(model)
    out = classify(model, inner_steps=0)(classification_tasks([2]))
    assert not out.loss.requires_grad


def test_predictions_that_ignore_what_adapts():
    model = nn.ModuleDict({"used": nn.Linear(2, 3), "idle": nn.Linear(2, 3)})
    model.forward = lambda x: model["used"](x)
    with pytest.raises(ValueError, match="do not depend on what adapts"):
        classify(model, adapt_parameters=["idle.bias"])(classification_tasks([2]))


def test_looking_at_a_model_leaves_the_random_state_alone():
    meta = classify(
        nn.Sequential(nn.Linear(2, 3), nn.Dropout()), engine="vmap", randomness="same",
        inner_steps=0,
    )  # fmt: skip
    tasks = classification_tasks([2])
    torch.manual_seed(3)
    first = meta(tasks).loss
    torch.manual_seed(3)
    assert torch.equal(meta(tasks).loss, first)


class OfNumbers(nn.Module):
    """Takes samples that are single numbers, [S]."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x[:, None])[:, 0]


@pytest.mark.parametrize("width", [1, 3])
def test_samples_without_a_task_dimension_are_no_tasks(width):
    x = torch.randn(5, width).double()
    tasks = fm.TaskBatch(x, x, x, x)
    with pytest.raises(ValueError, match=r"forget the task dimension\? TaskBatch is \[T, S, ...\]"):
        classify(mlp([width, 4, width]), "mse")(tasks)
    assert classify(OfNumbers(), "mse")(tasks).loss.shape == (5,)
    one = fm.TaskBatch(x[None], x[None], x[None], x[None])
    assert classify(mlp([width, 4, width]), "mse")(one).loss.shape == (1,)


def test_what_looks_like_one_task_is_told_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x, y = torch.randn(6, 2, 2).double(), torch.zeros(6, 2).long()
    with pytest.raises(ValueError, match=r"can take all of support_x \[6, 2, 2\] .* forget"):
        classify(model)(fm.TaskBatch(x, y, x, y))
    with pytest.raises(ValueError, match=r"\[6\]; did you forget the task dimension"):
        fm.TaskBatch(x, y[:, 0], x, y[:, 0])
    with pytest.raises(ValueError, match=r"\[T, S, 1\]"):
        classify(mlp([1, 4]))(fm.TaskBatch(x[..., 0], y, x[..., 0], y))
    with pytest.raises(ValueError, match="forget the task dimension"):
        fm.ProtoNet(nn.Linear(3, 2).double())(fm.TaskBatch(x[..., 0], y, x[..., 0], y))


@pytest.mark.parametrize(
    ("engine", "loss"),
    [
        ("auto", "cross_entropy"),
        ("vmap", "cross_entropy"),
        ("layered", lambda p, y: F.cross_entropy(p, y)),
        ("reference", "cross_entropy"),
    ],
)
def test_a_first_call_under_a_checkpoint_saves_what_the_next_one_does(engine, loss):
    tasks = classification_tasks([2])
    meta = classify(mlp([2, 4, 3]), loss, engine=engine)
    values = checkpoint(lambda: meta(tasks).loss, use_reentrant=False)
    ours = torch.autograd.grad(values.sum(), list(meta.parameters()))
    right = torch.autograd.grad(meta(tasks).loss.sum(), list(meta.parameters()))
    for gradient, expected in zip(ours, right, strict=True):
        torch.testing.assert_close(gradient, expected)


class ShiftsInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x):
        return self.linear(x.sub_(0.5))


@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
@pytest.mark.parametrize(
    "model",
    [ShiftsInPlace(), nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Linear(2, 3))],
    ids=["by hand", "a first layer"],
)
def test_a_forward_that_changes_its_input_is_refused_and_the_input_is_as_it_was(model, engine):
    tasks = classification_tasks((2,))
    before = tasks.support_x.clone()
    with pytest.raises(ValueError, match="changes its input in place"):
        classify(model, engine=engine)(tasks)
    assert torch.equal(tasks.support_x, before)


def test_a_name_that_adapted_and_is_gone():
    meta = classify(mlp([2, 3]), adapt_parameters=["0.bias"])
    meta.model[0] = nn.Linear(2, 3, bias=False).double()
    with pytest.raises(ValueError, match=r"adapt_parameters names \['0.bias'\]"):
        meta(classification_tasks((2,)))
