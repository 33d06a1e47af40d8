"""What several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from fastmeta.cli.options.kinds import positive

ENGINES = ("auto", "resident", "layered", "vmap", "reference")


def add_command(commands: Any, name: str, help_text: str) -> argparse.ArgumentParser:
    """Add a command whose help begins with what the list of commands says of it."""
    description = help_text[0].upper() + help_text[1:] + "."
    return commands.add_parser(name, help=help_text, description=description, allow_abbrev=False)


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
    group.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    add_device(group, default="auto")
    group.add_argument("--threads", type=positive, help="threads (default: as torch chooses)")
    group.add_argument(
        "--engine", choices=ENGINES, default="auto", help="of the inner loop (default: %(default)s)"
    )
