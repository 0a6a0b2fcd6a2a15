"""How often a committee falls to colluding seats: the contract's draw against the hypergeometric formula."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, sqrt

import numpy as np

from efedllm.commitments.hashing import keccak
from efedllm_bench.trust import rule as r
from efedllm_bench.trust.committee import quorum, shuffled

SIZES = (5, 7, 15, 21)  # the contract draws at most 15; 21 is the design's large committee


@dataclass(frozen=True)
class Capture:
    """One committee size and share of colluding seats. Probabilities over draws."""

    size: int
    seats: int
    malicious: int
    majority: float  # they hold the median: a cheat passes, an honest node fails
    majority_formula: float
    two_thirds: float  # they alone are a quorum and call a failure severe: an honest node is slashed
    two_thirds_formula: float
    blocked: float  # the others are no quorum without them: nothing is decided
    blocked_formula: float
    worst_z: float  # largest deviation of a simulated share from its formula, in standard errors


def tail(seats: int, malicious: int, size: int, least: int) -> float:
    """Hypergeometric P(at least `least` of `size` drawn seats are among the `malicious` of `seats`)."""
    ways = sum(comb(malicious, x) * comb(seats - malicious, size - x) for x in range(least, size + 1))
    return ways / comb(seats, size)


def draws(seats: int, count: int, size: int) -> r.Ints:
    """Positions drawn by `Draw.draw` for `count` nodes of one seed: (count, size), from seats 0 .. seats - 1."""
    everyone = range(seats)
    return np.array([shuffled(keccak(b"seed" + i.to_bytes(8)), everyone, size) for i in range(count)], dtype=np.int64)


def measure(seats: int, count: int, shares: tuple[float, ...], sizes: tuple[int, ...] = SIZES) -> list[Capture]:
    """Capture rates for every size and share of colluding seats. A smaller committee is a prefix of a larger one."""
    drawn = draws(seats, count, max(sizes))
    result = []
    for size in sizes:
        for share in shares:
            malicious = round(share * seats)
            held = (drawn[:, :size] < malicious).sum(axis=1)
            marks = (size // 2 + 1, quorum(size), size - quorum(size) + 1)
            seen = [float((held >= mark).mean()) for mark in marks]
            formula = [tail(seats, malicious, size, mark) for mark in marks]
            z = max(_z(a, b, count) for a, b in zip(seen, formula, strict=True))
            result.append(
                Capture(size, seats, malicious, seen[0], formula[0], seen[1], formula[1], seen[2], formula[2], z)
            )
    return result


def _z(seen: float, expected: float, count: int) -> float:
    """Deviation in standard errors; with fewer than five expected hits the count is too small to say, and 0."""
    if expected * count < 5:
        return 0.0
    return abs(seen - expected) / sqrt(expected * (1 - expected) / count)
