"""Every option of the command line; nothing heavy is imported here."""

from __future__ import annotations

import argparse
import math
from typing import Any, NoReturn

ALGORITHMS = ("maml", "fomaml", "anil", "metasgd", "reptile")
ENGINES = ("auto", "resident", "vmap", "reference")
WEIGHT_DECAYS = (0.01, 1.0, 30.0)

SINUSOID: dict[str, Any] = dict(
    shots=10, hidden=[40, 40], activation="relu", algorithm="maml", inner_lr=0.01,
    inner_steps=5, learn_inner_lr="none", per_step_lr=False, meta_batch=25, steps=20_000, lr=1e-3,
    weight_decay=0.0, checkpoint="fastmeta-sinusoid.safetensors",
)  # fmt: skip
# Found by cross-validation over the training patients of the Parkinson's table, see
# docs/notes/parkinsons.md.
TABLE: dict[str, Any] = dict(
    shots=5, hidden=[16], activation="tanh", algorithm="maml", inner_lr=0.1, inner_steps=5,
    learn_inner_lr="tensor", per_step_lr=False, meta_batch=None, steps=500, lr=3e-3,
    weight_decay=None, checkpoint="fastmeta-table.safetensors",
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from fastmeta import __version__

        print(f"fastmeta {__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="fastmeta", description="Fast, exact meta-learning for PyTorch.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_doctor(commands)
    _add_bench(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = _command(
        commands,
        "demo",
        "learn to learn sine waves in seconds, plot it, and measure the speed against plain "
        "PyTorch",
    )
    demo.add_argument(
        "--plot",
        default="fastmeta-demo.png",
        metavar="PNG",
        help="where the plot goes (default: %(default)s)",
    )
    demo.add_argument(
        "--steps",
        type=_positive,
        default=8_000,
        help="meta-steps, for 25 s at most (default: %(default)s)",
    )
    _add_machine(demo)


def _add_train(commands: Any) -> None:
    train = _command(commands, "train", "meta-learn over the tasks of a source")
    sources = train.add_subparsers(dest="source", required=True, metavar="SOURCE")
    sinusoid = _command(sources, "sinusoid", "sine waves of random amplitude and phase, endless")
    _add_training(sinusoid, SINUSOID)
    sinusoid.add_argument(
        "--queries", type=_positive, default=10, help="query points a task (default: %(default)s)"
    )
    table = _command(sources, "table", "a CSV file in which one column names the task")
    _add_training(table, TABLE)
    _add_table(table)


def _add_table(table: argparse.ArgumentParser) -> None:
    group = table.add_argument_group(
        "table",
        "Inputs are all columns but the task, the target, and by default those whose name holds "
        "the word time, date, datetime or timestamp, and those that end in the same word as a "
        "target of several words (total_UPDRS beside motor_UPDRS). What is used and what is left "
        "out is printed. Inputs and target are standardised on the tasks to learn from, and inputs "
        "cut at 5 standard deviations.",
    )
    group.add_argument("file", metavar="FILE", help="CSV file with a header")
    group.add_argument("--task", required=True, metavar="COLUMN", help="names the task of a row")
    group.add_argument("--target", required=True, metavar="COLUMN", help="the number to predict")
    several: dict[str, Any] = dict(nargs="+", action="extend", metavar="COLUMN")
    group.add_argument("--features", **several, help="exactly these columns are the inputs")
    group.add_argument("--drop", **several, default=[], help="columns that are not inputs")
    group.add_argument("--keep", **several, default=[], help="inputs although left out by default")
    group.add_argument("--delimiter", type=_delimiter, default=",", help="default: a comma")
    group.add_argument("--encoding", default="utf-8", help="of the file (default: %(default)s)")
    group.add_argument(
        "--held-out",
        type=_fraction,
        default=0.25,
        metavar="FRACTION",
        help="tasks kept for `evaluate` (default: %(default)s)",
    )
    group.add_argument(
        "--split-seed",
        type=int,
        default=0,
        help="another choice of held-out tasks: those whose SHA-256 of 'seed:name' is smallest "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--skip-small-tasks",
        action="store_true",
        help="leave out tasks with too few rows instead of stopping",
    )
    group.add_argument(
        "--support-norm",
        type=_norm,
        metavar="P",
        help="weight the support rows so that their mean is their centre in this norm: 1 median, "
        "2 mean, more: closer to the middle of the extremes (default: the best of 1, 1.5, 2, 3 on "
        "the tasks to learn from)",
    )


def _add_training(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    parser.set_defaults(**defaults)
    group = parser.add_argument_group("what is learned")
    group.add_argument("--algorithm", choices=ALGORITHMS, help="default: %(default)s")
    group.add_argument(
        "--shots", type=_positive, help="support samples a task (default: %(default)s)"
    )
    group.add_argument(
        "--hidden",
        type=_positive,
        nargs="*",
        metavar="WIDTH",
        help=f"hidden layers; none: a linear model (default: {_listed(defaults['hidden'])})",
    )
    group.add_argument(
        "--activation",
        help="relu, leaky_relu, tanh, sigmoid, sine, gelu or softplus (default: %(default)s)",
    )
    group.add_argument(
        "--inner-lr", type=_positive_number, help="inner learning rate (default: %(default)s)"
    )
    group.add_argument("--inner-steps", type=_positive, help="default: %(default)s")
    group.add_argument(
        "--learn-inner-lr",
        choices=("none", "tensor", "element"),
        help="learn inner rates, one a tensor or one a number (default: %(default)s; "
        "metasgd: element; reptile: none)",
    )
    group.add_argument(
        "--per-step-lr",
        action=argparse.BooleanOptionalAction,
        help="learn other rates for each inner step (default: %(default)s)",
    )
    group = parser.add_argument_group("how")
    group.add_argument("--steps", type=_positive, help="meta-steps in all (default: %(default)s)")
    group.add_argument(
        "--meta-batch",
        type=_positive,
        metavar="TASKS",
        help=f"tasks a meta-step (default: {defaults['meta_batch'] or 'all'})",
    )
    group.add_argument("--lr", type=_positive_number, help="of Adam (default: %(default)s)")
    group.add_argument(
        "--weight-decay",
        type=_number_from_0,
        help="of the weight matrices, decoupled as in AdamW; biases and inner rates do not decay "
        f"(default: {_weight_decay_default(defaults)})",
    )
    group.add_argument(
        "--clip", type=_positive_number, metavar="NORM", help="largest meta-gradient norm"
    )
    group = parser.add_argument_group("files")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="safetensors file; one that is there is replaced (default: %(default)s)",
    )
    group.add_argument(
        "--save-every", type=_positive, default=500, metavar="STEPS", help="default: %(default)s"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint, bit for bit; the other options must be the same, "
        "--steps may be more",
    )
    group.add_argument("--curve", metavar="CSV", help="write the loss of every step")
    _add_machine(parser)


def _add_evaluate(commands: Any) -> None:
    evaluate = _command(
        commands, "evaluate", "measure a checkpoint on tasks it has not seen, step by step"
    )
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT")
    evaluate.add_argument(
        "--inner-steps", type=_positive, help="adapt this far (default: as in training)"
    )
    evaluate.add_argument(
        "--tasks", type=_positive, default=1000, help="sinusoid: tasks (default: %(default)s)"
    )
    evaluate.add_argument(
        "--draws",
        type=_positive,
        default=100,
        help="table: random choices of the support rows of each task (default: %(default)s)",
    )
    evaluate.add_argument(
        "--data",
        metavar="FILE",
        help="table: where the file is now, or a file of the same columns with new tasks; all "
        "tasks that were not trained on are evaluated",
    )
    evaluate.add_argument("--json", metavar="FILE", help="write the numbers too")
    _add_machine(evaluate)


def _add_doctor(commands: Any) -> None:
    _command(commands, "doctor", "what was built, what runs here, and why not the rest")


def _add_bench(commands: Any) -> None:
    bench = _command(commands, "bench", "time fastmeta and its rivals on this machine")
    bench.add_argument("--quick", action="store_true", help="the small workloads, for a short time")
    several: dict[str, Any] = dict(nargs="+", action="extend", metavar="NAME")
    bench.add_argument("--workload", **several, help="only these (default: all)")
    bench.add_argument("--rival", **several, help="only these (default: all that are installed)")
    bench.add_argument(
        "--seconds", type=_positive_number, default=None, help="time for one rival at one workload"
    )
    bench.add_argument("--json", metavar="FILE", help="write the results too")
    bench.add_argument("--threads", type=_positive, help="threads (default: as torch chooses)")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    group.add_argument("--threads", type=_positive, help="threads (default: as torch chooses)")
    group.add_argument(
        "--engine", choices=ENGINES, default="auto", help="of the inner loop (default: %(default)s)"
    )


def _command(commands: Any, name: str, help_text: str) -> argparse.ArgumentParser:
    description = help_text[0].upper() + help_text[1:] + "."
    return commands.add_parser(name, help=help_text, description=description, allow_abbrev=False)


def _weight_decay_default(defaults: dict[str, Any]) -> str:
    if defaults["weight_decay"] is not None:
        return str(defaults["weight_decay"])
    choices = ", ".join(map(str, WEIGHT_DECAYS))
    return f"the best of {choices} in cross-validation over the tasks to learn from"


def _listed(values: list[int]) -> str:
    return " ".join(map(str, values))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _positive_number(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def _number_from_0(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return value


def _fraction(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text!r}")
    return value


def _norm(text: str) -> float:
    value = _number(text)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, not {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _delimiter(text: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(character) != 1:
        raise argparse.ArgumentTypeError(f"must be one character or 'tab', not {text!r}")
    return character
