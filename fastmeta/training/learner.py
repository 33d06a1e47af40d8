"""What can be trained: anything that judges a batch of tasks."""

from __future__ import annotations

from typing import Any

from fastmeta.algorithms import MAML, ProtoMAML
from fastmeta.algorithms.shared_encoder import SharedEncoder

MetaLearner = MAML | ProtoMAML | SharedEncoder[Any]
