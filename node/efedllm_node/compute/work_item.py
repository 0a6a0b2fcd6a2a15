"""What the batcher has to know of a job, as the job's wiring says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from efedllm.commitments.canonical import WireDtype
from efedllm.sampling.float import SamplingSpec

Inputs = npt.NDArray[Any]
"""int32 [n] token ids, or float32 [n, hidden] states."""


@dataclass(frozen=True)
class WorkSpec:
    """How a job's rows are written and its tokens chosen. `sample_from`: first position whose output is sampled, None
    for a hop without the head. `exact`: sample in integers.
    """

    dtype: WireDtype
    sample_from: int | None
    sampling: SamplingSpec
    exact: bool = False
