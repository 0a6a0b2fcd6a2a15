"""What an audited leaf weighs, how leaves add up to a verdict, and how a verdict is packed for the contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FULL_UNITS = 10  # one audit of full weight; the contract counts in tenths of it
FEE_REF_TOKENS = 16  # a job of at least so many positions weighs a full audit, so that tiny wash jobs earn little trust
PASSED_CAP = 255
FAILED_CAP = 127


@dataclass(frozen=True)
class Verdict:
    """Audited weight of one node in one epoch, in tenths of a full audit. `severe` asks the contract to slash."""

    passed: int
    failed: int
    severe: bool

    def __post_init__(self) -> None:
        if not (0 <= self.passed <= PASSED_CAP and 0 <= self.failed <= FAILED_CAP):
            raise ValueError(f"verdict out of range: passed {self.passed}, failed {self.failed}")


def leaf_units(tokens: int, fee_ref_tokens: int = FEE_REF_TOKENS) -> int:
    """Weight of a leaf of `tokens` positions: FULL_UNITS * min(1, tokens / fee_ref_tokens), at least 1."""
    return max(1, min(FULL_UNITS, FULL_UNITS * tokens // fee_ref_tokens))


def withheld_units(count: int, rate_ppm: int) -> int:
    """Weight of an unreadable batch of `count` leaves: the expected number of its audits, each at full weight."""
    expected = -(-count * rate_ppm * FULL_UNITS // 1_000_000)
    return max(FULL_UNITS, min(FAILED_CAP, expected))


def tally(leaves: Iterable[tuple[int, bool, bool]]) -> Verdict:
    """Sum (units, failed, severe) of the audited leaves, clamped to what a packed verdict holds."""
    passed = failed = 0
    severe = False
    for units, leaf_failed, leaf_severe in leaves:
        if leaf_failed:
            failed += units
        else:
            passed += units
        severe = severe or (leaf_failed and leaf_severe)
    return Verdict(min(passed, PASSED_CAP), min(failed, FAILED_CAP), severe)


def pack_verdict(verdict: Verdict) -> int:
    """severe << 15 | failed << 8 | passed, a uint16."""
    return int(verdict.severe) << 15 | verdict.failed << 8 | verdict.passed
