"""What several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from fastmeta.cli.options.kinds import positive, seed

ENGINES = ("auto", "resident", "stepwise", "layered", "vmap", "reference")


# What holds for an option without a default; one of an algorithm's settings is none of this one's.
_WITHOUT_DEFAULT = {"eval_ways": "as --ways", "eval_shots": "as --shots"}


class Help(argparse.HelpFormatter):
    """Says defaults in words: those that apply, which depend on --algorithm, and never None."""

    def _expand_help(self, action: argparse.Action) -> str:
        default = action.default
        if default is None:
            default = _WITHOUT_DEFAULT.get(action.dest, "none, this --algorithm has no such option")
        elif isinstance(default, bool):
            default = "yes" if default else "no"
        elif isinstance(default, list):
            default = " ".join(map(str, default))
        words = {**vars(action), "prog": self._prog, "default": default}
        if action.choices is not None:
            words["choices"] = ", ".join(map(str, action.choices))
        return str(self._get_help_string(action)) % words


def add_command(commands: Any, name: str, help_text: str) -> argparse.ArgumentParser:
    """Add a command whose help begins with what the list of commands says of it."""
    description = help_text[0].upper() + help_text[1:] + "."
    return commands.add_parser(
        name,
        help=help_text,
        description=description,
        allow_abbrev=False,
        formatter_class=Help,
    )


def add_device(parser: Any, default: str) -> None:
    """Add the device; its name is looked at later, since that takes PyTorch."""
    parser.add_argument(
        "--device",
        default=default,
        metavar="NAME",
        help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: %(default)s)",
    )


def add_cuda_graph(parser: argparse.ArgumentParser) -> None:
    """Add whether meta-steps are captured."""
    parser.add_argument(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on a GPU, replay whole meta-steps from a CUDA graph where they can be captured "
        "(default: yes)",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add seed, device, threads and engine."""
    group = parser.add_argument_group("machine")
    group.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    add_device(group, default="auto")
    group.add_argument("--threads", type=positive, help="threads (default: as torch chooses)")
    group.add_argument(
        "--engine", choices=ENGINES, default="auto", help="of the inner loop (default: %(default)s)"
    )
