"""`fastmeta demo`: learn sine waves, plot what adaptation does, and time it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta import MAML, TaskBatch
from fastmeta.cli.device import choose_device, chosen_device
from fastmeta.cli.errors import result_written, usage_errors
from fastmeta.cli.files import check_writable
from fastmeta.cli.progress import Progress
from fastmeta.cli.setup import set_threads
from fastmeta.episodes import Sinusoid
from fastmeta.models import mlp
from fastmeta.training import Run, check_picture, error_by_step, interval
from fastmeta.words import after_steps, counted

TASKS, SHOTS, INNER_STEPS, INNER_LR = 25, 10, 5, 0.01
SHOWN_STEPS = (0, 1, 5)
LINES = {0: (":", "#9aa0a6"), 1: ("--", "#f2a03d"), 5: ("-", "#d1335b")}
# The demo shall end within a minute on any machine.
LEARNING_SECONDS = 25.0
TIMED_SECONDS = 3.0


def run(options: argparse.Namespace) -> int:
    """Train, report the error before and after adaptation, plot, and compare speeds."""
    set_threads(options.threads)
    torch.manual_seed(options.seed)
    plot = Path(options.plot)
    with usage_errors():
        meta = MAML(
            mlp([1, 40, 40, 1]),
            inner_lr=INNER_LR,
            inner_steps=INNER_STEPS,
            loss="mse",
            engine=options.engine,
        ).to(choose_device(options.device))
        check_picture(plot)
        check_writable(plot)
        engine = meta.choice().name
    print(f"learning to learn sine waves from {SHOTS} points: network 1-40-40-1, MAML with exact")
    print(f"second order, {INNER_STEPS} inner steps, {TASKS} tasks a meta-step, engine {engine}")
    start = time.perf_counter()
    steps = _learn(meta, options.steps, options.seed)
    print(f"\n{counted(steps, 'meta-step')} in {time.perf_counter() - start:.1f} s\n")

    unseen = _waves(options.seed + 1_000_003, queries=100).sample(1000)
    _print_errors(meta, unseen)
    with result_written(str(plot)):
        _plot(meta, options.seed, plot)
    print(f"\nplot: {plot}\n")
    _print_speed(meta, options.seed)
    return 0


def _waves(seed: int, queries: int = SHOTS) -> Sinusoid:
    return Sinusoid(shots=SHOTS, queries=queries, seed=seed, device=chosen_device())


def _learn(meta: MAML, steps: int, seed: int) -> int:
    """Train for `steps`, or as many as fit into `LEARNING_SECONDS`; return how many."""
    optimizer = torch.optim.Adam(meta.parameters(), lr=1e-3, fused=True)
    source = _waves(seed)
    run = Run(meta, source, optimizer, meta_batch=TASKS)
    end = time.perf_counter() + LEARNING_SECONDS
    with Progress("learning", steps) as progress:
        while run.step < steps and time.perf_counter() < end:
            progress.advance(run.advance())
    return run.step


def _print_errors(meta: MAML, tasks: TaskBatch) -> None:
    errors = error_by_step(meta, tasks, max(SHOWN_STEPS))
    print(f"mean squared error on {len(tasks)} new waves (95 % interval)")
    for step in SHOWN_STEPS:
        error = interval(errors[step])
        print(f"  {after_steps(step):<18}{error.mean:7.3f}  ({error.low:.3f} .. {error.high:.3f})")


# ---- the plot -----------------------------------------------------------------------------------


def _plot(meta: MAML, seed: int, path: Path) -> None:
    """Draw three new waves, their support points and the predictions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = _waves(seed + 7, queries=400).sample(3)
    order = tasks.query_x.argsort(dim=1)
    x, y = tasks.query_x.gather(1, order), tasks.query_y.gather(1, order)
    support = (tasks.support_x, tasks.support_y)
    with torch.no_grad():
        curves = {k: meta.adapt(*support, inner_steps=k)(x).cpu() for k in SHOWN_STEPS}
    waves = zip(x.cpu(), y.cpu(), support[0].cpu(), support[1].cpu(), strict=True)

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharey=True)
    for task, (panel, wave) in enumerate(zip(panels, waves, strict=True)):
        _draw_wave(panel, *wave, {k: curve[task] for k, curve in curves.items()})
    panels[0].set_ylabel("y")
    figure.suptitle("Three new sine waves: what a few gradient steps make of one network")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)


def _draw_wave(
    panel: Any, x: Tensor, y: Tensor, support_x: Tensor, support_y: Tensor,
    curves: Mapping[int, Tensor],
) -> None:  # fmt: skip
    """A wave, its support points, and the predictions for `x` after each number of steps."""
    panel.plot(x, y, color="#1f5fa8", linewidth=5, alpha=0.35, label="sine wave")
    for step, curve in curves.items():
        line, colour = LINES[step]
        label = f"prediction {after_steps(step)}"
        panel.plot(x, curve, line, color=colour, linewidth=2, label=label)
    points = f"{SHOTS} support points"
    panel.plot(support_x, support_y, "o", color="#12355b", markersize=6, zorder=5, label=points)
    panel.set_xlabel("x")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


# ---- the speed ----------------------------------------------------------------------------------


def _print_speed(meta: MAML, seed: int) -> None:
    """Time whole meta-steps of fastmeta and of plain PyTorch, and compare their numbers."""
    tasks = _waves(seed).sample(TASKS)
    parameters = list(meta.model.parameters())

    def ours() -> Tensor:
        return meta(tasks).loss.mean()

    def plain() -> Tensor:
        return plain_maml(parameters, tasks, INNER_STEPS, INNER_LR)

    losses, gradients = zip(*(_outcome(step, parameters) for step in (ours, plain)), strict=True)
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    fast, slow = (_steps_per_second(step, parameters) for step in (ours, plain))
    where = chosen_device()
    place = counted(torch.get_num_threads(), "thread") if where.type == "cpu" else str(where)
    print(f"meta-steps per second, measured now ({place}):")
    print(f"  fastmeta            {fast:9.1f}")
    print(f"  plain PyTorch loop  {slow:9.1f}")
    print(f"  ratio               {fast / slow:9.1f}")
    print(f"same numbers: loss {losses[0]:.6f} and {losses[1]:.6f}, meta-gradients differ by")
    print(f"{difference:.1e} of their length (float32 rounds to 6e-08)")
    if not (torch.allclose(losses[0], losses[1], rtol=1e-4) and difference < 1e-3):
        raise RuntimeError("fastmeta and plain PyTorch disagree: please report this as a bug")


def plain_maml(
    parameters: Sequence[Tensor], tasks: TaskBatch, inner_steps: int, inner_lr: float
) -> Tensor:
    """Return the MAML loss as one writes it in PyTorch: a loop over tasks, graph kept."""
    losses = []
    for x, y, query_x, query_y in zip(
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True
    ):
        fast = list(parameters)
        for _ in range(inner_steps):
            loss = F.mse_loss(_relu_network(fast, x), y)
            gradients = torch.autograd.grad(loss, fast, create_graph=True)
            fast = [p - inner_lr * g for p, g in zip(fast, gradients, strict=True)]
        losses.append(F.mse_loss(_relu_network(fast, query_x), query_y))
    return torch.stack(losses).mean()


def _relu_network(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
    for weight, bias in hidden:
        x = torch.relu(F.linear(x, weight, bias))
    return F.linear(x, *last)


def _outcome(step: Callable[[], Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    loss = step()
    gradients = torch.autograd.grad(loss, parameters)
    return loss.detach(), torch.cat([g.flatten() for g in gradients])


def _steps_per_second(step: Callable[[], Tensor], parameters: Sequence[Tensor]) -> float:
    """Forward and backward, after a warm-up, for about three seconds."""
    _outcome(step, parameters)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < TIMED_SECONDS:
        loss, _ = _outcome(step, parameters)
        loss.item()  # a GPU may be behind
        count += 1
    return count / elapsed
