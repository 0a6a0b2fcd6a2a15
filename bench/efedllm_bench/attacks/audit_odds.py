"""Arithmetic of the lot: cheating now and then, guessing what is audited, grinding for leaves that are not.

No node and no verifier runs here, and nothing of it counts as an attack that was detected. Made-up leaves go through
the network's own rule: a leaf is audited iff the keccak of the epoch's seed and the leaf falls below the rate. The seed
is fixed after the leaves were posted, so that nothing a node can see tells the two apart: the contracts and their tests
see to that.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import asdict, dataclass
from typing import Any

from efedllm.commitments.hashing import keccak, keccak_each
from efedllm_bench.attacks.statistics import PPM, Interval, expected_jobs, simulated_jobs, wilson
from efedllm_verifier.lot import FULL_UNITS, is_sampled, leaf_units

RATES_PPM = (20_000, 50_000, 500_000)
SHARES = (0.001, 0.01, 0.1, 1.0)
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class WaitingTime:
    """Jobs until caught, at one audit rate and share of cheated jobs, with a detection of one audit."""

    rate_ppm: int
    cheating: float
    expected: float
    simulated: float


def partial_cheat(detection: float, runs: int) -> list[WaitingTime]:
    """Attack 13: cheating on some of the jobs only."""
    found = []
    for rate in RATES_PPM:
        for share in SHARES:
            salt = f"partial {rate} {share}".encode()
            simulated = simulated_jobs(rate, detection, share, runs, salt)
            found.append(WaitingTime(rate, share, expected_jobs(rate / PPM, detection, share), simulated))
    return found


def share_audited(rate_ppm: int, leaves: list[bytes], seed: bytes) -> Interval:
    """How many of the leaves the lot takes."""
    return wilson(sum(is_sampled(seed, leaf, rate_ppm) for leaf in leaves), len(leaves))


def audit_aware(rate_ppm: int, count: int) -> Interval:
    """Attack 14: a node that cheats on the leaves it believes safe, by everything it knows when it commits: their
    hashes, under a seed of its own guess. The share of them that is audited all the same.
    """
    leaves = [keccak(b"aware" + i.to_bytes(4, "big")) for i in range(count)]
    guess, seed = keccak(b"guessed seed"), keccak(b"real seed")
    return share_audited(rate_ppm, [leaf for leaf in leaves if not is_sampled(guess, leaf, rate_ppm)], seed)


def grind_salt(rate_ppm: int, leaves: int, tries: int) -> Interval:
    """Attack 23: `tries` salts in all, of which the `leaves` that a guessed seed likes best are posted. The share of
    them that the real seed audits.

    Taking the best of many salts for each of many jobs chooses among the same hashes: whatever subset a guess picks,
    the real seed draws each of it at the rate.
    """
    guess, seed = keccak(b"guessed seed"), keccak(b"fixed after the posting")
    kept: list[tuple[bytes, bytes]] = []
    for start in range(0, tries, _AT_ONCE):
        salted = keccak_each([b"grind" + t.to_bytes(4, "big") for t in range(start, min(start + _AT_ONCE, tries))])
        liked = keccak_each([guess + leaf for leaf in salted])
        kept = heapq.nlargest(leaves, itertools.chain(kept, zip(liked, salted, strict=True)))
    return share_audited(rate_ppm, [leaf for _, leaf in kept], seed)


def last_revealer(rate_ppm: int, count: int) -> Interval:
    """Attack 23: who may withhold the last salt chooses between two seeds. Share audited of the leaves of one node when
    it takes, each epoch, the seed under which fewer of its ten leaves are drawn."""
    hits = trials = 0
    for epoch in range(count // 10):
        name = epoch.to_bytes(4, "big")
        leaves = [keccak(b"last" + name + bytes([i])) for i in range(10)]
        drawn = [sum(is_sampled(keccak(bit + name), leaf, rate_ppm) for leaf in leaves) for bit in (b"0", b"1")]
        hits += min(drawn)
        trials += len(leaves)
    return wilson(hits, trials)


def padding(tokens: int) -> float:
    """Attack 16: weight of a job of so few positions, made to earn trust cheaply, in full audits."""
    return leaf_units(tokens) / FULL_UNITS


def report(*, quick: bool) -> dict[str, Any]:
    """Every game as JSON."""
    count, tries, runs = (4000, 1 << 16, 100) if quick else (20_000, 1 << 20, 400)
    rate = 50_000
    return {
        "what": "arithmetic of the lot over made-up leaves; no node or verifier runs, not counted among detections",
        "rate_ppm": rate,
        "partial_cheat": [asdict(item) for item in partial_cheat(1.0, runs)],
        "audit_aware": asdict(audit_aware(rate, count)),
        "grind_salt": {"salts_tried": tries, **asdict(grind_salt(rate, count, tries))},
        "last_revealer_of_two_seeds": asdict(last_revealer(rate, count)),
        "weight_of_a_one_token_job": padding(1),
    }
