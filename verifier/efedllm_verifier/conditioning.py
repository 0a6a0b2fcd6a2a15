"""Measures how much our own recomputation of a float hop varies, row by row.

Rows can be constructed on which honest machines disagree. When the update of a layer nearly cancels the residual, only
rounding errors remain, and the next norm scales them up to the size of an ordinary row (`efedllm bench attacks` finds
such rows by gradient descent: number 24). The node that sends such rows is at fault, but the next hop, which computes
honestly from them, is not. So before a hop is accused, its input is perturbed by float32 rounding. A deviation as large
as the resulting change of the output proves nothing.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efedllm.engine.protocol import Executor, Float32, StepItem

SAMPLES = 4
"""Number of perturbations of hidden states. On rows searched for this, honest machines differed by at most 2.7 times
the largest of the four responses."""

STEP = 2.0**-23
"""Perturbation relative to a number plus its row's root mean square: the rounding of float32 products and sums."""

HALF_STEP = 2.0**-9
"""The same for bfloat16."""

PIECES = (7, 11)
"""Positions per piece. Token ids cannot be perturbed, so a sequence of them is recomputed in pieces of each size. At
any position of 14 prompts, honest machines differed by at most 3.3 times the larger of the two responses. With pieces
of 5 and 7 positions it was 8 times, because matrix products of some sizes give nearly the same bits."""

_TAG = b"EFL.spread.1"


def own_spread(
    executor: Executor, given: NDArray[Any], ours: Float32, seed: bytes, step: float = STEP
) -> NDArray[np.float64]:
    """Largest distance of each row of `ours`, our output [n, hidden] for `given`, from repeated computations; [n].

    given: ids int32 [n] or states float32 [n, hidden]. seed: the leaf's hash, which depends on the node's salt, so that
    whoever chose `given` did not know it; it determines the signs of the perturbations. step: their relative size. The
    result is infinite where a perturbed input has no finite output, and zero for an encoder's ids, which are always
    computed whole. Costs one pass for each perturbation or piece size. Raises ModelError.
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
    """Outputs for a perturbed input, minus the perturbation itself, which the residual stream passes on."""
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
