"""Dispatch to one module a command."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from fastmeta.cli.errors import INTERRUPTED, UsageError
from fastmeta.cli.options import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong use, 130 Ctrl-C."""
    try:
        options = build_parser().parse_args(arguments)
        command = importlib.import_module(f"fastmeta.cli.{options.command}")
        return command.run(options)
    except UsageError as error:
        print(f"fastmeta: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastmeta: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain again when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
