"""What only a GPU can show. Where the body makes sense on a CPU too, it runs there as well."""

import gc

import pytest
import torch
from torch import nn

import fastmeta as fm
from fastmeta.episodes import Sinusoid
from fastmeta.models import mlp
from fastmeta.training import GraphedStep, rates_on_device

gpu = pytest.mark.gpu
ENGINES = ["auto", "layered", "vmap"]
CUDA = torch.device("cuda:0")


def classifier():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    conv = nn.Conv2d(1, 6, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(150, 3))


def images(tasks=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tasks, 15, 1, 10, 10, generator=generator)
    y = torch.arange(15).remainder(3).repeat(tasks, 1)
    return fm.TaskBatch(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:])


def regression(tasks=5):
    return mlp([1, 20, 20, 1]), Sinusoid(seed=2).sample(tasks)


def meta_gradient(meta, tasks):
    loss = meta(tasks).loss.mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(meta.parameters()))]


def flat(tensors):
    return torch.cat([tensor.double().cpu().flatten() for tensor in tensors])


def off_by(found, exact):
    return float((flat(found) - flat(exact)).norm() / flat(exact).norm())


@pytest.fixture(autouse=True)
def ieee(monkeypatch):
    """PyTorch convolves in TF32 on a GPU unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("order", [1, 2])
def test_the_meta_gradient_is_exact(device, engine, order):
    model, tasks = classifier(), images()
    options = dict(inner_lr=0.1, inner_steps=2, order=order)
    exact = meta_gradient(
        fm.MAML(model.double(), engine="reference", **options), tasks.to(dtype=torch.float64)
    )
    meta = fm.MAML(model.float().to(device), engine=engine, **options)
    assert off_by(meta_gradient(meta, tasks.to(device)), exact) < 1e-4
    double = fm.MAML(model.double(), engine=engine, **options)
    found = meta_gradient(double, tasks.to(device, torch.float64))
    assert off_by(found, exact) < 1e-9


@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_run_gives_the_same_bits(device, engine):
    torch.manual_seed(0)
    model, tasks = regression(tasks=64)
    meta = fm.MAML(model.to(device), inner_steps=3, loss="mse", engine=engine)
    first, second = (meta_gradient(meta, tasks.to(device)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@gpu
@pytest.mark.parametrize("engine", ENGINES)
def test_another_stream_is_waited_for(engine):
    """The inputs become right only when a long kernel before on the same stream is done."""
    torch.manual_seed(0)
    model, tasks = regression(tasks=64)
    meta = fm.MAML(model.to(CUDA), inner_steps=2, loss="mse", engine=engine)
    there = tasks.to(CUDA)
    wanted = meta_gradient(meta, there)
    late = there._map(torch.zeros_like)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles: tens of milliseconds
        for name in ("support_x", "support_y", "query_x", "query_y"):
            getattr(late, name).copy_(getattr(there, name))
        found = meta_gradient(meta, late)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU here")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_second_gpu_is_used_though_the_first_is_current(engine):
    torch.manual_seed(0)
    model, tasks = regression()
    second = torch.device("cuda:1")
    exact = meta_gradient(fm.MAML(model, loss="mse", engine="vmap"), tasks)
    meta = fm.MAML(model.to(second), loss="mse", engine=engine)
    found = meta_gradient(meta, tasks.to(second))
    assert torch.cuda.current_device() == 0
    assert all(tensor.device == second for tensor in found)
    assert off_by(found, exact) < 1e-4


@gpu
@pytest.mark.parametrize("in_graph", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_trains_as_plain_steps_do(engine, in_graph):
    def losses(enabled):
        torch.manual_seed(0)
        meta = fm.MAML(mlp([1, 20, 20, 1]), inner_steps=2, loss="mse", engine=engine).to(CUDA)
        optimizer = torch.optim.Adam(meta.parameters(), lr=1e-3, fused=True, capturable=True)
        rates_on_device(optimizer)
        source = Sinusoid(seed=3, device=CUDA)
        generators = source.generators if in_graph else ()
        step = GraphedStep(
            meta, optimizer, lambda: source.sample(8), generators=generators, enabled=enabled
        )
        found = [step().loss.item() for _ in range(10)]
        assert (step.reason is None) == enabled, step.reason
        return found

    assert losses(True) == losses(False)


@gpu
@pytest.mark.parametrize("name", ["maml", "reptile", "protonet"])
def test_learners_of_images_are_captured(name):
    """Their losses go where those of plain steps go, which for Reptile need not be down: what it
    learns from are the support sets alone."""

    def losses(enabled):
        torch.manual_seed(0)
        learner = {
            "maml": lambda: fm.MAML(classifier()),
            "reptile": lambda: fm.Reptile(classifier(), inner_steps=2),
            "protonet": lambda: fm.ProtoNet(classifier()[:-1]),
        }[name]().to(CUDA)
        learned = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=1e-3, fused=True, capturable=True)
        tasks = images().to(CUDA).with_known_ways(3)
        step = GraphedStep(learner, optimizer, lambda: tasks, enabled=enabled)
        found = [step().loss.item() for _ in range(8)]
        assert (step.reason is None) == enabled, step.reason
        return found

    captured, plain = losses(True), losses(False)
    moved = max(plain) - min(plain)
    assert moved > 1e-3 * plain[0]  # else the same losses would not show the same steps
    # cuDNN's sums differ in their last bits; a step left out or done twice, by far more.
    apart = max(abs(a - b) for a, b in zip(captured, plain, strict=True))
    assert apart < 0.02 * moved, (captured, plain)


@gpu
def test_a_step_in_a_graph_waits_for_nothing():
    torch.manual_seed(0)
    meta = fm.MAML(mlp([1, 20, 20, 1]), inner_steps=2, loss="mse").to(CUDA)
    optimizer = torch.optim.Adam(meta.parameters(), lr=1e-3, fused=True, capturable=True)
    source = Sinusoid(seed=3, device=CUDA)
    step = GraphedStep(meta, optimizer, lambda: source.sample(8), generators=source.generators)
    for _ in range(5):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("label", [-1, 3, 2**40])
@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_a_label_outside_is_told_before_any_kernel(device, name, label):
    learner = fm.MAML(classifier()) if name == "maml" else fm.ProtoNet(classifier()[:-1])
    learner = learner.to(device)
    tasks = images().to(device)
    query_y = tasks.query_y.clone()
    query_y[1, 4] = label
    spoilt = fm.TaskBatch(tasks.support_x, tasks.support_y, tasks.query_x, query_y)
    with pytest.raises(ValueError, match="query_y has labels from"):
        learner(spoilt)
    assert torch.isfinite(learner(tasks).loss).all()  # the device still works


@gpu
def test_tensors_past_2_to_the_31_elements():
    """Only the last task's numbers count: where an offset wraps, they are not read."""
    free, _ = torch.cuda.mem_get_info()
    tasks, samples, width = 2**19, 2**6, 2**6 + 1
    needed = 3 * tasks * samples * width * 4
    if free < needed:
        pytest.skip(f"it takes {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free")
    x = torch.zeros(tasks, samples, width, device=CUDA)
    assert x.numel() > 2**31
    weight = torch.zeros(tasks, 2, width, device=CUDA)
    x[-1], weight[-1] = 1.0, 2.0
    y = fm.functional.linear(x, weight, None)
    assert torch.equal(y[-1], torch.full((samples, 2), 2.0 * width, device=CUDA))
    assert float(y[:-1].abs().max()) == 0.0
    del x, weight, y
    gc.collect()
    torch.cuda.empty_cache()


@gpu
def test_out_of_memory_is_told_with_the_size_and_the_way_out():
    _, total = torch.cuda.mem_get_info()
    width = 4096
    tasks = 2 * total // (width * width * 4)
    meta = fm.MAML(nn.Linear(width, width), loss="mse", engine="vmap").to(CUDA)
    x = torch.zeros(1, 1, width, device=CUDA).expand(tasks, 1, width)
    with pytest.raises(
        torch.OutOfMemoryError, match="fast weights of .* What takes less: fewer tasks"
    ):
        meta(fm.TaskBatch(x, x, x, x))
    gc.collect()
    torch.cuda.empty_cache()
