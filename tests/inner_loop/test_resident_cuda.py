"""The resident engine on CUDA: its Python half with a stand-in for the kernels, and, where there is
a GPU, the kernels themselves against the reference."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from oracle import classification_tasks, gradients, regression_tasks, relative_error
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu, cuda
from fastmeta.inner_loop.choose import choose
from fastmeta.inner_loop.engines import forms, resident
from fastmeta.inner_loop.loop import InnerLoop
from fastmeta.models import mlp

needs_native = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"
)


def network(inputs=2, width=8, outputs=2):
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def passed_over(module, tasks):
    """Why not the resident engine; None if it runs."""
    loss = "mse" if tasks.support_y.is_floating_point() else "cross_entropy"
    parameters = dict(module.named_parameters())
    loop = InnerLoop(module, loss, 1, 2, tuple(parameters))
    return choose(loop, tasks, parameters, 0.1).passed_over.get("resident")


class StandInPlan:
    """A program of one operation."""

    record_bytes, workspace_bytes = 16, 64

    def __init__(self, call, *wanted):
        self.wanted, self.address, self.code = wanted, None, None

    def operations(self):
        return bytes(160)

    def put_operations(self, address):
        self.address = address

    def source(self):
        return "what a compiler takes"

    def put_code(self, code, device):
        self.code = (code, device)


class StandIn:
    """fastmeta._cuda with the CPU's kernels behind its functions."""

    plan_float64 = StandInPlan

    def __init__(self, reason=""):
        self.records, self.calls, self.codes, self.reason = {}, [], [], reason
        self.Chain, self.Loss = cpu.native.Chain, cpu.native.Loss
        self.call_float64 = cpu.native.call_float64

    def devices(self):
        return 1

    def unfit_float64(self, call, device):
        return self.reason

    def forward_float64(self, call, plan, place, addresses, record, predictions, loss, fast):
        assert plan.address and plan.wanted == (False, bool(fast), *[False] * 6, 0)
        self.calls.append(("forward", place))
        self.codes.append(plan.code)
        self.records[record] = cpu.native.forward_float64(
            call, 1, addresses, record != 0, predictions, loss, fast
        )

    def backward_float64(self, call, plan, place, addresses, record, workspace, *others):
        grad_loss, grad_predictions, grad_fast, _, rates, support_x, query_x = others
        wanted = (rates, support_x, query_x, grad_loss, grad_predictions, grad_fast)
        assert plan.address and plan.wanted == (True, False, *map(bool, wanted), 0)
        self.calls.append(("backward", place))
        assert workspace
        cpu.native.backward_float64(call, 1, addresses, self.records[record], *others)


@pytest.fixture
def stand_in(monkeypatch):
    """Tensors on the CPU go the way of CUDA tensors."""
    module = StandIn()
    cuda.kernels.cache_clear()
    monkeypatch.setattr(cuda, "_load", lambda: module)
    monkeypatch.setattr(cuda, "_place", lambda like: (0, 7))
    monkeypatch.setattr(cuda, "_current", lambda device: nullcontext())
    monkeypatch.setattr(cuda, "_captures", lambda: False)
    for where in (resident, forms):
        monkeypatch.setattr(where, "BACKENDS", {"cpu": cuda})
    yield module
    cuda.kernels.cache_clear()


@needs_native
@pytest.mark.parametrize("learn", [None, "element"])
def test_the_python_half_hands_over_what_the_kernels_need(stand_in, learn):
    torch.manual_seed(0)
    meta = fm.MAML(
        network(), loss="mse", inner_steps=2, inner_lr=0.1, learn_inner_lr=learn,
        per_step_lr=learn is not None,
    )  # fmt: skip
    tasks = regression_tasks()
    found = gradients(meta, tasks, list(meta.parameters()))
    assert stand_in.calls == [("forward", (0, 7)), ("backward", (0, 7))]
    with fm.use_backend("reference"):
        expected = gradients(meta, tasks, list(meta.parameters()))
    assert relative_error(found, expected) < 1e-11


def huber(predictions, targets):
    return F.huber_loss(predictions, targets, delta=0.3)


def energy(predictions, targets):
    scores = predictions.square().sum(-1) - (predictions * targets).sum(-1).tanh()
    return torch.where(scores > 0.2, scores, scores.exp()).sum()


OWN_LOSSES = [huber, energy, nn.CrossEntropyLoss(label_smoothing=0.1)]


def with_own_loss(loss, **options):
    """A learner and tasks for it."""
    torch.manual_seed(0)
    classifies = isinstance(loss, nn.Module)
    model = network(outputs=3 if classifies else 2)
    tasks = classification_tasks((2,), t=9) if classifies else regression_tasks(t=9)
    return fm.MAML(model, loss=loss, inner_lr=0.1, inner_steps=3, **options), tasks


@needs_native
@pytest.mark.parametrize("loss", OWN_LOSSES)
def test_losses_of_ones_own_are_handed_over(stand_in, loss):
    meta, tasks = with_own_loss(loss)
    found = gradients(meta, tasks, list(meta.parameters()))
    assert stand_in.calls == [("forward", (0, 7)), ("backward", (0, 7))]
    with fm.use_backend("reference"):
        expected = gradients(meta, tasks, list(meta.parameters()))
    assert relative_error(found, expected) < 1e-11


@needs_native
def test_programs_are_compiled_where_that_is_asked_for(stand_in, monkeypatch):
    monkeypatch.setattr(cuda, "_target", lambda device: ((9, 0), "13.0"))
    monkeypatch.setattr(cuda, "compile_cuda", lambda *given: given)

    def code():
        meta = fm.MAML(network(), loss="mse", inner_steps=1, inner_lr=0.1)
        with torch.no_grad():
            meta(regression_tasks())
        return stand_in.codes[-1]

    assert code() is None
    monkeypatch.setenv("FASTMETA_CUDA_PROGRAMS", "compiled")
    assert code() == (("what a compiler takes", (9, 0), "13.0"), 0)
    monkeypatch.setenv("FASTMETA_CUDA_PROGRAMS", "fast")
    with pytest.raises(ValueError, match="FASTMETA_CUDA_PROGRAMS=fast: expected interpreted or"):
        code()


@needs_native
def test_the_reason_of_a_network_that_does_not_fit_is_told(stand_in):
    stand_in.reason = "the network needs 9 bytes of shared memory a block, and the device has 8"
    assert "needs 9 bytes of shared memory" in passed_over(network(), regression_tasks())
    meta = fm.MAML(network(), loss="mse", inner_steps=1, inner_lr=0.1)
    assert torch.isfinite(meta(regression_tasks()).loss).all()  # another engine
    assert not stand_in.calls


@needs_native
def test_networks_of_images_take_another_engine(stand_in):
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double()
    assert "chains of linear layers" in passed_over(module, classification_tasks((1, 4, 4)))


def test_a_backend_for_other_tensors_says_so():
    meta = fm.MAML(network(), loss="mse", inner_steps=1, inner_lr=0.1)
    with fm.use_backend("cuda"), pytest.raises(ValueError, match="cannot run this"):
        meta(regression_tasks())


def test_what_is_missing_is_told(monkeypatch):
    cuda._load.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in cuda.unavailable()
    cuda._load.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no NVIDIA GPU" in cuda.unavailable()
    cuda._load.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = SimpleNamespace(devices=lambda: (_ for _ in ()).throw(RuntimeError("driver too old")))
    monkeypatch.setattr(cuda.importlib, "import_module", lambda name: module)
    assert "driver too old" in cuda.unavailable()
    cuda._load.cache_clear()
    monkeypatch.undo()


@needs_native
def test_two_threads_that_plan_at_once_run_the_same_plan(stand_in):
    together = threading.Barrier(2)

    def new_plan(*wanted):
        together.wait(10)
        return StandInPlan(*wanted)

    call = cuda._Call(None, new_plan)
    with ThreadPoolExecutor(2) as threads:
        like, wanted = torch.zeros(1), [True] * 8
        found = [threads.submit(call.plan, like, 0, *wanted) for _ in range(2)]
    assert found[0].result() is found[1].result()


# ---- on a GPU ------------------------------------------------------------------------------------


def assert_as_the_reference(meta, tasks, inputs):
    """The kernels' gradients are the reference's, and the same bits once more."""
    with fm.use_backend("cuda"):
        found = gradients(meta, tasks, inputs)
        again = gradients(meta, tasks, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    with fm.use_backend("reference"):
        expected = gradients(meta, tasks, inputs)
    assert relative_error(found, expected) < 1e-11


@pytest.mark.gpu
@pytest.mark.parametrize("programs", ["interpreted", "compiled"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("learn", [None, "tensor", "element"])
@pytest.mark.parametrize("classifies", [False, True])
def test_kernels_agree_with_the_reference(order, learn, classifies, programs, monkeypatch):
    monkeypatch.setenv("FASTMETA_CUDA_PROGRAMS", programs)
    torch.manual_seed(0)
    meta = fm.MAML(
        network(outputs=3 if classifies else 2), loss="cross_entropy" if classifies else "mse",
        inner_steps=3, inner_lr=0.1, order=order, learn_inner_lr=learn,
    ).cuda()  # fmt: skip
    tasks = (classification_tasks((2,), t=9) if classifies else regression_tasks(t=9)).to("cuda")
    assert_as_the_reference(meta, tasks, list(meta.parameters()))


@pytest.mark.gpu
@pytest.mark.parametrize("programs", ["interpreted", "compiled"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("loss", OWN_LOSSES)
def test_losses_of_ones_own_agree_with_the_reference(loss, order, programs, monkeypatch):
    monkeypatch.setenv("FASTMETA_CUDA_PROGRAMS", programs)
    meta, tasks = with_own_loss(loss, order=order, learn_inner_lr="element")
    meta, tasks = meta.cuda(), tasks.to("cuda")
    assert_as_the_reference(meta, tasks, list(meta.parameters()))


def blocks_of_a_task(widths, tasks, samples, dtype="float64"):
    """How many blocks of the GPU share a task of an MLP with tanh."""
    module, nodes = cuda.native(), []
    for layer, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        if layer:
            nodes.append(("activation", "tanh", 0.0, 0.0, fan_in, fan_in, -1, -1))
        nodes.append(("linear", "", 0.0, 0.0, fan_in, fan_out, 2 * layer, 2 * layer + 1))
    n = 2 * len(widths) - 2
    chain = module.Chain(nodes, "mse", n)
    call = getattr(module, f"call_{dtype}")(
        chain, tasks, 1, 2, [0] * n, [(0, 1)] * n, True, (samples, samples), False, (False, False)
    )
    return getattr(module, f"blocks_{dtype}")(call, torch.cuda.current_device())


@pytest.fixture
def clusters():
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters of blocks need compute capability 9.0")


# Too large for a block, with few samples and in parts.
SHARED_TASKS = [((256, 64, 64, 3), 5, 20), ((300, 64, 64, 6), 3, 200)]


@pytest.mark.gpu
@pytest.mark.usefixtures("clusters")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("learn", [None, "element"])
@pytest.mark.parametrize("widths, t, samples", SHARED_TASKS)
def test_blocks_that_share_a_task_agree_with_the_reference(order, learn, widths, t, samples):
    assert blocks_of_a_task(widths, t, samples) > 1
    torch.manual_seed(0)
    meta = fm.MAML(
        mlp(list(widths), "tanh"), loss="mse", inner_steps=2, inner_lr=0.1, order=order,
        learn_inner_lr=learn,
    ).to("cuda", torch.float64)  # fmt: skip
    tasks = regression_tasks(t, samples, samples, widths[0], widths[-1]).to("cuda")
    inputs = [*meta.parameters(), tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()]
    assert_as_the_reference(meta, tasks, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "widths, t, samples",
    [((2, 40, 40, 2), 20, 10), ((200, 200, 100, 5), 3, 10), ((300, 64, 64, 6), 3, 200)],
    ids=["a block", "60k parameters", "many samples"],
)
@pytest.mark.parametrize("programs", ["interpreted", "compiled"])
def test_float32_loses_no_more_than_plain_pytorch(widths, t, samples, programs, monkeypatch):
    monkeypatch.setenv("FASTMETA_CUDA_PROGRAMS", programs)
    shared = widths[0] > 2
    if shared and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters of blocks need compute capability 9.0")
    assert (blocks_of_a_task(widths, t, samples, "float32") > 1) == shared
    torch.manual_seed(0)
    meta = fm.MAML(mlp(list(widths), "tanh"), loss="mse", inner_steps=5, inner_lr=0.1)
    tasks = regression_tasks(t, samples, samples, widths[0], widths[-1])

    def found(backend, dtype, device="cpu"):
        model = copy.deepcopy(meta).to(device, dtype)
        with fm.use_backend(backend):
            all_of = gradients(model, tasks.to(device, dtype), list(model.parameters()))
        return [gradient.double().cpu() for gradient in all_of]

    right = found("reference", torch.float64)
    plain = relative_error(found("reference", torch.float32, "cuda"), right)
    ours = relative_error(found("cuda", torch.float32, "cuda"), right)
    assert ours <= max(2 * plain, 4 * torch.finfo(torch.float32).eps)


@pytest.mark.gpu
@pytest.mark.parametrize("inputs", [2, 256], ids=["blocks", "clusters where there are any"])
def test_another_stream_and_a_graph(inputs):
    torch.manual_seed(0)
    module = network(inputs, width=8 if inputs == 2 else 64)
    meta = fm.MAML(module, loss="mse", inner_steps=2, inner_lr=0.1).cuda()
    tasks, parameters = regression_tasks(t=5, inputs=inputs).to("cuda"), list(meta.parameters())
    if reason := passed_over(module, tasks):
        pytest.skip(reason)

    def step():
        return torch.autograd.grad(meta(tasks).loss.mean(), parameters)

    with fm.use_backend("cuda"):
        expected = step()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            elsewhere = step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
        torch.cuda.synchronize()
    for a, b, c in zip(expected, elsewhere, captured, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.gpu
def test_a_network_too_large_says_what_it_needs():
    module = network(width=4096).cuda()
    assert "bytes of shared memory" in passed_over(module, regression_tasks().to("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_another_device_than_the_current_one():
    torch.manual_seed(0)
    meta, tasks = fm.MAML(network(), loss="mse", inner_steps=2, inner_lr=0.1), regression_tasks()
    found = []
    for device in ("cuda:0", "cuda:1"):
        meta.to(device)
        with fm.use_backend("cuda"):
            found.append(gradients(meta, tasks.to(device), list(meta.parameters())))
        assert torch.cuda.current_device() == 0
    assert relative_error([g.cpu() for g in found[1]], [g.cpu() for g in found[0]]) < 1e-13
