"""The whole meta-step in a graph, with a tape in the graph's place where there is no GPU."""

import pytest
import torch
from tape import Tape, pretend_to_capture

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.episodes import ImageClasses, ImageEpisodes, Sinusoid
from fastmeta.models import mlp
from fastmeta.training import (
    GraphedStep,
    Run,
    Schedule,
    StepOutcome,
    TrainingDiverged,
    graphed,
    rates_on_device,
    train,
)


def make_meta(engine="vmap", seed=0, **options):
    torch.manual_seed(seed)
    options = {"inner_lr": 0.05, "inner_steps": 2, "loss": "mse", "engine": engine} | options
    return fm.MAML(mlp([1, 8, 1]), **options)


def make_optimizer(meta, **options):
    return torch.optim.Adam(meta.parameters(), **({"lr": 1e-2, "fused": True} | options))


def plain_steps(steps, clip=float("inf"), tasks=3, **options):
    """The same training as PyTorch users write it."""
    meta = make_meta(**options)
    optimizer = make_optimizer(meta)
    source = Sinusoid(shots=4, queries=4, seed=1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = meta(source.sample(tasks)).loss.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(meta.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses, meta


@pytest.fixture
def on_tape(monkeypatch):
    """Steps are captured on a tape, which like a graph does not do the step it records."""
    taped = []

    def captured(step, generators):
        owner = step.__closure__
        own = next(c.cell_contents for c in owner if isinstance(c.cell_contents, GraphedStep))
        tensors = [*own._parameters, *state_of(own._optimizer)]
        before = [t.detach().clone() for t in tensors]
        streams = [(g, g.get_state()) for g in generators]
        with monkeypatch.context() as patch, Tape() as tape:
            pretend_to_capture(patch)
            outcome = step()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        for generator, state in streams:
            generator.set_state(state)
        taped.append(tape)
        return tape.replay, outcome

    monkeypatch.setattr(graphed, "_captured", captured)
    monkeypatch.setattr(graphed, "_why_never", lambda optimizer, parameters: None)
    return taped


def state_of(optimizer):
    return [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]


def graphed_step(meta, optimizer=None, tasks=3, in_graph=True, **options):
    source = Sinusoid(shots=4, queries=4, seed=1)
    generators = source.generators if in_graph else ()
    optimizer = optimizer or make_optimizer(meta)
    return GraphedStep(
        meta, optimizer, lambda: source.sample(tasks), generators=generators, **options
    )


@pytest.mark.parametrize("in_graph", [True, False])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("engine", ["vmap", "layered"])
def test_replays_are_the_steps_of_plain_training(on_tape, engine, clip, in_graph):
    losses, reference = plain_steps(9, clip or float("inf"), engine=engine)
    meta = make_meta(engine)
    step = graphed_step(meta, clip=clip, in_graph=in_graph)
    found = [step().loss.item() for _ in range(9)]
    assert len(on_tape) == 1 and step.reason is None
    assert found == losses
    for p, q in zip(meta.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q) and p.grad is not None


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
@pytest.mark.parametrize("clip", [None, 0.1])
def test_steps_on_a_cpu_are_those_of_plain_training_without_autograd(monkeypatch, clip):
    losses, reference = plain_steps(5, clip or float("inf"), engine="resident")
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: pytest.fail("autograd was asked"))
    meta = make_meta("resident")
    step = graphed_step(meta, clip=clip)
    outcomes = [step() for _ in range(5)]
    assert [outcome.loss.item() for outcome in outcomes] == losses
    assert not any(outcome.loss.requires_grad for outcome in outcomes)
    for p, q in zip(meta.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_is_no_learner_is_trained_by_autograd():
    losses, reference = plain_steps(3)
    meta, source = make_meta(), Sinusoid(shots=4, queries=4, seed=1)
    step = GraphedStep(lambda tasks: meta(tasks), make_optimizer(meta), lambda: source.sample(3))
    assert [step().loss.item() for _ in range(3)] == losses
    for p, q in zip(meta.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_graph_reads_rates_that_are_on_the_device(on_tape):
    meta = make_meta()
    optimizer = make_optimizer(meta)
    rates_on_device(optimizer)
    step = graphed_step(meta, optimizer)
    for _ in range(5):
        step()
    before = [p.detach().clone() for p in meta.parameters()]
    optimizer.param_groups[0]["lr"].fill_(0.0)
    step()
    assert len(on_tape) == 1
    assert all(torch.equal(p, q) for p, q in zip(meta.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda meta, optimizer: optimizer.param_groups[0].update(lr=0.5),
        lambda meta, optimizer: optimizer.load_state_dict(optimizer.state_dict()),
        lambda meta, optimizer: next(meta.parameters()).requires_grad_(False),
        lambda meta, optimizer: meta.eval(),
        lambda meta, optimizer: meta.double().float(),
    ],
    ids=["rate", "optimizer", "frozen", "mode", "moved"],
)
def test_what_a_graph_took_for_constant_is_captured_anew(on_tape, change):
    meta = make_meta()
    optimizer = make_optimizer(meta)
    step = graphed_step(meta, optimizer)
    for _ in range(graphed.WARM_UP + 1):
        step()
    assert len(on_tape) == 1
    change(meta, optimizer)
    for _ in range(graphed.WARM_UP + 1):
        step()
    assert len(on_tape) == 2


def test_a_new_shape_is_captured_anew_and_the_old_graph_is_kept(on_tape):
    meta, sizes = make_meta(), iter([3] * 5 + [4] * 5 + [3] * 2)
    source = Sinusoid(shots=4, queries=4, seed=1)
    step = GraphedStep(meta, make_optimizer(meta), lambda: source.sample(next(sizes)))
    for _ in range(12):
        step()
    assert len(on_tape) == 2
    step.reset()
    sizes = iter([3] * 4)
    step._sample = lambda: source.sample(next(sizes))
    for _ in range(4):
        step()
    assert len(on_tape) == 3


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("taped", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(request, fused, taped):
    if taped and not fused:
        pytest.skip("a graph needs a fused optimizer")
    if taped:
        request.getfixturevalue("on_tape")
    meta = make_meta()
    optimizer = make_optimizer(meta, fused=fused)
    batches = [Sinusoid(shots=4, queries=4, seed=s).sample(3) for s in range(6)]
    sick = batches[5].support_x.clone()
    sick[0, 0] = float("nan")
    rest = (batches[5].support_y, batches[5].query_x, batches[5].query_y)
    batches[5] = fm.TaskBatch(sick, *rest)
    step = GraphedStep(meta, optimizer, iter(batches).__next__)
    for _ in range(5):
        step()
    tensors = [*meta.parameters(), *state_of(optimizer)]
    before = [t.detach().clone() for t in tensors]
    outcome = step()
    assert isinstance(outcome, StepOutcome) and not torch.isfinite(outcome.loss)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


def test_what_cannot_be_captured_runs_as_it_is_and_says_why(on_tape):
    losses, _ = plain_steps(6)
    source = Sinusoid(shots=4, queries=4, seed=1)
    meta = make_meta()

    def nosy(tasks):
        output = meta(tasks)
        output.loss.sum().item()
        return output

    nosy_step = GraphedStep(nosy, make_optimizer(meta), lambda: source.sample(3))
    assert [nosy_step().loss.item() for _ in range(6)] == losses
    assert "cannot be captured: aten::_local_scalar_dense waits" in nosy_step.reason


def test_few_graphs_are_kept(on_tape, monkeypatch):
    monkeypatch.setattr(graphed, "GRAPHS", 2)
    meta, source = make_meta(), Sinusoid(shots=4, queries=4, seed=1)
    size = [1]
    step = GraphedStep(meta, make_optimizer(meta), lambda: source.sample(size[0]))
    for size[0] in range(1, 6):
        step()
    assert len(step._plans) == 2


def test_without_a_gpu_steps_run_as_they_are():
    losses, _ = plain_steps(4)
    step = graphed_step(make_meta())
    assert [step().loss.item() for _ in range(4)] == losses
    assert step.reason == "CUDA graphs need a GPU, and the parameters are on the cpu"
    assert "switched off" in graphed_step(make_meta(), enabled=False).reason


class OnGpu:
    device = torch.device("cuda:0")


def test_an_optimizer_that_a_graph_cannot_run_is_told_what_it_lacks():
    parameters = list(make_meta().parameters())
    adam = torch.optim.Adam
    assert "fused=True" in graphed._why_never(adam(parameters), [OnGpu])
    assert "capturable=True" in graphed._why_never(adam(parameters, fused=True), [OnGpu])
    assert graphed._why_never(torch.optim.SGD(parameters, lr=0.1, fused=True), [OnGpu]) is None


def make_run(**options):
    meta = make_meta()
    source = Sinusoid(shots=4, queries=4, seed=1)
    schedule = Schedule("cosine", 20)
    return Run(
        meta, source, make_optimizer(meta), meta_batch=3, schedule=schedule, **options
    )  # fmt: skip


def test_a_run_replays_one_graph_whatever_its_schedule(on_tape):
    runs = make_run(), make_run(cuda_graph=False)
    found, wanted = ([run.advance() for _ in range(12)] for run in runs)
    assert len(on_tape) == 1
    assert runs[0].why_no_graph is None and "switched off" in runs[1].why_no_graph
    # A rate on the device is in float32.
    assert found == pytest.approx(wanted, rel=1e-5)


def test_a_run_in_a_graph_resumes_bit_for_bit(on_tape, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(make_run(), steps=14, checkpoint=straight)
    train(make_run(), steps=6, checkpoint=resumed)
    again = make_run()
    again.resume(resumed)
    train(again, steps=14, checkpoint=resumed)
    assert straight.read_bytes() == resumed.read_bytes()


def test_a_run_in_a_graph_tells_when_it_diverges(on_tape):
    run = make_run()
    for _ in range(6):
        run.advance()
    with torch.no_grad():
        next(run.meta.parameters()).fill_(1e30)
    with pytest.raises(TrainingDiverged, match="step 7"):
        run.advance()
    assert run.step == 6


def test_sampling_of_images_is_in_the_graph(on_tape, monkeypatch):
    # A tape does not see the native kernels.
    monkeypatch.setattr(cpu, "native", None)
    monkeypatch.setattr(cpu, "unavailable", lambda: "off for this test")
    pictures = torch.arange(5 * 6 * 64).remainder(251).to(torch.uint8).view(5, 6, 1, 8, 8)
    classes = ImageClasses.of({str(c): images for c, images in enumerate(pictures)})

    def losses(enabled):
        torch.manual_seed(0)
        meta = fm.ProtoNet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)))
        learned = [p for p in meta.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=1e-2, fused=True)
        source = ImageEpisodes(classes, ways=3, shots=1, queries=2, seed=3).drawn_on_device()
        step = GraphedStep(
            meta, optimizer, lambda: source.sample(4), generators=source.generators,
            enabled=enabled,
        )  # fmt: skip
        return [step().loss.item() for _ in range(8)]

    found = losses(True)
    assert len(on_tape) == 1 and len(set(found)) == 8
    assert found == losses(False)
