"""How far our own recomputation of a float hop strays from itself, row by row.

Rows can be made on which honest machines do not agree: where what a layer adds nearly cancels what it is added to, the
rounding of both is all that is left, and the next norm makes it as large as any row (`efedllm bench attacks` finds such
rows by gradient descent: number 24). Who sends them is guilty of rows of its own; the next hop, which computed honestly
from what it was sent, must not be. So before a hop is accused, its input is moved by the rounding of float32, and what
that does to the output says how much of a deviation proves nothing.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efedllm.engine.protocol import Executor, Float32, StepItem

SAMPLES = 4
"""Ways that an input is moved. Honest machines strayed by at most 2.7 times the largest of four responses, on rows
searched for that."""

STEP = 2.0**-23
"""Of a number and of its row's root mean square: what products and sums in float32 round by."""

HALF_STEP = 2.0**-9
"""The same in bfloat16."""

PIECES = (7, 11)
"""Token ids cannot be moved: a sequence of them is computed again in pieces of so many positions. Honest machines
strayed by at most 3.3 times the larger of the two responses at any position of 14 prompts (by 8 times with pieces of 5
and 7, as products of matrices give nearly the same bits for some sizes)."""

_TAG = b"EFL.spread.1"


def own_spread(
    executor: Executor, given: NDArray[Any], ours: Float32, seed: bytes, step: float = STEP
) -> NDArray[np.float64]:
    """Largest distance of each row of `ours`, our output [n, hidden] for `given`, from other computations of it; [n].

    given: ids int32 [n] or states float32 [n, hidden]. `seed`: what nobody knew who could choose `given`, the leaf's
    hash with the node's salt in it; it chooses how states are moved, by `step`. Infinite where a moved input has no
    finite output; zero for an encoder's ids, which are computed whole. One pass for each. Raises ModelError.
    """
    spread = np.zeros(len(ours))
    if executor.has_embedding and executor.whole_texts:
        return spread
    for sample in range(len(PIECES) if executor.has_embedding else SAMPLES):
        if executor.has_embedding:
            response = _in_pieces(executor, given, PIECES[sample])
        else:
            response = _moved(executor, given, _signs(given.shape, seed, sample), step)
        distance = np.linalg.norm(response - ours, axis=1)
        spread = np.maximum(spread, np.where(np.isfinite(distance), distance, np.inf))
    return spread


def _in_pieces(executor: Executor, ids: NDArray[Any], size: int) -> NDArray[np.float64]:
    sequence = executor.new_sequence()
    parts = [executor.step([StepItem(sequence, ids[at : at + size])])[0] for at in range(0, len(ids), size)]
    return np.concatenate(parts).astype(np.float64)


def _moved(executor: Executor, given: NDArray[Any], signs: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Outputs for a moved input, less the move itself, which the residual stream hands on."""
    wide = given.astype(np.float64)
    size = np.sqrt(np.mean(wide**2, axis=1, keepdims=True))
    largest = float(np.finfo(np.float32).max)
    moved = np.clip(wide + signs * step * (np.abs(wide) + size), -largest, largest).astype(np.float32)
    output = executor.step([StepItem(executor.new_sequence(), moved)])[0]
    return np.asarray(output - (moved.astype(np.float64) - wide), np.float64)


def _signs(shape: tuple[int, ...], seed: bytes, sample: int) -> NDArray[np.float64]:
    """-1 and 1, [n, hidden]."""
    count = math.prod(shape)
    bits = np.frombuffer(hashlib.shake_256(_TAG + seed + bytes([sample])).digest(-(-count // 8)), np.uint8)
    return np.asarray(np.unpackbits(bits, count=count).reshape(shape) * 2.0 - 1.0)
