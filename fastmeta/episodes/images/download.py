"""Downloads with a checksum, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

CHUNK = 1 << 16
TIMEOUT_S = 30.0


def cache_folder() -> Path:
    """Where downloads go by default: ``fastmeta`` in $XDG_CACHE_HOME or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastmeta"


def fetch(url: str, path: Path, *, md5: str) -> None:
    """Fetch `url` into `path`, whose folder is made; `path` appears only once it is right.

    Raises:
        OSError: the address cannot be reached, or the transfer breaks off.
        ValueError: the checksum is another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.md5(usedforsecurity=False)
    with written_whole(path) as file:
        try:
            _transfer(url, file, digest)
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"{url} was not downloaded: {error}") from error
        if digest.hexdigest() != md5:
            raise ValueError(
                f"{url} has MD5 {digest.hexdigest()}, but {md5} was published: it was not kept"
            )


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that gets the name `path` at the end, or, after an error, is removed."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _transfer(url: str, file: IO[bytes], digest: hashlib._Hash) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        expected = response.headers.get("Content-Length")
        received = 0
        while chunk := response.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
    if expected is not None and received != int(expected):
        raise OSError(f"the transfer ended after {received} of {expected} bytes")
