"""Two engines of one range side by side, over inputs made of sha256. numpy only."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.engine.protocol import Executor, Float32, StepItem

_POSITIONS = 48
_DECODED = 3


def same_bits(left: Executor, right: Executor) -> bool:
    """Whether both give the same bytes: a prefill, then positions one by one, and the logits where they have a head."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(_outputs(left), _outputs(right), strict=True))


def largest_deviation(left: Executor, right: Executor) -> float:
    """Of any row, relative to what the layers add to it, or to the row of logits. Infinite for what is not finite."""
    given = _inputs(left)
    states = left.embed(given) if left.has_embedding else given
    worst = 0.0
    a, b = _outputs(left), _outputs(right)
    for place, (ours, theirs) in enumerate(zip(a, b, strict=True)):
        x = states if place == 0 else np.zeros_like(ours)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(ours - x, axis=1)
        worst = max(worst, float(np.where(np.isfinite(ratio), ratio, np.inf).max()))
    return worst


def words(label: bytes, count: int) -> npt.NDArray[np.uint32]:
    """`count` numbers from sha256(label | counter)."""
    data = b"".join(hashlib.sha256(label + i.to_bytes(4, "big")).digest() for i in range(-(-count // 8)))
    return np.frombuffer(data, ">u4")[:count].astype(np.uint32)


def _outputs(engine: Executor) -> list[Float32]:
    """States [n, hidden] and, of an engine with a head, logits [n, vocab]."""
    inputs, sequence = _inputs(engine), engine.new_sequence()
    cuts = [0, *range(len(inputs) - _DECODED, len(inputs) + 1)]
    states = np.concatenate([engine.step([StepItem(sequence, inputs[start:end])])[0] for start, end in pairwise(cuts)])
    return [states, engine.logits(states)] if engine.has_head else [states]


def _inputs(engine: Executor) -> npt.NDArray[Any]:
    """Token ids int32 [n], or states float32 [n, hidden] of up to 4 in magnitude."""
    count = min(_POSITIONS, engine.max_positions)
    if engine.has_embedding:
        return (words(b"ids", count) % engine.vocab).astype(np.int32)
    numbers = words(b"states", count * engine.hidden).astype(np.int64) % 4001 - 2000
    return (numbers / 500).astype(np.float32).reshape(count, engine.hidden)
