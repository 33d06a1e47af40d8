"""Images on disk, and trainings that are interrupted."""

import signal

import numpy as np
import pytest

from fastmeta.training import Run

SIZE = 12


def pictures(classes=20, images=6, channels=1, seed=0):
    """Classes are bright squares at different places, under noise; [classes, images, H, W, C]."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 80, (classes, images, SIZE, SIZE, channels))
    for c in range(classes):
        row, column = generator.integers(0, SIZE - 4, 2)
        pixels[c, :, row : row + 4, column : column + 4] += 150
    return pixels.astype(np.uint8)


def write_npz(path, pixels):
    np.savez(path, images=pixels, names=np.array([f"c{i:02d}" for i in range(len(pixels))]))
    return path


def train_until(fastmeta, step, *line):
    """As if Ctrl-C had come at that step."""
    advance = Run.advance

    def counting(run):
        loss = advance(run)
        if run.step == step:
            signal.raise_signal(signal.SIGINT)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "advance", counting)
        assert fastmeta(*line)[0] == 130
