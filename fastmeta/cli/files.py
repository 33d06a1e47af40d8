"""Files that a command will write."""

from __future__ import annotations

import os
from pathlib import Path


def check_writable(path: Path) -> None:
    """Make the folder of a result, so that what cannot be written fails at the start.

    Raises:
        OSError: `path` is a folder or a file that cannot be written over, its folder cannot be
            made or written, or the file system takes no file there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written over")
    if not path.exists():
        path.touch()
        path.unlink()
