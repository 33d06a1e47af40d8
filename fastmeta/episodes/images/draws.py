"""Drawing without replacement, for many rows at once."""

from __future__ import annotations

import numpy as np


def distinct(unit: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The first M numbers of a random order of ``range(size)``, for each of B rows.

    The work is M * M * B / 2, whatever the sizes are: no row is shuffled as a whole.

    Args:
        unit: [B, M], uniform in [0, 1).
        sizes: [B] integers, at least M.

    Returns:
        [M, B], of the smallest unsigned dtype that holds the sizes: adding bools is fastest there.

    Equivalent to::

        for row in range(B):
            left = list(range(sizes[row]))
            result[:, row] = [left.pop(int(u * len(left))) for u in unit[row]]
    """
    count = unit.shape[1]
    left = sizes - np.arange(count)[:, None]
    # Ranks among the numbers left at that draw (a Lehmer code).
    drawn = np.multiply(unit.T, left, order="C").astype(np.min_scalar_type(sizes.max()))
    for i in reversed(range(count - 1)):
        later = drawn[i + 1 :]
        later += later >= drawn[i]
    return drawn
