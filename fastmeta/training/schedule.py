"""How the outer learning rate changes over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastmeta.counts import whole_number
from fastmeta.words import one_of

KINDS = ("constant", "cosine", "halving")


@dataclass(frozen=True)
class Schedule:
    """The outer learning rate as a function of the meta-steps done.

    A function of the step alone, so that a run continues bit for bit wherever it stopped.

    Args:
        kind: "constant"; "cosine", down to 0 at `steps` (Loshchilov and Hutter 2017, equation 5,
            without restarts); "halving", by half at each multiple of `steps`.
        steps: at least 1; "constant" has no use for it.

    Raises:
        ValueError: an unknown kind, or steps below 1.
    """

    kind: str = "constant"
    steps: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(one_of("schedule", self.kind, KINDS))
        whole_number("steps of a schedule", self.steps)

    def factor(self, step: int) -> float:
        """What the rate is multiplied by once `step` meta-steps are done."""
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))
        return 0.5 ** (step // self.steps) if self.kind == "halving" else 1.0
