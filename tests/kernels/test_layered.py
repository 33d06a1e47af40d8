"""The layered engine on the Triton kernels: networks of images against the reference."""

from collections import Counter

import pytest
import torch
from oracle import DOUBLE, relative_error
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop import kept
from fastmeta.inner_loop.reading.rewrite import rewrite
from fastmeta.kernels.aot import launches

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Branched(nn.Module):
    """Its norm's result is used twice, so that no block begins there."""

    def __init__(self):
        super().__init__()
        self.norm, self.act, self.flat = nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten()
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        y = self.norm(x)
        return self.head(self.flat(self.act(y) + y))


NETWORKS = {
    "pooled": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(2, 2),
    ),
    "strided": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3, affine=False), nn.ReLU(),
        nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(12, 2),
    ),
    "branched": Branched,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_maml_is_exact(name):
    model = NETWORKS[name]().to(DEVICE, DOUBLE)
    x = torch.randn(2, 2, 3, 1, 4, 4, dtype=DOUBLE, device=DEVICE)
    y = torch.tensor([[0, 1, 1], [1, 0, 1]], device=DEVICE)
    tasks = fm.TaskBatch(x[0], y, x[1], y)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    results = []
    for backend in ("triton", "reference"):
        with fm.use_backend(backend):
            loss = meta(tasks).loss
        results.append([loss, *torch.autograd.grad(loss.sum(), list(model.parameters()))])
    assert relative_error(*results) < 1e-11


def test_norm_activation_and_pool_are_one_operation():
    model = NETWORKS["pooled"]().to(DEVICE)
    program = rewrite(model)
    parameters = {name: p.detach().expand(2, *p.shape) for name, p in model.named_parameters()}
    x = torch.randn(2, 3, 1, 4, 4, device=DEVICE)

    def run():
        with fm.use_backend("triton"), torch.no_grad():
            program.run(parameters, x)

    names = [kernel.__name__ for kernel, _, _ in launches(run)]
    block = ["norm_statistics_kernel", "norm_forward_kernel"]
    assert names == ["_convolve", *block, "_convolve", *block, "_product"]


def test_each_loss_of_a_meta_step_is_one_launch(monkeypatch):
    monkeypatch.setattr(kept, "_MOST_BYTES", 0)  # as on a GPU, where no graphs are kept
    model, steps = NETWORKS["pooled"]().to(DEVICE), 2
    x, y = torch.randn(2, 3, 1, 4, 4, device=DEVICE), torch.zeros(2, 3, dtype=int, device=DEVICE)
    tasks = fm.TaskBatch(x, y, x, y)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=steps, engine="layered")

    def run():
        with fm.use_backend("triton"):
            meta(tasks).loss.mean().backward()

    run()  # the engine is chosen, by what its kernels make
    counts = Counter(kernel.__name__ for kernel, _, _ in launches(run))
    # In each step once forward and once on the way back, there with a second derivative; the query.
    assert counts["task_loss_kernel"] == 2 * steps + 1
    assert counts["task_loss_gradient_kernel"] == 3 * steps + 1
