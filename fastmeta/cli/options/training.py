"""Options of every training: what is learned, how, and where it is written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fastmeta.cli.options.algorithms import FIXED_HEAD
from fastmeta.cli.options.common import add_cuda_graph, add_machine
from fastmeta.cli.options.kinds import natural, number_from_0, positive, positive_number

SCHEDULES = ("constant", "cosine", "halving")
WEIGHT_DECAYS = (0.01, 1.0, 30.0)


def add_training(
    parser: argparse.ArgumentParser,
    defaults: dict[str, Any],
    algorithms: Sequence[str] = FIXED_HEAD,
) -> None:
    """Add all that `train` takes for any source."""
    parser.set_defaults(**defaults)
    own = "; each has its own settings, which --algorithm NAME --help shows"
    about = f"default: %(default)s{own if len(algorithms) > len(FIXED_HEAD) else ''}"
    parser.add_argument("--algorithm", choices=algorithms, help=about)
    _add_inner_loop(parser, algorithms)
    _add_outer_loop(parser, defaults)
    if "validate_every" in defaults:
        _add_validation(parser)
    _add_files(parser)
    add_machine(parser)
    add_cuda_graph(parser)


def add_mlp(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """Add the options of a multi-layer perceptron."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--hidden",
        type=positive,
        nargs="*",
        metavar="WIDTH",
        help="hidden layers; none: a linear model "
        f"(default: {' '.join(map(str, defaults['hidden']))})",
    )
    group.add_argument(
        "--activation",
        help="relu, leaky_relu, tanh, sigmoid, sine, gelu, softplus, silu, elu, selu or mish "
        "(default: %(default)s)",
    )


def _add_inner_loop(parser: argparse.ArgumentParser, algorithms: Sequence[str]) -> None:
    fixed = "; metasgd: element; reptile: none" if algorithms is FIXED_HEAD else ""
    group = parser.add_argument_group("inner loop")
    group.add_argument(
        "--inner-lr", type=positive_number, help="inner learning rate (default: %(default)s)"
    )
    group.add_argument("--inner-steps", type=positive, help="default: %(default)s")
    group.add_argument(
        "--learn-inner-lr",
        choices=("none", "tensor", "element"),
        help="learn inner rates, one a tensor or one a number "
        f"(default: %(default)s{fixed})",
    )
    group.add_argument(
        "--per-step-lr",
        action=argparse.BooleanOptionalAction,
        help="learn other rates for each inner step (default: %(default)s)",
    )


def _add_outer_loop(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    group = parser.add_argument_group("outer loop")
    group.add_argument("--steps", type=positive, help="meta-steps in all (default: %(default)s)")
    group.add_argument(
        "--time-limit",
        type=positive_number,
        metavar="MINUTES",
        help="stop before this time is over, and save",
    )
    group.add_argument(
        "--meta-batch",
        type=positive,
        metavar="TASKS",
        help=f"tasks a meta-step (default: {'%(default)s' if defaults['meta_batch'] else 'all'})",
    )
    group.add_argument("--lr", type=positive_number, help="of Adam (default: %(default)s)")
    group.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="of --lr: cosine goes down to 0 at --steps (default: %(default)s)",
    )
    group.add_argument(
        "--halve-every",
        type=positive,
        default=2000,
        metavar="STEPS",
        help="with --schedule halving (default: %(default)s)",
    )
    group.add_argument(
        "--weight-decay",
        type=number_from_0,
        help="of the weight matrices, decoupled as in AdamW; biases and inner rates do not decay "
        f"(default: {_weight_decay_default(defaults)})",
    )
    group.add_argument(
        "--clip", type=positive_number, metavar="NORM", help="largest meta-gradient norm"
    )


def _add_validation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "validation",
        "On tasks that are not trained on, and the same each time. The best checkpoint is kept "
        "beside the last one, as NAME.best.safetensors.",
    )
    group.add_argument(
        "--validate-every",
        type=natural,
        metavar="STEPS",
        help="0: never (default: %(default)s)",
    )
    group.add_argument(
        "--validation-tasks", type=positive, metavar="TASKS", help="default: %(default)s"
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="safetensors file; one that is there is replaced (default: %(default)s)",
    )
    group.add_argument(
        "--save-every", type=positive, default=500, metavar="STEPS", help="default: %(default)s"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint, bit for bit; the other options must be the same, "
        "--steps may be more unless --schedule is cosine",
    )
    group.add_argument(
        "--curve",
        metavar="CSV",
        help="the loss of every step and the scores in validation "
        "(default: beside the checkpoint, NAME.curve.csv)",
    )
    group.add_argument("--plot", metavar="PNG", help="draw the curve too, when training stops")
    group.add_argument(
        "--tensorboard", metavar="DIR", help="write the curve for TensorBoard too, while it grows"
    )


def _weight_decay_default(defaults: dict[str, Any]) -> str:
    if defaults["weight_decay"] is not None:
        return str(defaults["weight_decay"])
    choices = ", ".join(map(str, WEIGHT_DECAYS))
    return f"the best of {choices} in cross-validation over the tasks to learn from"
