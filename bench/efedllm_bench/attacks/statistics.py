"""The statistics of the report: intervals, waiting times, areas under curves. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efedllm.commitments.hashing import keccak
from efedllm_verifier.lot import is_sampled

# Two-sided 95 %.
_Z = 1.959963984540054
PPM = 1_000_000
_MOST = 100_000

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A share with its 95 % Wilson interval."""

    hits: int
    trials: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.hits / self.trials


def wilson(hits: int, trials: int) -> Interval:
    """E. B. Wilson's score interval (1927) for `hits` of `trials`, trials >= 1."""
    share = hits / trials
    scale = 1 + _Z**2 / trials
    middle = (share + _Z**2 / (2 * trials)) / scale
    half = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2)) / scale
    # The interval of 0 of n begins at 0 and that of n of n ends at 1, whatever rounding says.
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == trials else min(1.0, middle + half)
    return Interval(hits, trials, low, high)


def rule_of_three(trials: int) -> float:
    """Upper 95 % bound on a rate of which `trials` independent trials showed no case."""
    return 3.0 / trials


def expected_jobs(rate: float, detection: float, cheating: float = 1.0) -> float:
    """Mean number of jobs up to and including the first caught one: 1 / (rate * cheating share * detection)."""
    chance = rate * cheating * detection
    return math.inf if chance == 0 else 1 / chance


def simulated_jobs(rate_ppm: int, detection: float, cheating: float, runs: int, salt: bytes) -> float:
    """The same by the network's own lot: leaves are hashes, `is_sampled` draws them, a draw is caught with
    probability `detection`. Mean over `runs`; infinite when a run was not caught within 100,000 cheated jobs.

    The gaps between cheated jobs are geometric, from numpy with a seed of `salt`.
    """
    generator = np.random.default_rng(int.from_bytes(keccak(salt)[:8]))
    seed = keccak(b"seed" + salt)
    total = number = 0
    for _ in range(runs):
        start = number
        while True:
            number += 1
            if number - start > _MOST:
                return math.inf
            leaf = keccak(salt + number.to_bytes(8, "big"))
            if is_sampled(seed, leaf, rate_ppm) and generator.random() < detection:
                break
        cheated = number - start
        total += cheated if cheating == 1 else int(generator.geometric(cheating, cheated).sum())
    return total / runs


def auc(honest: Scores, attack: Scores) -> float:
    """P(an attack scores above an honest sample), ties counted half."""
    everything = np.concatenate([honest, attack])
    order = np.argsort(everything, kind="stable")
    ranks = np.empty(len(everything))
    ranks[order] = np.arange(1, len(everything) + 1)
    # Ties share the mean of their ranks.
    _, inverse, counts = np.unique(everything, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, ranks) / counts
    total = means[inverse][len(honest) :].sum()
    n, m = len(honest), len(attack)
    return float((total - m * (m + 1) / 2) / (n * m))


def roc(honest: Scores, attack: Scores) -> tuple[list[float], list[float]]:
    """False and true positive rates over every threshold, ascending."""
    cuts = np.unique(np.concatenate([honest, attack]))[::-1]
    false = 1 - np.searchsorted(np.sort(honest), cuts, side="left") / len(honest)
    true = 1 - np.searchsorted(np.sort(attack), cuts, side="left") / len(attack)
    return [0.0, *map(float, false)], [0.0, *map(float, true)]


def beyond_honest(honest: Scores, attack: Scores) -> float:
    """Share of the attack's samples above every honest one."""
    return float(np.mean(attack > honest.max()))
