"""What a node and a verifier need from an engine, in numpy only."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


class Sequence(Protocol):
    """The state of one token sequence inside one engine: its own key/value cache."""

    @property
    def length(self) -> int:
        """Positions processed so far."""

    @property
    def nbytes(self) -> int:
        """Bytes of cache memory held."""

    def truncate(self, length: int) -> None:
        """Forget every position >= `length`, for replay. Raises ModelError "bad-position" beyond the present length."""


@dataclass(frozen=True, eq=False)
class StepItem:
    """Next positions of one sequence; they are appended at `sequence.length`.

    `inputs`: int32 [n] token ids when the engine starts at layer 0, else float32 [n, hidden]; n >= 1.
    """

    sequence: Sequence
    inputs: npt.NDArray[np.int32] | npt.NDArray[np.float32]


def constants_of(executor: Executor) -> bytes | None:
    """The 32 bytes that name the constants of an exact engine's arithmetic; None for one that computes in floats."""
    found: bytes | None = getattr(executor, "constants_hash", None)
    return found


def compute_of(executor: Executor) -> str:
    """The dtype that an executor computes in: "float32", "bfloat16", or "integers"."""
    if constants_of(executor) is not None:
        return "integers"
    found: str = getattr(executor, "compute", "float32")
    return found


class Executor(Protocol):
    """Runs layers [lo, hi) of a model. Synchronous and thread-confined: call it from one thread of your own."""

    @property
    def lo(self) -> int: ...
    @property
    def hi(self) -> int: ...
    @property
    def layers(self) -> int:
        """Layers of the whole model."""

    @property
    def hidden(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def max_positions(self) -> int:
        """Longest sequence the model can continue."""

    @property
    def has_embedding(self) -> bool: ...
    @property
    def has_head(self) -> bool: ...
    @property
    def weight_bytes(self) -> int:
        """Bytes of weights held in memory."""

    @property
    def whole_texts(self) -> bool:
        """Whether every sequence must come whole, in one step: an encoder's positions see what follows them."""

    def new_sequence(self) -> Sequence: ...

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        """Advance every sequence of a ragged batch (prefill and decode mixed).

        Returns float32 [n, hidden] per item, the states after the last layer of the range. Raises ModelError
        "bad-input" or "context-exceeded" before anything changes; on any error the sequences keep their lengths.
        """

    def logits(self, hidden: Float32) -> Float32:
        """Final norm and head: float32 [n, hidden] -> float32 [n, vocab]. Raises ModelError "no-head"."""

    def embed(self, ids: Int32, positions: Int32 | None = None) -> Float32:
        """Token (and, where the model has them, position) embeddings, float32 [n, hidden].

        `positions` defaults to 0..n-1. Raises ModelError "no-embedding" when the engine does not start at layer 0.
        """
