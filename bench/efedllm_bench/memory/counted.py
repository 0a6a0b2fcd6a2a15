"""Products that are really computed, tile by tile, from arrays that count every number fetched and stored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from efedllm_bench.memory.traffic import Moved

Matrix = npt.NDArray[np.float64]


class Slow:
    """Slow memory. What is read is a copy: fast memory. Counts elements over all arrays placed in it."""

    def __init__(self) -> None:
        self._reads = 0
        self._writes = 0

    @property
    def moved(self) -> Moved:
        return Moved(self._reads, self._writes)

    def read(self, array: Matrix, rows: slice, cols: slice) -> Matrix:
        """A part of `array`, at most up to its end."""
        part = array[rows, cols].copy()
        self._reads += part.size
        return part

    def write(self, array: Matrix, rows: slice, cols: slice, part: Matrix) -> None:
        """Store `part`; it must have the shape of its place."""
        if array[rows, cols].shape != part.shape:
            raise ValueError("a part does not fit its place")
        array[rows, cols] = part
        self._writes += part.size


def _steps(length: int, tile: int) -> list[slice]:
    return [slice(at, min(at + tile, length)) for at in range(0, length, tile)]


def naive(slow: Slow, a: Matrix, b: Matrix) -> Matrix:
    """A B, two numbers fetched for every product."""
    out = np.zeros((len(a), b.shape[1]))
    everything = slice(0, b.shape[0])
    for i in _steps(len(a), 1):
        for j in _steps(b.shape[1], 1):
            slow.write(out, i, j, slow.read(a, i, everything) @ slow.read(b, everything, j))
    return out


def tiled(slow: Slow, a: Matrix, b: Matrix, tile: int) -> Matrix:
    """A B with square tiles."""
    out = np.zeros((len(a), b.shape[1]))
    for i in _steps(len(a), tile):
        for j in _steps(b.shape[1], tile):
            held = np.zeros((i.stop - i.start, j.stop - j.start))
            for k in _steps(b.shape[0], tile):
                held += slow.read(a, i, k) @ slow.read(b, k, j)
            slow.write(out, i, j, held)
    return out


def factored(slow: Slow, a: Matrix, v: Matrix, s: Matrix, u: Matrix, tile: int) -> Matrix:
    """((A V) s) U with the middle in slow memory; s [1, rank]. It is applied before the middle is stored."""
    middle = np.zeros((len(a), v.shape[1]))
    for i in _steps(len(a), tile):
        for j in _steps(v.shape[1], tile):
            held = np.zeros((i.stop - i.start, j.stop - j.start))
            for k in _steps(v.shape[0], tile):
                held += slow.read(a, i, k) @ slow.read(v, k, j)
            slow.write(middle, i, j, held * slow.read(s, slice(0, 1), j))
    return tiled(slow, middle, u, tile)


def fused(slow: Slow, a: Matrix, v: Matrix, s: Matrix, u: Matrix, tile: int) -> Matrix:
    """((A V) s) U, `tile` rows at a time, their middle in fast memory."""
    out = np.zeros((len(a), u.shape[1]))
    inside, rank, outside = slice(0, len(v)), slice(0, v.shape[1]), slice(0, u.shape[1])
    for i in _steps(len(a), tile):
        middle = slow.read(a, i, inside) @ slow.read(v, inside, rank) * slow.read(s, slice(0, 1), rank)
        slow.write(out, i, outside, middle @ slow.read(u, rank, outside))
    return out


def attention_naive(slow: Slow, q: Matrix, k: Matrix, v: Matrix, tile: int) -> Matrix:
    """softmax(Q K^T) V with the scores in slow memory, rewritten row by row."""
    scores = tiled(slow, q, np.ascontiguousarray(k.T), tile)
    keys = slice(0, len(k))
    for i in _steps(len(q), 1):
        row = slow.read(scores, i, keys)
        raised = np.exp(row - row.max())
        slow.write(scores, i, keys, raised / raised.sum())
    return tiled(slow, scores, v, tile)


def attention_tiled(slow: Slow, q: Matrix, k: Matrix, v: Matrix, tile: int) -> Matrix:
    """The same with a running maximum and sum per query: scores never leave fast memory."""
    out = np.zeros_like(q)
    everything = slice(0, q.shape[1])
    for i in _steps(len(q), tile):
        query = slow.read(q, i, everything)
        highest = np.full((len(query), 1), -np.inf)
        total = np.zeros((len(query), 1))
        held = np.zeros((len(query), v.shape[1]))
        for j in _steps(len(k), tile):
            scores = query @ slow.read(k, j, everything).T
            higher = np.maximum(highest, scores.max(1, keepdims=True))
            raised, shrunk = np.exp(scores - higher), np.exp(highest - higher)
            total = total * shrunk + raised.sum(1, keepdims=True)
            held = held * shrunk + raised @ slow.read(v, j, everything)
            highest = higher
        slow.write(out, i, everything, held / total)
    return out
