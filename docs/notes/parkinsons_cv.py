"""Cross-validation over the training patients of the Parkinson's table, for parkinsons.md.

    python docs/notes/parkinsons_cv.py $FASTMETA_DATA/tabular/parkinsons_updrs.data

The ten held-out patients are never read.
"""

import sys

import torch

from fastmeta.cli.setup import Job, make_run
from fastmeta.episodes import (
    Standardisation,
    TableEpisodes,
    read_table,
    split_tasks,
)
from fastmeta.functional.losses import mse_loss
from fastmeta.training import interval

FOLDS, DRAWS, STEPS = 4, 50, 500
META = dict(
    activation="tanh",
    algorithm="maml",
    inner_lr=0.1,
    inner_steps=5,
    learn_inner_lr="tensor",
    per_step_lr=False,
    engine="auto",
    seed=0,
)
TRAINING = dict(lr=3e-3, weight_decay=30.0, clip=None)
DEFAULT = dict(hidden=[16], norm=3.0)
SETTINGS = {
    "default": {},
    "norm 2 (mean squared error)": dict(norm=2.0),
    "norm 1.5": dict(norm=1.5),
    "norm 4": dict(norm=4.0),
    "decay 10": dict(weight_decay=10.0),
    "decay 1": dict(weight_decay=1.0),
    "decay 0.01": dict(weight_decay=0.01),
    "norm 2, decay 0.01": dict(norm=2.0, weight_decay=0.01),
    "linear": dict(hidden=[], inner_lr=0.02),
    "hidden 32 32": dict(hidden=[32, 32]),
    "1 inner step": dict(inner_steps=1, inner_lr=0.3),
    "10 inner steps": dict(inner_steps=10),
    "rates a step": dict(per_step_lr=True),
    "meta-sgd": dict(algorithm="metasgd"),
    "anil": dict(algorithm="anil"),
    "first order": dict(algorithm="fomaml"),
    "without age and sex": dict(drop=["age", "sex"]),
    "with test_time": dict(keep=["test_time"]),
    "with test_time, decay 1": dict(keep=["test_time"], weight_decay=1.0),
}


def cross_validate(path: str, setting: dict) -> None:
    """Print the error of one setting on left-out training patients."""
    chosen = META | TRAINING | DEFAULT | {"drop": (), "keep": ()} | setting
    table = read_table(
        path, task="subject#", target="motor_UPDRS", drop=chosen["drop"], keep=chosen["keep"]
    )
    patients, _ = split_tasks(table.tasks)
    scale = Standardisation.of(table, patients)
    ours, rows = [], []
    for fold in range(FOLDS):
        left_out = patients[fold::FOLDS]
        fit = [patient for patient in patients if patient not in left_out]
        kind = dict(shots=5, support_norm=chosen["norm"])
        config = {
            "meta": {name: chosen[name] for name in META}
            | {"sizes": [len(scale.feature_names), *chosen["hidden"], 1]},
            "training": {name: chosen[name] for name in TRAINING} | {"meta_batch": len(fit)},
        }
        run = make_run(Job(TableEpisodes(table, fit, scale, **kind), config))
        for _ in range(STEPS):
            run.advance()
        source = TableEpisodes(table, left_out, scale, **kind, seed=1)
        for_fold = [judge(run.meta, source.sample()) for _ in range(DRAWS)]
        ours.append(torch.stack([a for a, _ in for_fold]).mean(0))
        rows.append(torch.stack([b for _, b in for_fold]).mean(0))
    ours, rows = torch.cat(ours) * scale.target_scale**2, torch.cat(rows) * scale.target_scale**2
    change = interval(ours - rows)
    percent = 100 / rows.mean().item()
    print(
        f"{ours.mean().sqrt():8.3f} {rows.mean().sqrt():8.3f} {percent * change.mean:+7.1f} % "
        f"({percent * change.low:+.1f} .. {percent * change.high:+.1f})",
        flush=True,
    )


@torch.no_grad()
def judge(meta, batch):
    """Mean squared error [T] of the meta-learner and of the mean of the support rows."""
    mean = batch.support_y.mean(1, keepdim=True).expand_as(batch.query_y)
    predictions = meta(batch).predictions
    return tuple(mse_loss(p, batch.query_y, batch.query_weight) for p in (predictions, mean))


if __name__ == "__main__":
    print(f"{'':<30} RMSE  mean of 5 rows  change of the MSE")
    for name, setting in SETTINGS.items():
        print(f"{name:<30}", end="")
        try:
            cross_validate(sys.argv[1], setting)
        except RuntimeError as error:
            print(f" {error}")
