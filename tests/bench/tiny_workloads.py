"""Workloads that take a millisecond, and a rival that is wrong on purpose."""

from fastmeta import MAML, TaskBatch
from fastmeta.bench.rivals import Outcome, Rival
from fastmeta.bench.rivals.rival import make_leaves
from fastmeta.bench.workloads import LOSSES, Workload

TINY = {
    workload.name: workload
    for workload in (
        Workload("relu", "sinusoid", (1, 8, 8, 1), "relu", "mse", 3, 4, 5, 2),
        Workload("tanh", "regression", (3, 6, 2), "tanh", "mse", 5, 4, 6, 3),
        Workload("gated", "regression", (3, 6, 4, 2), "tanh", "mse", 5, 4, 6, 2, hidden="gated"),
        Workload("norm", "regression", (3, 6, 2), "tanh", "mse", 5, 4, 6, 2, hidden="layer norm"),
        Workload("unit", "regression", (3, 6, 2), "tanh", "mse", 5, 4, 6, 2, hidden="unit rows"),
        Workload("slopes", "regression", (3, 6, 4, 1), "tanh", "mse", 5, 4, 6, 2, slopes=True),
        Workload("no-steps", "regression", (3, 6, 2), "tanh", "mse", 2, 4, 6, 0),
        Workload(
            "head", "head", (7, 5), "relu", "cross_entropy", 4, 10, 15, 2, learns_inputs=True
        ),
        Workload(
            "deep-head", "head", (7, 6, 5), "relu", "cross_entropy", 4, 10, 15, 2,
            learns_inputs=True,
        ),
        Workload(
            "conv", "omniglot", (4, 5), "relu", "cross_entropy", 3, 5, 10, 2,
            image=(2, 16, 16), filters=4,
        ),
    )
}  # fmt: skip


def build_first_order(problem):
    """First-order MAML: the loss is exact, the meta-gradient is not."""
    workload, module = problem.workload, problem.module()
    leaves = make_leaves(problem, dict(module.named_parameters()))
    meta = MAML(
        module,
        inner_lr=workload.inner_lr,
        inner_steps=workload.steps,
        loss=LOSSES[workload.loss],
        order=1,
    )

    def step():
        leaves.clear()
        tasks = TaskBatch(leaves.support_x, problem.support_y, leaves.query_x, problem.query_y)
        loss = meta(tasks).loss.mean()
        loss.backward()
        return Outcome(loss.detach(), leaves.gradients())

    return step


FIRST_ORDER = Rival("first-order", "first-order MAML", build_first_order)
