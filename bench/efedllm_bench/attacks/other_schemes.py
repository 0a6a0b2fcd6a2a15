"""What other verification schemes would see of the same outputs, beside the network's own statistic.

Every score is larger for a more suspicious sample. Units differ: the statistic, the projection and equality give one
score per position, the sketch of largest values one per 32 positions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import keccak
from efedllm_verifier.statistic import CHUNK, MEASURED, DeviationLimits, per_position

Rows = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

PROJECTED = 32
LARGEST = 128


def statistic(sent: Rows, ours: Rows, x: Rows, limits: DeviationLimits = MEASURED) -> Scores:
    """The auditor's own, on a float32 wire."""
    return per_position(sent, ours, x, WireDtype.F32, limits)


@lru_cache(maxsize=4)
def _signs(hidden: int) -> npt.NDArray[np.float64]:
    """[hidden, PROJECTED] of +-1 / sqrt(PROJECTED), from keccak counters."""
    count = hidden * PROJECTED
    blocks = b"".join(keccak(b"projection" + i.to_bytes(4, "big")) for i in range(-(-count // 256)))
    bits = np.unpackbits(np.frombuffer(blocks, np.uint8))[:count]
    return np.asarray((bits.reshape(hidden, PROJECTED) * 2.0 - 1.0) / np.sqrt(PROJECTED), np.float64)


def projection(sent: Rows, ours: Rows, x: Rows, limits: DeviationLimits = MEASURED) -> Scores:
    """The statistic of 32 random directions: 128 bytes a position instead of the row."""
    signs = _signs(sent.shape[1])
    ours64 = ours.astype(np.float64)
    error = np.linalg.norm((sent - ours64) @ signs, axis=1)
    update = np.linalg.norm((ours64 - x) @ signs, axis=1)
    allowed = limits.tau * update + limits.rounding * np.linalg.norm(ours64 @ signs, axis=1)
    return np.asarray(error / allowed, np.float64)


def largest_values(sent: Rows, ours: Rows) -> Scores:
    """TOPLOC (arXiv 2501.16007) in outline: of each 32 positions the 128 largest values that were sent, in bf16,
    against ours at the same places: mean difference of the mantissas, a different exponent counting as 128.

    The polynomial encoding is left out, as it changes no value; the paper looks at the last hidden states of the whole
    model, this at the output of the hop.
    """
    found = []
    for start in range(0, len(sent), CHUNK):
        theirs, mine = sent[start : start + CHUNK].ravel(), ours[start : start + CHUNK].ravel()
        top = np.argpartition(-np.abs(theirs), min(LARGEST, len(theirs) - 1))[:LARGEST]
        a, b = (_bf16(values[top]) for values in (theirs, mine))
        same = (a >> 7) == (b >> 7)
        difference = np.abs((a & 127).astype(np.int64) - (b & 127).astype(np.int64))
        found.append(float(np.where(same, difference, 128).mean()))
    return np.asarray(found)


def _bf16(values: Rows) -> npt.NDArray[np.uint32]:
    """Upper 16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, np.uint32)


def inequality(sent: Rows, ours: Rows) -> Scores:
    """1 where any bit of the row differs."""
    return np.asarray(np.any(sent.view(np.uint32) != ours.view(np.uint32), axis=1), np.float64)


METHODS = ("statistic", "projection", "largest_values", "equality")


def all_scores(sent: Rows, ours: Rows, x: Rows, limits: DeviationLimits = MEASURED) -> dict[str, Scores]:
    """Every method's scores of one hop of one job; arrays are float32 [n, hidden]. `limits`: the unit of those that
    have one."""
    sent, ours, x = (np.ascontiguousarray(a, np.float32) for a in (sent, ours, x))
    return {
        "statistic": statistic(sent, ours, x, limits),
        "projection": projection(sent, ours, x, limits),
        "largest_values": largest_values(sent, ours),
        "equality": inequality(sent, ours),
    }
