"""What the engine has to know of a job."""

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
    """How a job's rows are encoded and its tokens chosen.

    `sample_from`: first position whose output is sampled; None on a hop that samples nothing.
    """

    dtype: WireDtype
    sample_from: int | None
    sampling: SamplingSpec
