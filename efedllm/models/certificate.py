"""The quality certificate of a published model: what compression cost, measured against the original."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# The certificate has a field of this name.
_Bytes = bytes
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


def _is_none(value: object) -> bool:
    return value is None


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextQuality(_Strict):
    """Figures on one text, over `tokens` predicted tokens.

    `kl`: mean KL divergence of the published model's distribution from the original's, in nats; `top1`: fraction of
    positions at which both think the same token likeliest. Neither model saw more than `window` tokens.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    sha256: _Sha256
    tokens: Annotated[int, Field(gt=0)]
    perplexity: _Positive
    perplexity_original: _Positive
    kl: _Finite
    top1: Annotated[float, Field(ge=0.0, le=1.0)]

    @property
    def increase(self) -> float:
        """Of the perplexity, as a fraction of the original's."""
        return self.perplexity / self.perplexity_original - 1


class Certificate(_Strict):
    """`original`: sha256 over the sha256 of the original's weight files, by name. `bytes` are those of the layers'
    matrices as published, `bytes_saved` the fraction of their 16-bit size that is gone.

    How it was made: `method`, `budget` asked for, `heal` steps, `calibration` sha256 of the text used; `ranks` of the
    matrices that have factors; `seconds` of wall time and `peak_memory` (largest resident size, bytes) of compressing,
    where that was noted. Fields that do not apply are left out.
    """

    original: _Sha256
    window: Annotated[int, Field(ge=2)]
    bytes: Annotated[int, Field(gt=0)]
    bytes_saved: _Finite
    texts: Annotated[tuple[TextQuality, ...], Field(min_length=1)]
    method: Annotated[str | None, Field(max_length=40, exclude_if=_is_none)] = None
    budget: Annotated[float | None, Field(gt=0.0, le=1.0, exclude_if=_is_none)] = None
    heal: Annotated[int, Field(ge=0, exclude_if=lambda steps: steps == 0)] = 0
    calibration: Annotated[_Sha256 | None, Field(exclude_if=_is_none)] = None
    ranks: Annotated[dict[str, Annotated[int, Field(gt=0)]], Field(exclude_if=lambda ranks: not ranks)] = {}
    seconds: Annotated[float | None, Field(ge=0.0, allow_inf_nan=False, exclude_if=_is_none)] = None
    peak_memory: Annotated[int | None, Field(gt=0, exclude_if=_is_none)] = None

    def hash(self) -> _Bytes:
        """sha256 of the canonical JSON (sorted keys, no spaces, ASCII), registered with the model on chain."""
        document = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).digest()
