"""Small images that tell which class and which sample they are."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmeta.episodes import ImageClasses


@pytest.fixture
def data_folder():
    """The folder of real data."""
    folder = os.environ.get("FASTMETA_DATA")
    if folder is None:
        pytest.skip("FASTMETA_DATA does not name the folder of the data")
    return Path(folder)


@pytest.fixture(scope="session")
def make_classes():
    """`make_classes([3, 5])`: two classes; pixel (0, 0) is the class, (0, 1) the sample."""

    def make(sizes, channels=1, size=4):
        images = {}
        for label, count in enumerate(sizes):
            pixels = torch.zeros(count, channels, size, size, dtype=torch.uint8)
            pixels[:, :, 0, 0] = label
            pixels[:, :, 0, 1] = torch.arange(count, dtype=torch.uint8)[:, None]
            pixels[:, :, 0, 2] = 255  # tells how an image is turned
            images[f"class {label}"] = pixels
        return ImageClasses.of(images)

    return make


@pytest.fixture
def write_image():
    """`write_image(path, value)`: a picture of one colour; its folder is made."""

    def write(path, value, size=(8, 8), mode="RGB"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        Image.fromarray(np.full(shape, value, np.uint8)).save(path)

    return write
