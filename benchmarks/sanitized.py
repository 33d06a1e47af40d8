"""A small set of everything that runs kernels, for compute-sanitizer: each result is checked.

Sizes are odd, so that tiles end in the middle; the reference is float64 on the CPU.
"""

import argparse
from contextlib import nullcontext

import torch
from torch import Tensor, nn

import fastmeta as fm
from fastmeta.backends.device import find_device
from fastmeta.models import conv4, mlp

TOLERANCE = 1e-3


def regression() -> tuple[nn.Module, fm.TaskBatch]:
    x, y = torch.randn(3, 13, 5), torch.randn(3, 13, 3)
    return mlp([5, 17, 3], "tanh"), fm.TaskBatch(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:])


def wide_regression() -> tuple[nn.Module, fm.TaskBatch]:
    """Too much for one thread block: the blocks of a cluster share a task."""
    x, y = torch.randn(2, 9, 257), torch.randn(2, 9, 3)
    return mlp([257, 66, 61, 3], "tanh"), fm.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])


def images() -> tuple[nn.Module, fm.TaskBatch]:
    x, y = torch.randn(2, 21, 1, 20, 20), torch.arange(21).remainder(3).repeat(2, 1)
    return conv4(3, 1, 5, 20), fm.TaskBatch(x[:, :9], y[:, :9], x[:, 9:], y[:, 9:])


def gradients(learner: nn.Module, tasks: fm.TaskBatch) -> tuple[Tensor, list[Tensor]]:
    """The mean loss and its gradients."""
    loss = learner(tasks).loss.mean()
    learned = [p for p in learner.parameters() if p.requires_grad]
    return loss.detach(), list(torch.autograd.grad(loss, learned))


def check(
    name: str, learner: nn.Module, tasks: fm.TaskBatch, device: torch.device, backend: str = ""
) -> None:
    """One meta-step on the device, by a backend if one is named, against float64 on the CPU."""
    exact = gradients(learner.double(), tasks.to(dtype=torch.float64))
    with fm.use_backend(backend) if backend else nullcontext():
        loss, found = gradients(learner.float().to(device), tasks.to(device))
    wanted = torch.cat([g.flatten() for g in exact[1]])
    got = torch.cat([g.double().cpu().flatten() for g in found])
    error = float((got - wanted).norm() / wanted.norm())
    print(f"{name:<24} loss {float(loss):.5f}, meta-gradient off by {error:.1e}", flush=True)
    assert error < TOLERANCE, (name, error)
    assert abs(float(loss) - float(exact[0])) < TOLERANCE * abs(float(exact[0])), name


def main() -> None:
    """Run everything on one device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    device = find_device(parser.parse_args().device)
    torch.backends.cudnn.allow_tf32 = False
    # Our own kernels or an error: without them another engine would be checked.
    ours = "cuda" if device.type == "cuda" else ""
    for order in (1, 2):
        for steps in (1, 3):
            torch.manual_seed(0)
            model, tasks = regression()
            maml = fm.MAML(model, inner_lr=0.05, inner_steps=steps, loss="mse", order=order)
            check(f"mlp, order {order}, K={steps}", maml, tasks, device, ours)
    torch.manual_seed(0)
    model, tasks = regression()
    own = fm.MAML(model, inner_lr=0.05, inner_steps=2, loss=nn.HuberLoss(delta=0.7))
    check("mlp, a loss of its own", own, tasks, device, ours)
    clusters = ours and torch.cuda.get_device_capability(device) >= (9, 0)
    torch.manual_seed(0)
    model, tasks = wide_regression()
    maml = fm.MAML(model, inner_lr=0.05, inner_steps=2, loss="mse")
    check("wide mlp", maml, tasks, device, ours if clusters else "")
    for engine in ("auto", "layered", "vmap"):
        torch.manual_seed(0)
        model, tasks = images()
        check(f"conv4, {engine}", fm.MAML(model, inner_lr=0.05, engine=engine), tasks, device)
    torch.manual_seed(0)
    model, tasks = images()
    check("prototypes", fm.ProtoNet(nn.Sequential(*list(model.children())[:-1])), tasks, device)
    prototypes, queries = torch.randn(1, 1001, 33), torch.randn(1, 65, 33)
    values, indices = fm.functional.nearest_prototype(
        queries.to(device), prototypes.to(device), k=3, metric="sqeuclidean"
    )
    exact = torch.cdist(queries.double(), prototypes.double()).square().topk(3, largest=False)
    assert torch.equal(indices.cpu(), exact.indices), "nearest"
    assert float((values.double().cpu() - exact.values).abs().max()) < TOLERANCE
    print("nearest prototypes       ok")


if __name__ == "__main__":
    main()
