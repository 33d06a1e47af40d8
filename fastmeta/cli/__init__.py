"""The command line: options are read here, torch and matplotlib only when a command needs them."""

from fastmeta.cli.main import main

__all__ = ["main"]
