"""Tasks a second of `ImageEpisodes` beside samplers that build one task after another in Python.

    python benchmarks/bench_sampler.py omniglot_28.npz [--seconds 3] [--json results.json]

Everyone draws 5-way tasks with 1 support and 15 query images a class from the same bytes in memory,
the 1,028 training characters of Vinyals' split, upright and with rotations, and gives images in
float32 scaled to [0, 1]. The rivals keep the structure of the libraries that they are named after,
without the decoding of files; turning an image is `torch.rot90`, which is faster than the way
through Pillow that these libraries take. Each sampler passes a gate before it is timed.

A meta-step of Conv4 with 32 filters is timed in the same rounds, so that sampling can be told as a
share of it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

import fastmeta as fm
from fastmeta.bench.machine import describe_machine
from fastmeta.bench.timing import Timing, measure
from fastmeta.episodes import ImageClasses, ImageEpisodes, omniglot

WAYS, SHOTS, QUERIES = 5, 1, 15
IMAGES = SHOTS + QUERIES
BATCHES = (1, 4, 32)

Tasks = tuple[Tensor, Tensor]  # images [T, N * (K + Q), C, H, W] and labels [T, N * (K + Q)]
Sampler = Callable[[int], Any]


class Pictures(Dataset):
    """Image and class by row, as a data set in memory gives them."""

    def __init__(self, classes: ImageClasses) -> None:
        self.images = classes.images
        self.labels = torch.arange(len(classes)).repeat_interleave(classes.sizes).tolist()

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row].float() / 255, self.labels[row]

    def __len__(self) -> int:
        return len(self.images)


class Learn2LearnStyle:
    """A task is a list of rows, each with a chain of transforms, then collated (`Taskset`).

    Support and query sets are taken from it by masks, as in the library's examples.
    """

    def __init__(self, classes: ImageClasses, rotated: bool) -> None:
        self.pictures = Pictures(classes)
        self.rotated = rotated
        self.label_of_row = dict(enumerate(self.pictures.labels))
        self.rows_of_label: dict[int, list[int]] = {}
        for row, label in self.label_of_row.items():
            self.rows_of_label.setdefault(label, []).append(row)
        self.labels = list(self.rows_of_label)
        self.is_support = (torch.arange(IMAGES) < SHOTS).repeat(WAYS)

    def __call__(self, n_tasks: int) -> list[tuple[Tensor, ...]]:
        return [self.task() for _ in range(n_tasks)]

    def task(self) -> tuple[Tensor, ...]:
        chosen = [
            (row, [])
            for label in random.sample(self.labels, WAYS)
            for row in random.sample(self.rows_of_label[label], IMAGES)
        ]
        self.load(chosen)
        if self.rotated:
            self.turn(chosen)
        self.number(chosen)
        chosen.sort(key=lambda described: self.label_of_row[described[0]])
        x, y = default_collate([self.transformed(*described) for described in chosen])
        support, query = self.is_support, ~self.is_support
        return x[support], y[support], x[query], y[query]

    def load(self, chosen: list[tuple[int, list[Callable]]]) -> None:
        for _, transforms in chosen:
            transforms.append(lambda row: self.pictures[row])

    def turn(self, chosen: list[tuple[int, list[Callable]]]) -> None:
        turns: dict[int, int] = {}
        for row, transforms in chosen:
            k = turns.setdefault(self.label_of_row[row], random.randrange(4))
            transforms.append(lambda pair, k=k: (torch.rot90(pair[0], k, (-2, -1)), pair[1]))

    def number(self, chosen: list[tuple[int, list[Callable]]]) -> None:
        labels = list({self.label_of_row[row] for row, _ in chosen})
        random.shuffle(labels)
        for _, transforms in chosen:
            transforms.append(lambda pair: [pair[0], labels.index(pair[1])])

    @staticmethod
    def transformed(value: Any, transforms: list[Callable]) -> Any:
        for transform in transforms:
            value = transform(value)
        return value


class ClassDataset(Dataset):
    """The images of one class, perhaps turned, with its number in the task."""

    def __init__(self, images: Tensor, turns: int, number: int) -> None:
        self.images, self.turns, self.number = images, turns, number

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].float() / 255
        return torch.rot90(image, self.turns, (-2, -1)) if self.turns else image, self.number

    def __len__(self) -> int:
        return len(self.images)


class CombinationDataset(Dataset):
    """A task by its classes, split into support and query sets by class (`ClassSplitter`)."""

    def __init__(self, classes: ImageClasses, rotated: bool) -> None:
        self.images = [classes[name] for name in classes.names]
        self.n_classes = len(classes) * (4 if rotated else 1)

    def __getitem__(self, chosen: tuple[int, ...]) -> dict[str, Dataset]:
        support, query = [], []
        for number, label in enumerate(chosen):
            turns, upright = divmod(label, len(self.images))
            members = ClassDataset(self.images[upright], turns, number)
            order = torch.randperm(len(members)).tolist()
            support.append(Subset(members, order[:SHOTS]))
            query.append(Subset(members, order[SHOTS:IMAGES]))
        return {"train": ConcatDataset(support), "test": ConcatDataset(query)}


class TorchmetaStyle:
    """A data set for each task, each drained into tensors, all stacked (`BatchMetaDataLoader`)."""

    def __init__(self, classes: ImageClasses, rotated: bool) -> None:
        self.combinations = CombinationDataset(classes, rotated)

    def __call__(self, n_tasks: int) -> dict[str, list[Tensor]]:
        classes = range(self.combinations.n_classes)
        batches = [[tuple(random.sample(classes, WAYS)) for _ in range(n_tasks)]]
        return next(iter(DataLoader(self.combinations, batch_sampler=batches, collate_fn=drain)))


def drain(tasks: list[dict[str, Dataset]]) -> dict[str, list[Tensor]]:
    """Collate the samples of each task, then the tasks."""
    return default_collate(
        [
            {side: default_collate([data[i] for i in range(len(data))]) for side, data in t.items()}
            for t in tasks
        ]
    )


# ---- the gate -----------------------------------------------------------------------------------


def as_tasks(drawn: Any) -> Tasks:
    """What any of the samplers gives, as images and labels of T tasks."""
    if isinstance(drawn, fm.TaskBatch):
        sides = drawn.support_x, drawn.support_y, drawn.query_x, drawn.query_y
    elif isinstance(drawn, dict):
        sides = *drawn["train"], *drawn["test"]
    else:
        sides = tuple(map(torch.stack, zip(*drawn, strict=True)))
    assert sides[0].shape[1] == WAYS * SHOTS
    return torch.cat(sides[::2], 1), torch.cat(sides[1::2], 1)


def check(drawn: Any, classes: ImageClasses, rotated: bool) -> None:
    """Fail unless these are tasks over `classes`: each way a class and a turn, no image twice."""
    turns = range(4 if rotated else 1)
    known = {}
    for name in classes.names:
        for k in turns:
            for image in torch.rot90(classes[name], k, (-2, -1)):
                known.setdefault(image.contiguous().numpy().tobytes(), set()).add((name, k))
    images, labels = as_tasks(drawn)
    assert images.dtype == torch.float32 and images.shape[1] == WAYS * IMAGES
    for x, y in zip(images.mul(255).round().byte(), labels, strict=True):
        by_way = []
        for way in range(WAYS):
            found = [known[image.contiguous().numpy().tobytes()] for image in x[y == way]]
            assert len(found) == IMAGES
            by_way.append(set.intersection(*found))
        # An image may look the same turned: any choice of different classes will do.
        assert all(by_way) and len(set().union(*by_way)) >= WAYS
        assert len(x.flatten(1).unique(dim=0)) == WAYS * IMAGES


# ---- the race -----------------------------------------------------------------------------------


def samplers(classes: ImageClasses, rotated: bool) -> dict[str, Sampler]:
    """Everyone who draws tasks."""
    ours = ImageEpisodes(
        classes,
        ways=WAYS,
        shots=SHOTS,
        queries=QUERIES,
        rotations="classes" if rotated else None,
    )
    return {
        "fastmeta": ours.sample,
        "learn2learn-style": Learn2LearnStyle(classes, rotated),
        "torchmeta-style": TorchmetaStyle(classes, rotated),
    }


def meta_step(tasks: fm.TaskBatch) -> Callable[[], None]:
    """Forward and meta-gradient of MAML with one inner step, Conv4 with 32 filters."""
    torch.manual_seed(0)
    meta = fm.MAML(fm.models.conv4(WAYS, filters=32), inner_lr=0.1, inner_steps=1)

    def step() -> None:
        meta.zero_grad()
        meta(tasks).loss.mean().backward()

    return step


def race(classes: ImageClasses, seconds: float) -> list[dict[str, Any]]:
    """Time everyone at every batch size, after the gate."""
    rows = []
    for rotated in (False, True):
        everyone = samplers(classes, rotated)
        for sampler in everyone.values():
            check(sampler(3), classes, rotated)
        for n_tasks in BATCHES:
            tasks = everyone["fastmeta"](n_tasks)
            steps = {
                name: lambda sampler=sampler, n=n_tasks: sampler(n)
                for name, sampler in everyone.items()
            }
            times = measure({**steps, "meta-step": meta_step(tasks)}, seconds)
            rows += [row(name, times, n_tasks, rotated) for name in everyone]
    return rows


def row(name: str, times: dict[str, Timing], n_tasks: int, rotated: bool) -> dict[str, Any]:
    """The numbers of one sampler at one batch size."""
    timing = times[name]
    return {
        "sampler": name,
        "rotations": rotated,
        "tasks": n_tasks,
        "median_s": timing.median,
        "low_s": timing.low,
        "high_s": timing.high,
        "tasks_per_s": n_tasks / timing.median,
        "times_fastmeta": timing.median / times["fastmeta"].median,
        "share_of_meta_step": timing.median / times["meta-step"].median,
    }


def main() -> None:
    """Read the options, race, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("omniglot", help="omniglot_28.npz, or a folder as `omniglot` reads it")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each timing")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    rows = race(omniglot(options.omniglot).train, options.seconds)
    print(f"{threads} threads, {WAYS} ways, {SHOTS} shot, {QUERIES} queries, 28x28")
    print(f"{'sampler':<20}{'turned':<8}{'T':>4}{'ms':>9}{'tasks/s':>9}{'ratio':>7}{'of step':>9}")
    for r in rows:
        print(
            f"{r['sampler']:<20}{'yes' if r['rotations'] else 'no':<8}{r['tasks']:>4}"
            f"{1e3 * r['median_s']:>9.3f}{r['tasks_per_s']:>9.0f}{r['times_fastmeta']:>7.1f}"
            f"{r['share_of_meta_step']:>9.2%}"
        )
    if options.json:
        results = {"machine": describe_machine(threads), "rows": rows}
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
