"""fm.functional in one graph of torch.compile or torch.export: eager's results to the bit."""

import io
import shutil

import pytest
import torch
from interpreter import takes_tensors_without_values
from oracle import DOUBLE, regression_tasks
from torch import nn

import fastmeta as fm
import fastmeta.functional as F
from fastmeta.backends import triton

LABELS = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]])
SHARES = torch.tensor([[1.0, 2, 1, 1, 3, 1], [1, 1, 2, 1, 1, 0]], dtype=DOUBLE)


@pytest.fixture(autouse=True)
def _compile_anew():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def double(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def images():
    return double(2, 6, 3, 8, 16)


def features():
    return double(2, 6, 5)


def positive(*shape):
    return torch.rand(*shape, dtype=DOUBLE) + 0.5


FUNCTIONS = {
    "relu": (F.relu, lambda: [features()]),
    "leaky_relu": (F.leaky_relu, lambda: [features()]),
    "tanh": (F.tanh, lambda: [features()]),
    "sin": (lambda x: F.sin(x, 3.0), lambda: [features()]),
    "sigmoid": (F.sigmoid, lambda: [features()]),
    "gelu": (F.gelu, lambda: [features()]),
    "softplus": (F.softplus, lambda: [features()]),
    "linear": (F.linear, lambda: [features(), double(2, 4, 5), double(2, 4)]),
    "shared linear": (F.linear, lambda: [features(), double(4, 5), double(2, 4)]),
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, stride=(1, 2), padding=1),
        lambda: [images(), double(2, 4, 3, 3, 3), double(2, 4)],
    ),
    "conv2d in groups": (
        lambda x, w, b: F.conv2d(x, w, b, dilation=2, groups=3),
        lambda: [images(), double(2, 6, 1, 3, 3), double(2, 6)],
    ),
    "conv_transpose2d": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, (1, 0)),
        lambda: [images(), double(2, 3, 2, 3, 3), double(2, 2)],
    ),
    "shared conv2d": (F.conv2d, lambda: [images(), double(4, 3, 3, 3), double(2, 4)]),
    "conv2d_input_gradient": (
        lambda g, w: F.conv2d_input_gradient(g, w, (8, 16)),
        lambda: [double(2, 6, 4, 6, 14), double(2, 4, 3, 3, 3)],
    ),
    "conv2d_weight_gradient": (
        lambda g, x: F.conv2d_weight_gradient(g, x, 3),
        lambda: [double(2, 6, 4, 6, 14), images()],
    ),
    "batch_norm": (F.batch_norm, lambda: [images(), double(2, 3), double(3)]),
    "layer_norm": (
        lambda x, w: F.layer_norm(x, (8, 16), w), lambda: [images(), double(2, 8, 16)]
    ),
    "group_norm": (lambda x, w: F.group_norm(x, 3, w), lambda: [images(), double(2, 3)]),
    "instance_norm": (F.instance_norm, lambda: [images(), double(3)]),
    "batch_norm_pool": (F.batch_norm_pool, lambda: [images(), double(2, 3), double(3)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), lambda: [images()]),
    "overlapping max_pool2d": (lambda x: F.max_pool2d(x, 3, 1, 1), lambda: [images()]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), lambda: [images()]),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), lambda: [images()]),
    "flatten": (F.flatten, lambda: [images()]),
    "cross_entropy": (
        lambda x, w: F.cross_entropy(x, LABELS, w), lambda: [features(), positive(2, 6)]
    ),
    "mse_loss": (F.mse_loss, lambda: [features(), features()]),
    "bce": (F.bce, lambda: [features(), positive(2, 6, 5) / 2]),
    "prototypes": (lambda x: F.prototypes(x, LABELS, 3, SHARES), lambda: [features()]),
    "prototypes with learned weights": (
        lambda x, w: F.prototypes(x, LABELS, 3, w), lambda: [features(), positive(2, 6)]
    ),
    "pairwise_distance": (F.pairwise_distance, lambda: [features(), double(2, 4, 5)]),
    "cosine distance": (
        lambda x, y: F.pairwise_distance(x, y, "cosine"), lambda: [features(), double(4, 5)]
    ),
    "nearest_prototype": (
        lambda x, y: F.nearest_prototype(x, y, 2, "euclidean"),
        lambda: [features(), double(9, 5)],
    ),
    "prototype_loss": (
        lambda s, q: F.prototype_loss(s, LABELS, q, LABELS, n_way=3)[0],
        lambda: [features(), features()],
    ),
    "prototype_loss with everything": (
        lambda s, q, t: F.prototype_loss(
            s, LABELS, q, LABELS, n_way=3, metric="euclidean", temperature=t,
            support_weight=SHARES, query_weight=SHARES, return_accuracy=True,
        ),
        lambda: [features(), features(), positive(2)],
    ),
    "prototype_loss with learned weights": (
        lambda s, q, w, t: F.prototype_loss(
            s, LABELS, q, LABELS, n_way=3, temperature=t, query_weight=w, return_accuracy=True
        ),
        lambda: [features(), features(), positive(2, 6), positive(1)[0]],
    ),
}  # fmt: skip
NOT_IN_A_GRAPH = {"hessian_vector_product", "inner_sgd"}


def results(function, inputs):
    """What it returns, and the gradients of a sum in which every number has its own weight."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    found = function(*leaves)
    found = found if isinstance(found, tuple) else (found,)
    total = sum(
        (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum()
        for y in found
        if y.requires_grad
    )
    return [*found, *torch.autograd.grad(total, leaves)]


def compiled(function, backend="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def assert_same(ours, right):
    for value, expected in zip(ours, right, strict=True):
        assert torch.equal(value, expected)
        assert value.stride() == expected.stride()


def test_every_function_is_here():
    names = {name.split()[-1] for name in FUNCTIONS} | {name.split()[0] for name in FUNCTIONS}
    assert set(F.__all__) - names == NOT_IN_A_GRAPH


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_gives_what_eager_gives(name):
    function, make = FUNCTIONS[name]
    inputs = make()
    assert_same(results(compiled(function), inputs), results(function, inputs))


@pytest.mark.parametrize("name", ["conv2d", "batch_norm_pool", "prototype_loss with everything"])
def test_a_graph_of_the_reference(name):
    function, make = FUNCTIONS[name]
    inputs = make()
    with fm.use_backend("reference"):
        assert_same(results(compiled(function), inputs), results(function, inputs))


TRITON = (
    "linear", "conv2d", "batch_norm_pool", "prototypes", "prototype_loss", "nearest_prototype"
)  # fmt: skip


@pytest.mark.skipif(not triton.interprets(), reason="the tensors are on the CPU")
@pytest.mark.parametrize("name", TRITON)
def test_a_graph_of_triton_kernels(name):
    if not takes_tensors_without_values():
        pytest.skip("this Triton's interpreter wants numbers")
    function, make = FUNCTIONS[name]
    inputs = [x[:, :, :, :4, :4].float() if x.dim() == 5 else x.float() for x in make()]
    if name == "conv2d":
        inputs[1] = double(2, 4, 3, 3, 3).float()
    if name == "prototypes":
        function = lambda x: F.prototypes(x, LABELS, 3)  # noqa: E731
    with fm.use_backend("triton"):
        assert_same(results(compiled(function), inputs), results(function, inputs))


def block(x, weight, scale):
    return F.max_pool2d(F.relu(F.batch_norm(F.conv2d(x, weight, padding=1), scale)), 2)


def fused_block(x, weight, scale):
    return F.batch_norm_pool(F.conv2d(x, weight, padding=1), scale)


@pytest.mark.parametrize("network", [block, fused_block])
def test_an_inner_step_by_torch_func_inside_of_the_graph(network):
    def after_a_step(x, weight, scale):
        def loss(weight):
            return network(x, weight, scale).square().mean()

        return network(x, weight - 0.1 * torch.func.grad(loss)(weight), scale)

    inputs = [images(), double(2, 4, 3, 3, 3), positive(2, 4)]
    assert_same(results(compiled(after_a_step), inputs), results(after_a_step, inputs))


def test_a_prototype_loss_in_an_inner_step_of_the_graph():
    def loss(support, query):
        return F.prototype_loss(support, LABELS, query, LABELS, n_way=3)[0]

    def after_a_step(support, query):
        step = torch.func.grad(lambda support: loss(support, query).sum())(support)
        return loss(support - 0.1 * step, query)

    inputs = [features(), features()]
    assert_same(results(compiled(after_a_step), inputs), results(after_a_step, inputs))


def test_shapes_and_numbers_may_change():
    function = compiled(lambda s, y, n: F.prototype_loss(s, y, s, y, n_way=n)[0])
    for n_way, width in ((2, 4), (3, 5), (4, 7)):
        labels = torch.arange(2 * n_way).remainder(n_way).expand(3, -1)
        support = double(3, 2 * n_way, width)
        right = F.prototype_loss(support, labels, support, labels, n_way=n_way)[0]
        assert torch.equal(function(support, labels, n_way), right)


def test_shapes_left_open():
    function = compiled(fused_block, dynamic=True)
    for tasks, samples, size in ((2, 3, 8), (3, 4, 11)):
        inputs = [
            double(tasks, samples, 3, size, size), double(tasks, 4, 3, 3, 3), positive(tasks, 4)
        ]  # fmt: skip
        assert_same(results(function, inputs), results(fused_block, inputs))


def test_the_backend_stays_that_was_in_force():
    function, inputs = compiled(fused_block), [images(), double(2, 4, 3, 3, 3), positive(2, 4)]
    right = results(function, inputs)
    with fm.use_backend("reference"):
        assert_same(results(function, inputs), right)


def test_training_in_a_graph():
    def run(step, weight):
        optimizer = torch.optim.Adam([weight], 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            step(weight).backward()
            optimizer.step()
        return weight.detach()

    x, start = images(), double(4, 3, 3, 3)

    def loss(weight):
        embedded = F.flatten(F.batch_norm_pool(F.conv2d(x, weight, padding=1)))
        return F.prototype_loss(embedded, LABELS, embedded, LABELS, n_way=3)[0].mean()

    ours = run(compiled(loss), start.clone().requires_grad_())
    assert torch.equal(ours, run(loss, start.clone().requires_grad_()))


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_inductor():
    inputs = [images(), double(2, 4, 3, 3, 3), positive(2, 4)]
    ours, right = results(compiled(fused_block, "inductor"), inputs), results(fused_block, inputs)
    for value, expected in zip(ours, right, strict=True):
        assert torch.allclose(value, expected, rtol=1e-12, atol=1e-12)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def embed(self, x):
        return F.flatten(F.batch_norm_pool(F.conv2d(x, self.weight, padding=1)))

    def forward(self, support, support_y, query, query_y):
        return F.prototype_loss(
            self.embed(support), support_y, self.embed(query), query_y, n_way=3
        )[0]


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    module = Embedded()
    x, other = torch.randn(2, 2, 6, 3, 8, 8)
    # One tensor given twice would be one input.
    example = (x, LABELS, torch.randn_like(x), LABELS.clone())
    program = torch.export.export(module, example, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    right = module(x, LABELS, other, LABELS)
    assert torch.equal(again(x, LABELS, other, LABELS), right)


# ---- what is wrong is said ---------------------------------------------------------------------


def test_wrong_labels_are_found_when_the_graph_runs():
    x, right, wrong = features(), LABELS.clone(), LABELS + 1
    native = compiled(lambda x, y: F.prototype_loss(x, LABELS, x, y, n_way=3)[0])
    native(x, right)
    with pytest.raises(ValueError, match=r"query_y has a label outside \[0, 3\): 3 for sample 2"):
        native(x, wrong)
    entropy = compiled(lambda x, y: F.cross_entropy(x[..., :3], y))
    entropy(x, right)
    with pytest.raises(RuntimeError, match="labels outside their classes"):
        entropy(x, wrong)
    learned = compiled(lambda x, y, w: F.prototypes(x, y, 3, w))
    weight = positive(2, 6).requires_grad_()
    learned(x, right, weight)
    with pytest.raises(RuntimeError, match="labels has a label outside its classes"):
        learned(x, wrong, weight)


def test_a_wrong_temperature_is_found_when_the_graph_runs():
    function = compiled(
        lambda x, t: F.prototype_loss(x, LABELS, x, LABELS, n_way=3, temperature=t)[0]
    )
    function(features(), positive(2))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        function(features(), -positive(2))


def test_wrong_shapes_are_found_when_the_graph_is_made():
    with pytest.raises(RuntimeError, match=r"ValueError.*weight must be \[4, 3, 3, 3\]"):
        compiled(F.conv2d)(images(), double(4, 3, 3, 3)[:, :2])


# ---- learners run outside of graphs ------------------------------------------------------------


def learner():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    return fm.MAML(model, inner_lr=0.1, inner_steps=2, loss="mse")


def image_learner(kind):
    torch.manual_seed(0)
    block = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    encoder = nn.Sequential(*block, nn.Flatten()).double()
    if kind == "prototypes":
        return fm.ProtoNet(encoder)
    model = nn.Sequential(encoder, nn.Linear(64, 3).double())
    if kind == "reptile":
        return fm.Reptile(model, inner_lr=0.1, inner_steps=2)
    return fm.MAML(model, inner_lr=0.1, engine=kind)


KINDS = ["prototypes", "reptile", "resident", "layered", "vmap", "reference"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_training_step_with_learner_and_optimizer(kind, recwarn):
    x = double(2, 2, 6, 1, 8, 8)
    tasks = fm.TaskBatch(x[0], LABELS, x[1], LABELS)

    def parameters_after(compile):
        meta = image_learner(kind)
        # Not Adam, which PyTorch itself computes otherwise when compiled.
        optimizer = torch.optim.SGD(meta.parameters(), 0.05)

        def step(tasks):
            optimizer.zero_grad()
            loss = meta(tasks).loss.mean()
            loss.backward()
            optimizer.step()
            return loss

        run = compile(step)
        for _ in range(3):
            run(tasks)
        return [parameter.detach() for parameter in meta.parameters()]

    ours = parameters_after(lambda step: torch.compile(step, backend="aot_eager"))
    for value, right in zip(ours, parameters_after(lambda step: step), strict=True):
        assert torch.allclose(value, right, rtol=1e-12, atol=1e-15)
    assert not [each for each in recwarn if "Dynamo" in str(each.message)]


@pytest.mark.parametrize(
    "function",
    [
        lambda meta, tasks: meta(tasks).loss,
        lambda meta, tasks: meta.adapt(tasks.support_x, tasks.support_y).parameters["0.weight"],
        lambda meta, tasks: F.hessian_vector_product(
            meta.model, dict(meta.model.named_parameters()), tasks.query_x, tasks.query_y,
            dict(meta.model.named_parameters()), "mse",
        )["0.weight"],
    ],
    ids=["forward", "adapt", "hessian_vector_product"],
)  # fmt: skip
def test_a_whole_graph_of_a_learner_is_refused_with_the_way_out(function):
    meta, tasks = learner(), regression_tasks()
    with pytest.raises(RuntimeError, match="torch.compile without fullgraph=True"):
        compiled(lambda tasks: function(meta, tasks))(tasks)
    partly = torch.compile(lambda tasks: function(meta, tasks) * 2, backend="aot_eager")
    assert torch.equal(partly(tasks), function(meta, tasks) * 2)


def test_export_of_a_learner_is_refused_with_the_way_out():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.meta = learner()

        def forward(self, *tensors):
            return self.meta(fm.TaskBatch(*tensors)).loss

    tasks = regression_tasks()
    tensors = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    with pytest.raises(RuntimeError, match="export the module that was learned"):
        torch.export.export(Wrapped(), tensors, strict=False)
