"""Tables: `fastmeta train table`, and evaluation of what it trained, beside baselines."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta import MAML, TaskBatch
from fastmeta.cli.config import meta_config, training_config
from fastmeta.cli.device import chosen_device
from fastmeta.cli.errors import usage_errors
from fastmeta.cli.network import mlp_config
from fastmeta.cli.options.training import WEIGHT_DECAYS
from fastmeta.cli.progress import Progress
from fastmeta.cli.setup import Job, as_maml, load_meta, make_run
from fastmeta.episodes import (
    Standardisation,
    Table,
    TableEpisodes,
    check_rows,
    choose_support_norm,
    read_table,
    split_tasks,
    tasks_with_rows,
)
from fastmeta.functional.losses import mse_loss
from fastmeta.training import (
    Checkpoint,
    Interval,
    TrainingDiverged,
    adaptation_seconds,
    cross_validated_error,
    error_by_step,
    interval,
)
from fastmeta.words import adaptation_time, after_steps, counted

# Options that say how a file is read.
COLUMNS = ("task", "target", "features", "drop", "keep", "delimiter", "encoding")
FOLDS = 4
# A training inside cross-validation stops here, however long the real one is.
FOLD_STEPS = 500
# Added to the seed, so that support rows are drawn otherwise than in training.
EVALUATION = 1_000_003


@dataclass(frozen=True)
class TableData:
    """A table with its split, and how episodes are drawn from it."""

    table: Table
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    scale: Standardisation
    shots: int
    support_norm: float

    def episodes(self, tasks: Sequence[str], seed: int) -> TableEpisodes:
        """Return episodes of some of the tasks."""
        return TableEpisodes(
            self.table,
            tasks,
            self.scale,
            shots=self.shots,
            support_norm=self.support_norm,
            seed=seed,
            device=chosen_device(),
        )


# ---- training -----------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, saved: Mapping[str, Any] | None) -> Job:
    """Return the job that the options describe.

    Args:
        options: of the command line.
        saved: config of the checkpoint to be resumed: what it chose is not chosen anew.
    """
    data = _data(options, saved)
    config = _config(options, data)
    training = config["training"]
    if training["weight_decay"] is None:
        training["weight_decay"] = _choose_decay(data, config, options.steps, saved)
    source = data.episodes(data.train, options.seed)
    return Job(source, config, notes={"file": str(Path(options.file).resolve())})


def _data(options: argparse.Namespace, saved: Mapping[str, Any] | None) -> TableData:
    """Read the table, split its tasks, choose the norm of support rows, and print all that."""
    table = read_table(options.file, **_columns(vars(options)))
    tasks = tasks_with_rows(table, options.shots + 1) if options.skip_small_tasks else table.tasks
    check_rows(table, tasks, options.shots)
    train, held_out = split_tasks(tasks, held_out=options.held_out, seed=options.split_seed)
    scale = Standardisation.of(table, train)
    _describe(table, train, held_out, scale, options)

    norm = options.support_norm or (saved and saved["source"]["support_norm"])
    norm = norm or choose_support_norm(table, train, scale, shots=options.shots, seed=options.seed)
    how = "" if options.support_norm else " (best on the tasks to learn from)"
    print(f"support   {counted(options.shots, 'row')} a task, centred in norm {norm:g}{how}")
    return TableData(table, train, held_out, scale, options.shots, norm)


def _columns(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in COLUMNS}


def _config(options: argparse.Namespace, data: TableData) -> dict[str, Any]:
    training = training_config(options)
    training["meta_batch"] = options.meta_batch or len(data.train)
    return {
        "source": {
            "kind": "table",
            **_columns(vars(options)),
            "shots": data.shots,
            "support_norm": data.support_norm,
            "train": data.train,
            "held_out": data.held_out,
            "fingerprint": data.table.fingerprint(),
        },
        "model": mlp_config(options, inputs=len(data.scale.feature_names)),
        "meta": meta_config(options),
        "training": training,
    }


def _choose_decay(
    data: TableData, config: Mapping[str, Any], steps: int, saved: Mapping[str, Any] | None
) -> float:
    decay = saved["training"]["weight_decay"] if saved else _best_decay(data, config, steps)
    print(f"decay     {decay:g} (best in cross-validation over these tasks)")
    return decay


def _best_decay(
    data: TableData, config: Mapping[str, Any], steps: int, title: str = "cross-validation"
) -> float:
    """Return the weight decay with the least error on meta-train tasks left out of training."""
    if len(data.train) < 2:
        raise ValueError("cross-validation needs two tasks to learn from: give --weight-decay")
    steps = min(steps, FOLD_STEPS)
    trainings = len(WEIGHT_DECAYS) * min(FOLDS, len(data.train))
    with Progress(title, trainings * steps) as progress:
        errors = {
            decay: _cross_validate(data, config, decay, steps, progress) for decay in WEIGHT_DECAYS
        }
    best = min(errors, key=errors.__getitem__)
    if not math.isfinite(errors[best]):
        raise ValueError("training diverges with every weight decay: try a smaller --inner-lr")
    return best


def _cross_validate(
    data: TableData, config: Mapping[str, Any], decay: float, steps: int, progress: Progress
) -> float:
    seed = config["meta"]["seed"]

    def fit(tasks: Sequence[str]) -> MAML:
        training = {
            **config["training"],
            "weight_decay": decay,
            "meta_batch": min(config["training"]["meta_batch"], len(tasks)),
        }
        run = make_run(Job(data.episodes(tasks, seed), {**config, "training": training}))
        for _ in range(steps):
            progress.advance(run.advance())
        return as_maml(run.meta)

    try:
        return cross_validated_error(
            data.train, fit, lambda tasks: data.episodes(tasks, seed + EVALUATION), folds=FOLDS
        )
    except TrainingDiverged:
        return math.inf


def _describe(
    table: Table,
    train: Sequence[str],
    held_out: Sequence[str],
    scale: Standardisation,
    options: argparse.Namespace,
) -> None:
    left_out = table.left_out | {
        name: "is constant over the tasks to learn from" for name in scale.constant
    }
    skipped = len(table.tasks) - len(train) - len(held_out)
    print(f"table     {table.path.name}: {len(table.lines)} rows, {len(table.tasks)} tasks")
    if skipped:
        print(f"skipped   {counted(skipped, 'task')} with fewer than {options.shots + 1} rows")
    print(f"inputs    {len(scale.feature_names)}: {', '.join(scale.feature_names)}")
    for name, reason in left_out.items():
        print(f"left out  {name}: {reason}")
    print(f"tasks     {len(train)} to learn from, {len(held_out)} held out: {', '.join(held_out)}")


# ---- evaluation ---------------------------------------------------------------------------------


def evaluate(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Print the error on held-out tasks by inner step, beside baselines; return the numbers."""
    config = checkpoint.config
    with usage_errors():
        data = _data_of(checkpoint, options.data)
        meta = as_maml(load_meta(checkpoint, options.engine))
        steps = options.inner_steps or meta.inner_steps
        source = data.episodes(data.held_out, options.seed + EVALUATION)
        error_by_step(meta, source.sample(), steps)  # tells at once what cannot run
    joint = _joint_network(data, config, checkpoint.step)
    errors = _errors(meta, joint, data, source, steps, options.draws)
    batch = source.sample()
    seconds = adaptation_seconds(meta, batch)
    rows = _summary(errors, data, reference=_mean_of_rows(data.shots))

    print(
        f"{counted(len(data.held_out), 'task')} held out, {counted(data.shots, 'support row')}, "
        f"{counted(options.draws, 'draw')} of them each\n"
        f"RMSE of {config['source']['target']} over the other rows of each task\n"
    )
    _print(rows, data.shots)
    print(f"\nadaptation: {adaptation_time(seconds, len(batch))}")
    return {
        "rows": rows,
        "held_out": data.held_out,
        "draws": options.draws,
        "adaptation_seconds_per_task": seconds,
    }


def _data_of(checkpoint: Checkpoint, moved_to: str | None) -> TableData:
    told = checkpoint.config["source"]
    table = read_table(moved_to or checkpoint.notes["file"], **_columns(told))
    if table.fingerprint() != told["fingerprint"]:
        raise ValueError(f"{table.path} does not hold the rows that this checkpoint was trained on")
    train = tuple(told["train"])
    return TableData(
        table,
        train,
        tuple(told["held_out"]),
        Standardisation.of(table, train),
        told["shots"],
        told["support_norm"],
    )


def _joint_network(data: TableData, config: Mapping[str, Any], steps: int) -> MAML:
    """One network for all meta-train tasks: the same one, trained alike, but never adapted."""
    meta = {
        **config["meta"],
        "algorithm": "maml",
        "inner_steps": 0,
        "learn_inner_lr": "none",
        "per_step_lr": False,
        "engine": "auto",
    }
    training = dict(config["training"])
    config = {**config, "meta": meta, "training": training}
    training["weight_decay"] = _best_decay(data, config, steps, "network without adaptation")
    run = make_run(Job(data.episodes(data.train, meta["seed"]), config))
    for _ in range(steps):
        run.advance()
    return as_maml(run.meta)


def _errors(
    meta: MAML, joint: MAML, data: TableData, source: TableEpisodes, steps: int, draws: int
) -> dict[str, Tensor]:
    """Mean squared error [T] of each predictor, averaged over draws of the support rows."""
    train_mean = _mean_of_tasks(data)
    total: dict[str, Tensor] = {}
    for _ in range(draws):
        batch = source.sample()
        rows = batch.support_y.mean(1, keepdim=True)
        by_step = enumerate(error_by_step(meta, batch, steps))
        found = {after_steps(k): error for k, error in by_step} | {
            "mean of the training tasks": _constant_error(torch.full_like(rows, train_mean), batch),
            _mean_of_rows(data.shots): _constant_error(rows, batch),
            "one network, not adapted": error_by_step(joint, batch, 0)[0],
        }
        if batch.support_weight is not None:
            centre = (batch.support_weight[..., None] * batch.support_y).sum(1, keepdim=True)
            name = f"norm-{data.support_norm:g} centre of the {data.shots} rows"
            found[name] = _constant_error(centre, batch)
        total = {name: total.get(name, 0) + error for name, error in found.items()}
    return {name: error / draws for name, error in total.items()}


def _constant_error(value: Tensor, batch: TaskBatch) -> Tensor:
    return mse_loss(value.expand_as(batch.query_y), batch.query_y, batch.query_weight)


def _mean_of_tasks(data: TableData) -> float:
    """Mean over the meta-train tasks of their mean target, standardised."""
    target = data.scale.target(data.table)
    means = [target[data.table.rows_of([task])].mean() for task in data.train]
    return sum(means) / len(means)


def _summary(errors: Mapping[str, Tensor], data: TableData, reference: str) -> list[dict[str, Any]]:
    """RMSE in the target's own unit, and the change of the MSE against `reference` in percent."""
    unit = data.scale.target_scale**2
    rows = []
    for name, error in errors.items():
        change = interval(error - errors[reference])
        percent = 100 / errors[reference].mean().item()
        rows.append(
            {
                "name": name,
                "rmse": vars(interval(unit * error).sqrt()),
                "mse_change_percent": vars(
                    Interval(*(percent * v for v in (change.mean, change.low, change.high)))
                ),
            }
        )
    return rows


def _print(rows: Sequence[Mapping[str, Any]], shots: int) -> None:
    print(f"{'':<28}{'RMSE':>8}  {'95 % interval':<17}MSE against that of the mean of the rows")
    for row in rows:
        rmse, change = row["rmse"], row["mse_change_percent"]
        bounds = f"{rmse['low']:.3f} .. {rmse['high']:.3f}"
        line = f"{row['name']:<28}{rmse['mean']:>8.3f}  {bounds:<17}"
        if row["name"] != _mean_of_rows(shots):
            line += f"{change['mean']:+.1f} % ({change['low']:+.1f} .. {change['high']:+.1f})"
        print(line.rstrip())


def _mean_of_rows(shots: int) -> str:
    return f"mean of the {shots} support rows"
