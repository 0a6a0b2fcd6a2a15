"""The committee: draws, tallies, judgements of verifiers, slashes; equal to Draw, TallyWord, TapWord and StakeVault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from eth_abi.abi import encode

from efedllm.commitments.hashing import keccak
from efedllm_bench.trust.rule import BPS
from efedllm_verifier.verdict import Verdict

T = TypeVar("T")

OK, NO_REVEAL, DEVIATED, TAP_DIFFERS = 0, 1, 2, 3


@dataclass(frozen=True)
class Said:
    """What a member revealed about one node. `tap`: fingerprint of the digest of its taps, a uint32; 0 = no taps.

    A tap beside a failure counts for nothing.
    """

    verdict: Verdict
    tap: int = 0


@dataclass(frozen=True)
class Final:
    """What a quorum says about one node and epoch, in units. `tap`: the agreed fingerprint, 0 = none."""

    passed: int
    failed: int
    severe: bool
    tap: int = 0

    @property
    def units(self) -> int:
        """Points of a verifier that agrees."""
        return self.passed + self.failed


@dataclass(frozen=True)
class Judgement:
    """The result of a verifier's epoch: `outcome` as in VerifierJudged, points, and the share of its stake to burn."""

    outcome: int
    points: int
    slash_bps: int


@dataclass(frozen=True)
class Stake:
    """One operator's stake in the vault, wei."""

    active: int
    unbonding: int = 0

    @property
    def total(self) -> int:
        return self.active + self.unbonding


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def quorum(members: int) -> int:
    """Reveals that make a verdict final: two thirds of those drawn, rounded up."""
    return ceil_div(2 * members, 3)


def draw(seed: bytes, node: str, seats: Sequence[str], size: int) -> tuple[str, ...]:
    """`Draw.draw`: up to `size` distinct seats other than the node; addresses compare without case."""
    pool = [seat for seat in seats if seat.lower() != node.lower()]
    size = min(size, len(pool))
    inner = keccak(encode(["bytes32", "address"], [seed, node]))
    return tuple(shuffled(inner, pool, size))


def shuffled(inner: bytes, seats: Sequence[T], size: int) -> list[T]:
    """The first `size` steps of the contract's Fisher-Yates shuffle; `inner` is keccak(abi.encode(seed, node))."""
    pool, n = list(seats), len(seats)
    members = []
    for i in range(size):
        # abi.encode of two words is their concatenation.
        j = i + int.from_bytes(keccak(inner + i.to_bytes(32))) % (n - i)
        members.append(pool[j])
        pool[j] = pool[i]
    return members


def outcome(revealed: Sequence[Verdict]) -> tuple[int, int, int]:
    """Lower medians of the passed and of the failed units, and the number of severe verdicts; zeros without reveals."""
    if not revealed:
        return 0, 0, 0
    middle = (len(revealed) - 1) // 2
    return (
        sorted(verdict.passed for verdict in revealed)[middle],
        sorted(verdict.failed for verdict in revealed)[middle],
        sum(verdict.severe for verdict in revealed),
    )


def fingerprint(digest: bytes) -> int:
    """`TapWord.fingerprint`: the lower 32 bits of a tap digest of 32 bytes."""
    return int.from_bytes(digest[-4:])


def agreed(revealed: Sequence[Said], drawn: int) -> int:
    """`TapWord.agreed`: the fingerprint other than 0 that a quorum of those drawn revealed with a pass; 0 = none."""
    shown = Counter(said.tap for said in revealed if said.tap and not said.verdict.failed)
    # A quorum is more than half, so that at most one fingerprint has it.
    return next((tap for tap, votes in shown.items() if votes >= quorum(drawn)), 0)


def final(revealed: Sequence[Said], drawn: int) -> Final | None:
    """The final verdict and fingerprint, or None without a quorum."""
    if not revealed or len(revealed) < quorum(drawn):
        return None
    passed, failed, severe = outcome([said.verdict for said in revealed])
    return Final(passed, failed, severe >= quorum(drawn), agreed(revealed, drawn))


def judge(own: Mapping[str, Said], finals: Mapping[str, Final | None], deviation_bps: int) -> Judgement:
    """`judgeVerifier` of a verifier that revealed `own`.

    A verdict opposite to the median of the revealed verdicts deviates. A pass without the agreed fingerprint, where the
    median passes, costs as much. Either one costs all points of the epoch, and stake once, however many there are. The
    outcome is DEVIATED where both occur.
    """
    points, found = 0, OK
    for node, said in own.items():
        decided = finals[node]
        if decided is None:
            continue
        failed = said.verdict.failed != 0
        if failed != (decided.failed != 0):
            return Judgement(DEVIATED, 0, deviation_bps)
        if not failed and decided.tap not in (0, said.tap):
            found = TAP_DIFFERS
        points += decided.units
    return Judgement(OK, points, 0) if found == OK else Judgement(found, 0, deviation_bps)


def slash(stake: Stake, bps: int) -> tuple[Stake, int]:
    """Stake after `bps` of it burned, and the amount: rounded up, pro rata, the unbonding part rounded up."""
    amount = min(ceil_div(stake.total * bps, BPS), stake.total)
    if amount == 0:
        return stake, 0
    from_unbonding = ceil_div(amount * stake.unbonding, stake.total)
    return Stake(stake.active - (amount - from_unbonding), stake.unbonding - from_unbonding), amount
