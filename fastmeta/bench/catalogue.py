"""The workloads by name, and which of them a run takes unless told otherwise."""

from __future__ import annotations

from itertools import product

from fastmeta.bench.workloads import BESIDE_CONV4, BLOCKS, Workload


def sinusoid(tasks: int, steps: int) -> Workload:
    """The sinusoid regression of MAML (Finn et al. 2017, section 5.1)."""
    name = f"sinusoid-T{tasks}-K{steps}"
    return Workload(name, "sinusoid", (1, 40, 40, 1), "relu", "mse", tasks, 10, 10, steps)


def head(features: int) -> Workload:
    """A 5-way linear head on learned features: what ANIL adapts."""
    return Workload(
        name=f"head-{features}",
        family="head",
        sizes=(features, 5),
        activation="relu",
        loss="cross_entropy",
        tasks=32,
        support=25,
        query=75,
        steps=5,
        learns_inputs=True,
    )


def omniglot(filters: int, tasks: int, steps: int, support: int, query: int) -> Workload:
    """5-way tasks of images as large as Omniglot's."""
    name = f"conv{filters}-T{tasks}-K{steps}-S{support}-Q{query}"
    return _conv4(name, "omniglot", (1, 28, 28), filters, tasks, steps, support, query)


def mini_imagenet(tasks: int) -> Workload:
    """5-way 1-shot tasks of images as large as miniImageNet's, with the 32 filters used there."""
    name = f"mini-T{tasks}-K5-S5-Q75"
    return _conv4(name, "mini-imagenet", (3, 84, 84), 32, tasks, 5, 5, 75)


def unlike_conv4(blocks: str) -> Workload:
    """What differs from Conv4 with 32 filters, on 5-way 1-shot tasks as large as Omniglot's."""
    name = "conv-gates" if blocks == "excitation" else f"conv-{blocks}"
    return _conv4(name, "beside-conv4", (1, 28, 28), 32, 8, 5, 5, 25, blocks)


def residual() -> Workload:
    """ResNet-12 as wide as in TADAM (Oreshkin et al. 2018), on images as large as CIFAR-FS's."""
    return Workload(
        name="resnet12-T2-K2-S5-Q15",
        family="resnet12",
        sizes=(64 << BLOCKS - 1, 5),
        activation="relu",
        loss="cross_entropy",
        tasks=2,
        support=5,
        query=15,
        steps=2,
        image=(3, 32, 32),
        filters=64,
        blocks="residual",
    )


def segmentation() -> Workload:
    """A label of four for each pixel, by a U-Net of two resolutions."""
    return Workload(
        name="unet-T4-K3-S5-Q10",
        family="unet",
        sizes=(16, 4),
        activation="relu",
        loss="cross_entropy",
        tasks=4,
        support=5,
        query=10,
        steps=3,
        image=(3, 32, 32),
        filters=16,
        blocks="unet",
    )


def _conv4(
    name: str, family: str, image: tuple[int, int, int], filters: int,
    tasks: int, steps: int, support: int, query: int, blocks: str = "",
) -> Workload:  # fmt: skip
    side = image[-1] >> BLOCKS
    return Workload(
        name=name,
        family=family,
        sizes=(filters * side**2, 5),
        activation="relu",
        loss="cross_entropy",
        tasks=tasks,
        support=support,
        query=query,
        steps=steps,
        image=image,
        filters=filters,
        blocks=blocks,
    )


# For GPUs alone: nobody waits for a CPU's loop over these.
LARGE: tuple[Workload, ...] = (
    sinusoid(tasks=65536, steps=5),
    Workload("mlp-60k", "regression", (200, 200, 100, 5), "relu", "mse", 32, 25, 25, 5),
    *(omniglot(64, 32, *shape) for shape in product((1, 5), (5, 25), (25, 75))),
)

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        sinusoid(tasks=1, steps=1),
        sinusoid(tasks=25, steps=1),
        sinusoid(tasks=25, steps=5),
        sinusoid(tasks=256, steps=5),
        sinusoid(tasks=1024, steps=1),
        sinusoid(tasks=1024, steps=5),
        sinusoid(tasks=4096, steps=10),
        Workload("rl", "regression", (20, 64, 64, 6), "tanh", "mse", 40, 200, 200, 1),
        Workload("per-user", "regression", (256, 64, 64, 1), "relu", "mse", 256, 20, 20, 1),
        Workload("per-user-K5", "regression", (256, 64, 64, 1), "relu", "mse", 256, 20, 20, 5),
        Workload("mlp-elu", "regression", (16, 64, 64, 5), "elu", "cross_entropy", 32, 25, 75, 5),
        Workload("mlp-huber", "regression", (16, 64, 64, 3), "tanh", "huber", 64, 20, 20, 5),
        Workload("mlp-masked", "regression", (16, 64, 64, 12), "tanh", "masked_mse", 32, 20, 20, 5),
        Workload(
            "mlp-gated", "regression", (16, 64, 64, 3), "tanh", "mse", 64, 20, 20, 5,
            hidden="gated",
        ),
        Workload(
            "mlp-norm", "regression", (16, 40, 40, 3), "tanh", "mse", 64, 20, 20, 5,
            hidden="layer norm",
        ),
        Workload(
            "mlp-unit", "regression", (16, 64, 64, 3), "tanh", "mse", 64, 20, 20, 5,
            hidden="unit rows",
        ),
        Workload(
            "mlp-slopes", "regression", (8, 64, 64, 1), "tanh", "mse", 32, 20, 20, 5, slopes=True
        ),
        head(features=64),
        head(features=1600),
        *(omniglot(*shape) for shape in product((64, 32), (4, 8), (1, 5), (5, 25), (25, 75))),
        *map(unlike_conv4, BESIDE_CONV4),
        residual(),
        segmentation(),
        mini_imagenet(tasks=4),
        mini_imagenet(tasks=1),
        *LARGE,
    )
}

_LARGE = [workload.name for workload in LARGE]
FAMILIES: dict[str, list[str]] = {
    family: [
        name
        for name, workload in WORKLOADS.items()
        if workload.family == family and name not in _LARGE
    ]
    for family in dict.fromkeys(workload.family for workload in WORKLOADS.values())
} | {"large": _LARGE}

# What a quick run measures.
SMALL = (
    "sinusoid-T1-K1", "sinusoid-T25-K1", "sinusoid-T25-K5", "sinusoid-T256-K5",
    "conv64-T4-K1-S5-Q75", "conv64-T4-K5-S5-Q75",
)  # fmt: skip

# What a run measures: of the many Omniglot shapes, each of these stands for those next to it.
_STANDING_FOR_OMNIGLOT = (
    "conv64-T4-K1-S5-Q75", "conv64-T4-K5-S5-Q75", "conv64-T4-K5-S25-Q75", "conv32-T4-K5-S5-Q75",
)  # fmt: skip
USUAL = tuple(
    name
    for name, workload in WORKLOADS.items()
    if name not in _LARGE and (workload.family != "omniglot" or name in _STANDING_FOR_OMNIGLOT)
)

# What a run on a GPU measures, what matters most first.
ON_GPU = (
    "sinusoid-T1024-K5", "sinusoid-T25-K5", "rl", "conv64-T32-K1-S5-Q25", "conv64-T32-K5-S25-Q75",
    "sinusoid-T65536-K5", "head-1600", "per-user", "mlp-60k",
    "conv64-T32-K1-S25-Q75", "conv64-T32-K5-S5-Q25", "mini-T4-K5-S5-Q75", "head-64", "mlp-huber",
)  # fmt: skip

# One for each family where it is known whether memory stays flat in the number of inner steps.
MEMORY = (sinusoid(tasks=256, steps=5), WORKLOADS["conv32-T4-K5-S5-Q75"])
