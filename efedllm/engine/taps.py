"""Taps: numbers inside a layer range that only its computation yields and that never cross the wire. numpy only.

The tap of a position is taken from the MLP's hidden row of the range's last layer (silu(gate) * up, or gelu(fc)) as the
exact profile quantises it for the down projection: its scale, and its integers at 32 coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from efedllm.commitments.hashing import keccak
from efedllm.engine.protocol import Executor, Float32, StepItem

TAP_WIDTH = 32
"""Coordinates of a tap."""

TAP_BYTES = 8 + 2 * TAP_WIDTH
"""Canonical bytes of one position's tap: the scale, little-endian float64, then the integers, little-endian int16."""

_PER_HASH = 4


@dataclass(frozen=True, eq=False)
class Tapped:
    """What `step_with_taps` gives for one item: states as `step` does, and uint8 [n, TAP_BYTES]."""

    states: Float32
    taps: npt.NDArray[np.uint8]


class TapExecutor(Executor, Protocol):
    """An executor whose results have the same bits everywhere, so that taps can be compared."""

    def step_with_taps(self, batch: SequenceOf[StepItem]) -> list[Tapped]:
        """As `step`, which costs nothing for taps, with those of the range's last layer."""


@lru_cache(maxsize=64)
def tap_coordinates(weights_root: bytes, layer: int, width: int) -> tuple[int, ...]:
    """The 32 coordinates below `width` at which layer `layer` of the model is tapped; repeats are allowed.

    Number i is the big-endian uint64 at byte 8 * (i % 4) of keccak("EFL.tap.1" | weights_root | uint32 layer |
    uint32 i // 4), modulo `width`.
    """
    prefix = b"EFL.tap.1" + weights_root + layer.to_bytes(4, "big")
    hashes = [keccak(prefix + block.to_bytes(4, "big")) for block in range(TAP_WIDTH // _PER_HASH)]
    words = np.frombuffer(b"".join(hashes), dtype=">u8")
    return tuple(int(word) % width for word in words)


class TapCollector:
    """Collects the taps of the range's last layer while it computes one pass, block after block."""

    def __init__(self, weights_root: bytes, layer: int) -> None:
        self._root = weights_root
        self._layer = layer
        self._blocks: list[npt.NDArray[np.uint8]] = []

    def coordinates(self, width: int) -> tuple[int, ...]:
        """`tap_coordinates` of the layer, for hidden rows of `width` numbers."""
        return tap_coordinates(self._root, self._layer, width)

    def take(self, taps: npt.NDArray[np.uint8]) -> None:
        """uint8 [n, TAP_BYTES]: those of the next rows of the pass."""
        self._blocks.append(taps)

    @property
    def rows(self) -> npt.NDArray[np.uint8]:
        """uint8 [n, TAP_BYTES] of the rows taken."""
        return np.concatenate(self._blocks)
