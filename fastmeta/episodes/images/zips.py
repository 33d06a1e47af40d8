"""The PNG files of a folder or of a zip, one after another."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# A drawing has a few hundred bytes; a zip could claim gigabytes.
LARGEST_FILE = 1 << 20
# RuntimeError: encrypted, or packed by a method that Python lacks.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def folder_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The PNG files two folders down, with their content."""
    for file in sorted(folder.glob("*/*/*.png")):
        yield file.as_posix(), file.read_bytes()


def zip_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The PNG files of a zip with their content; nothing is written to disk.

    Raises:
        ValueError: the zip is damaged, or a name in it leads out of its folder.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_member(path, member)
                if _is_png(member.filename):
                    yield f"{path}/{member.filename}", archive.read(member)
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as a zip: {error}") from error


def _is_png(name: str) -> bool:
    """Whether it is an image, and not the shadow of one that macOS adds to a zip."""
    path = PurePosixPath(name)
    return path.suffix == ".png" and not path.name.startswith(".")


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    parts = PurePosixPath(member.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in member.filename:
        raise ValueError(f"{path} has a file {member.filename!r}, which lies outside its folder")
    if member.file_size > LARGEST_FILE:
        raise ValueError(f"{path}: {member.filename!r} has {member.file_size} bytes: no drawing")
