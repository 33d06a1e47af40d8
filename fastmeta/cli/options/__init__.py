"""Every option of the command line; nothing heavy is imported here."""

from fastmeta.cli.options.parser import build_parser

__all__ = ["build_parser"]
