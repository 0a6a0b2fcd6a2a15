"""What the batcher has to know of a job, as the job's wiring says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from efedllm.commitments.canonical import WireDtype
from efedllm.sampling.float import SamplingSpec

Inputs = npt.NDArray[Any]
"""int32 [n] token ids, or float32 [n, hidden] states."""

Feed = Callable[[int, Inputs], Inputs]
"""(position of the first, inputs) to inputs of the same shape. A pass may be repeated, and gives the same again."""


@dataclass(frozen=True)
class WorkSpec:
    """How a job's rows are written and its tokens chosen. `sample_from`: first position whose output is sampled, None
    for a hop without the head. `exact`: sample in integers. `feed`: what the engine gets for the rows that arrived.
    """

    dtype: WireDtype
    sample_from: int | None
    sampling: SamplingSpec
    exact: bool = False
    feed: Feed | None = None
