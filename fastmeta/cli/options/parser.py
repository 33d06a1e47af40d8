"""The parser of the whole command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from fastmeta.cli.options.common import add_command, add_device, add_machine
from fastmeta.cli.options.evaluate import add_evaluate
from fastmeta.cli.options.images import add_image_sources
from fastmeta.cli.options.kinds import positive, positive_number
from fastmeta.cli.options.sinusoid import add_sinusoid
from fastmeta.cli.options.table import add_table
from fastmeta.cli.options.vectors import add_vectors
from fastmeta.words import did_you_mean


class _Parser(argparse.ArgumentParser):
    # Defaults that depend on --algorithm, where there is one; the first is that of the source.
    by_algorithm: Mapping[str, Mapping[str, Any]] = {}

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self.by_algorithm:
            first = next(iter(self.by_algorithm))
            chosen = self.by_algorithm.get(_algorithm(args) or first, self.by_algorithm[first])
            self.set_defaults(**chosen)
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = did_you_mean(value, action.choices or ())
            raise argparse.ArgumentError(action, f"{error.message}{hint}") from None

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from fastmeta import __version__

        print(f"fastmeta {__version__}")
        parser.exit()


def _algorithm(args: Sequence[str] | None) -> str | None:
    """What --algorithm says, known before the rest is read, so that --help shows its defaults."""
    glance = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    glance.add_argument("--algorithm", nargs="?")
    return glance.parse_known_args(args)[0].algorithm


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="fastmeta", description="Fast, exact meta-learning for PyTorch.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    add_evaluate(commands)
    add_command(commands, "doctor", "what was built, what runs here, and why not the rest")
    _add_bench(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = add_command(
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
        type=positive,
        default=8_000,
        help="meta-steps, for 25 s at most (default: %(default)s)",
    )
    add_machine(demo)


def _add_train(commands: Any) -> None:
    train = add_command(commands, "train", "meta-learn over the tasks of a source")
    sources = train.add_subparsers(dest="source", required=True, metavar="SOURCE")
    add_sinusoid(sources)
    add_table(sources)
    add_image_sources(sources)
    add_vectors(sources)


def _add_bench(commands: Any) -> None:
    bench = add_command(commands, "bench", "time fastmeta and its rivals on this machine")
    bench.add_argument("--quick", action="store_true", help="the small workloads, for a short time")
    bench.add_argument("--list", action="store_true", help="name all workloads and rivals, and end")
    several: dict[str, Any] = dict(nargs="+", action="extend", metavar="NAME")
    bench.add_argument("--workload", **several, help="only these (default: all)")
    bench.add_argument(
        "--rival",
        **several,
        help="fastmeta and only these; fastmeta: nobody else (default: all that are "
        "installed)",
    )
    bench.add_argument(
        "--seconds", type=positive_number, default=None, help="time for one rival at one workload"
    )
    bench.add_argument(
        "--time-limit",
        type=positive_number,
        metavar="SECONDS",
        help="begin no workload that would end later",
    )
    bench.add_argument("--json", metavar="FILE", help="write the results too")
    add_device(bench, default="cpu")
    bench.add_argument("--threads", type=positive, help="threads (default: as torch chooses)")
