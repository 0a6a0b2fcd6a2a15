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
    matrices as published, `bytes_saved` the fraction of their 16-bit size that is gone."""

    original: _Sha256
    window: Annotated[int, Field(ge=2)]
    bytes: Annotated[int, Field(gt=0)]
    bytes_saved: _Finite
    texts: Annotated[tuple[TextQuality, ...], Field(min_length=1)]

    def hash(self) -> _Bytes:
        """sha256 of the canonical JSON (sorted keys, no spaces, ASCII), registered with the model on chain."""
        document = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).digest()
