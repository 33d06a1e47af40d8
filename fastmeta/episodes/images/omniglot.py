"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): 1,623 characters, each drawn by 20 people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from fastmeta.counts import whole_number
from fastmeta.episodes.images.classes import ImageClasses, ImageSplits
from fastmeta.episodes.images.decode import decode_image
from fastmeta.episodes.images.download import cache_folder, fetch, written_whole
from fastmeta.episodes.images.npz import read_arrays
from fastmeta.episodes.images.omniglot_split import BACKGROUND, CHARACTERS, split_omniglot
from fastmeta.episodes.images.zips import folder_files, zip_files

SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
# Name of the part, number of characters, MD5 of the zip.
PARTS = (
    ("images_background", BACKGROUND, "68d2efa1b9178cc56df9314c21c6e718"),
    ("images_evaluation", CHARACTERS - BACKGROUND, "6b91aef0f799c5bb55b94e3f2daec811"),
)
DRAWERS = 20
IMAGE_SIZE = 28


def omniglot(
    path: str | Path | None = None,
    *,
    split: str = "vinyals",
    image_size: int = IMAGE_SIZE,
    download: bool | None = None,
) -> ImageSplits:
    """Read Omniglot and split it: `omniglot_characters`, then `split_omniglot`."""
    characters = omniglot_characters(path, image_size=image_size, download=download)
    return split_omniglot(characters, split)


def omniglot_characters(
    path: str | Path | None = None,
    *,
    image_size: int = IMAGE_SIZE,
    download: bool | None = None,
) -> ImageClasses:
    """Read all 1,623 characters in their original order, ``'Alphabet/characterNN'``.

    Images are uint8 [32460, 1, image_size, image_size] with ink 255 on 0, for each character by
    drawer 1 to 20.

    `path` is a folder with one of the following, or is the archive itself:

    - ``omniglot_28.npz``: `images` [1623, 20, 28, 28], `names`, `character_id`;
    - ``images_background.zip`` and ``images_evaluation.zip``, as published;
    - the folders ``images_background`` and ``images_evaluation``, as extracted from them.

    Args:
        path: by default a folder for downloads, ``~/.cache/fastmeta/omniglot``.
        image_size: height and width that the drawings, 105x105, are resized to.
        download: whether to fetch the zips into that folder where none of these is there, and to
            keep the images as an archive beside them. By default only if no `path` is given.

    Raises:
        ValueError: `image_size` below 1, a file that is damaged or is not Omniglot, or a download
            with another checksum.
        OSError: nothing is there, or a file cannot be opened or downloaded.
    """
    image_size = whole_number("image_size", image_size)
    folder = cache_folder() / "omniglot" if path is None else Path(path)
    archive = folder if folder.is_file() else folder / f"omniglot_{image_size}.npz"
    if archive.is_file():
        return _read_archive(archive, image_size)
    may_download = path is None if download is None else download
    if may_download:
        _download(folder)
    characters = _characters(folder, image_size)
    if may_download:
        _write_archive(archive, characters)
    return characters


# ---- the archive --------------------------------------------------------------------------------


def _read_archive(path: Path, image_size: int) -> ImageClasses:
    arrays = read_arrays(path, required=["images", "names", "character_id"])
    images, names, ids = (arrays[key] for key in ("images", "names", "character_id"))
    shape = (CHARACTERS, DRAWERS, image_size, image_size)
    if images.dtype != np.uint8 or images.shape != shape:
        raise ValueError(
            f"{path}: images must be uint8 {list(shape)}, not {images.dtype} {list(images.shape)}"
        )
    if sorted(ids.ravel().tolist()) != list(range(1, CHARACTERS + 1)) or names.shape != ids.shape:
        raise ValueError(f"{path}: names and character_id must be [{CHARACTERS}], ids 1 and up")
    order = ids.argsort()
    flat = images[order].reshape(-1, 1, image_size, image_size)
    offsets = torch.arange(0, len(flat) + 1, DRAWERS)
    return ImageClasses(torch.from_numpy(flat), offsets, tuple(names[order].tolist()))


def _write_archive(path: Path, characters: ImageClasses) -> None:
    ids = np.arange(1, CHARACTERS + 1, dtype=np.uint16)
    with written_whole(path) as file:
        np.savez_compressed(
            file,
            images=characters.images.unflatten(0, (CHARACTERS, DRAWERS))[:, :, 0].numpy(),
            names=np.array(characters.names),
            background=(ids <= BACKGROUND).astype(np.uint8),
            character_id=ids,
        )


# ---- the published files ------------------------------------------------------------------------


def _download(folder: Path) -> None:
    for part, _, md5 in PARTS:
        target = folder / f"{part}.zip"
        if not target.exists() and not (folder / part).is_dir():
            _fetch(part, target, md5)


def _fetch(part: str, target: Path, md5: str) -> None:
    try:
        fetch(f"{SOURCE}/{part}.zip", target, md5=md5)
    except OSError as error:
        raise OSError(
            f"{error}; with Omniglot on disk already (omniglot_28.npz, or {PARTS[0][0]}.zip and "
            f"{PARTS[1][0]}.zip from {SOURCE}), name its folder: --data DIR on the command line, "
            "omniglot(DIR) in Python"
        ) from error


def _characters(folder: Path, image_size: int) -> ImageClasses:
    """Read both parts and sort the characters by their number."""
    drawings: dict[int, tuple[str, np.ndarray]] = {}
    for part, count, _ in PARTS:
        found = read_drawings(_part_files(folder, part), image_size)
        if len(found) != count:
            raise ValueError(f"{folder / part} has {len(found)} characters, Omniglot {count}")
        drawings.update(found)
    if sorted(drawings) != list(range(1, CHARACTERS + 1)):
        raise ValueError(f"{folder}: a character is in both parts, or has another's number")
    ordered = [drawings[number] for number in sorted(drawings)]
    return ImageClasses.of({name: torch.from_numpy(images) for name, images in ordered})


def read_drawings(
    files: Iterator[tuple[str, bytes]], image_size: int = IMAGE_SIZE
) -> dict[int, tuple[str, np.ndarray]]:
    """Read drawings named ``.../Alphabet/characterNN/ID_DD.png``, of character ID by drawer DD.

    Returns:
        By ID the name ``'Alphabet/characterNN'`` and the images, uint8 [20, 1, size, size].

    Raises:
        ValueError: a damaged image, another kind of name, or a character without 20 drawings.
    """
    names: dict[int, str] = {}
    drawn: dict[int, dict[int, np.ndarray]] = {}
    for file, content in files:
        path = PurePosixPath(file)
        name = "/".join(path.parts[-3:-1])
        number, _, drawer = path.stem.partition("_")
        if len(path.parts) < 3 or not (number.isdecimal() and drawer.isdecimal()):
            raise ValueError(f"{file} is not named as drawings are: Latin/character01/0683_01.png")
        if names.setdefault(int(number), name) != name:
            raise ValueError(f"{file} has the number of {names[int(number)]}")
        pixels = decode_image(content, file, channels=1, image_size=image_size, invert=True)
        drawn.setdefault(int(number), {})[int(drawer)] = pixels
    for character, by_drawer in drawn.items():
        if sorted(by_drawer) != list(range(1, DRAWERS + 1)):
            raise ValueError(f"{names[character]} has {len(by_drawer)} drawings and not {DRAWERS}")
    return {
        character: (names[character], np.stack([pixels for _, pixels in sorted(by_drawer.items())]))
        for character, by_drawer in drawn.items()
    }


def _part_files(folder: Path, part: str) -> Iterator[tuple[str, bytes]]:
    if (folder / part).is_dir():
        return folder_files(folder / part)
    archive = folder / f"{part}.zip"
    if archive.is_file():
        return zip_files(archive)
    raise FileNotFoundError(
        f"there is no Omniglot in {folder}: it needs omniglot_28.npz, or {PARTS[0][0]}.zip and "
        f"{PARTS[1][0]}.zip from {SOURCE}, or the folders in these"
    )
