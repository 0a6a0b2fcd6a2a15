"""What compressing took, beside the published model: times and memory are not part of its bytes."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

REPORT_NAME = "compression.json"


class HealReport(BaseModel):
    """KL divergence per token (encoders: relative squared error): `losses` of the steps; `before` and `after` on text
    of the calibration file that was not trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    losses: tuple[float, ...]
    before: float
    after: float


class CompressionReport(BaseModel):
    """`weights_root`: which bytes it is about. `seconds` of wall time of the run that finished, `peak_memory` in bytes:
    the largest resident size of its process; `threads` of torch."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    weights_root: str
    seconds: Annotated[float, Field(ge=0)]
    peak_memory: Annotated[int, Field(gt=0)]
    threads: Annotated[int, Field(gt=0)]
    heal: HealReport | None = None

    def save(self, directory: Path) -> None:
        (directory / REPORT_NAME).write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n")


def load_report(directory: Path, weights_root: str) -> CompressionReport | None:
    """The report of the model in `directory`; None when there is none, or it is about other weights."""
    try:
        report = CompressionReport.model_validate_json((directory / REPORT_NAME).read_text())
    except (OSError, ValidationError):
        # It says what making the model took; the model is whole without it.
        return None
    return report if report.weights_root == weights_root else None


def peak_memory() -> int:
    """Bytes: the largest resident size this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
