"""Counts what a meta-step of Conv4-64 starts on a GPU, without one.

The layered engine runs with the backend "triton" on CPU tensors; its Triton kernels are counted
and not run, and every operation of PyTorch that is no view and no allocation counts as a launch.
So it is a count by design, not a measurement.

    python docs/notes/conv4_launches.py [STEPS ...]
"""

import os
import sys
from collections import Counter

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastmeta as fm
from fastmeta.inner_loop import recursion, updates
from fastmeta.kernels.aot import launches
from fastmeta.models import conv4

NO_LAUNCH = ("empty", "detach", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias", "resolve")


class Operations(TorchDispatchMode):
    """Counts PyTorch's operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if not function.is_view and not any(part in name for part in NO_LAUNCH):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def as_on_a_gpu():
    """Let the inner update take the way that it takes on a GPU."""
    recursion.room_for_path = lambda theta, steps: [{} for _ in range(steps)]
    recursion.stepped = lambda theta, gradient, rates, step, room: updates._all_together(
        theta, gradient, rates, step
    )


def meta_step(steps):
    """One call and its backward; returns a function that does it."""
    model = conv4(5)
    meta = fm.MAML(model, inner_lr=0.4, inner_steps=steps, engine="layered")
    x, y = torch.randn(2, 5, 1, 28, 28), torch.arange(5).expand(2, 5)
    tasks = fm.TaskBatch(x, y, torch.randn(2, 25, 1, 28, 28), y.repeat(1, 5))

    def run():
        meta.zero_grad()
        with fm.use_backend("triton"):
            meta(tasks).loss.mean().backward()

    return run


def main():
    as_on_a_gpu()
    for steps in map(int, sys.argv[1:] or ("1", "5")):
        run = meta_step(steps)
        launches(run)  # the engine is chosen
        operations = Operations()

        def counted(run=run, operations=operations):
            with operations:
                run()

        kernels = Counter(kernel.__name__ for kernel, _, _ in launches(counted))
        print(f"K = {steps}: {kernels.total()} Triton, {operations.counts.total()} PyTorch")
        print(" ", dict(kernels.most_common()))
        print(" ", dict(operations.counts.most_common()))


if __name__ == "__main__":
    main()
