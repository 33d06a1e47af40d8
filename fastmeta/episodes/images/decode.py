"""Image files to bytes of pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from fastmeta.episodes.images.classes import ImageClasses

PILLOW_MODES = {1: "L", 3: "RGB"}
WIDE_MODES = ("I", "F")
# What Pillow raises for files that are damaged or hostile.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error)


def decode_image(
    content: bytes,
    name: str | Path,
    *,
    channels: int = 3,
    image_size: int | None = None,
    invert: bool = False,
) -> np.ndarray:
    """Return the pixels of an image file: uint8 [channels, H, W].

    Args:
        content: of a file in a format that Pillow reads.
        name: of the file, for errors.
        channels: 1 (grey) or 3 (red, green, blue).
        image_size: height and width to resize to (Lanczos), or None: as they are.
        invert: turn black into white before resizing.

    Raises:
        ValueError: the content is no image or is damaged, or has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    if channels not in PILLOW_MODES:
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    try:
        with Image.open(io.BytesIO(content)) as file:
            if file.mode.startswith(WIDE_MODES):
                raise ValueError(f"it has mode {file.mode}, and 8 bits a channel are needed")
            # Before resizing: Pillow would resize a bitmap or a palette by nearest neighbour.
            image = file.convert(PILLOW_MODES[channels])
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    if invert:
        image = ImageOps.invert(image)
    if image_size is not None and image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.moveaxis(pixels, 2, 0)


def read_image_files(
    files_by_class: Mapping[str, Sequence[Path]], *, channels: int = 3, image_size: int | None
) -> ImageClasses:
    """Return the images of these files.

    Raises:
        ValueError: a file that is no image, images of several sizes where `image_size` is None,
            or no class or a class without files.
        OSError: a file cannot be opened.
    """
    if not files_by_class:
        raise ValueError("there are no classes")
    for name, members in files_by_class.items():
        if not members:
            raise ValueError(f"class {name!r} has no images")
    files = [file for members in files_by_class.values() for file in members]

    def read(file: Path) -> np.ndarray:
        return decode_image(file.read_bytes(), file, channels=channels, image_size=image_size)

    first = read(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        for index, pixels in enumerate(pool.map(read, files)):
            if pixels.shape != first.shape:
                raise ValueError(
                    f"{files[index]} has {_size(pixels)} pixels, {files[0]} {_size(first)}: "
                    "give image_size to resize them all"
                )
            images[index] = pixels
    sizes = [len(members) for members in files_by_class.values()]
    offsets = torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0)
    return ImageClasses(torch.from_numpy(images), offsets, tuple(files_by_class))


def _size(pixels: np.ndarray) -> str:
    return "x".join(map(str, pixels.shape[1:]))
