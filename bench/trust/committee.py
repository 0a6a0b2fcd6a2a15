"""The committee: draws, tallies, judgements of verifiers and slashes, equal to Draw, TallyWord and StakeVault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from eth_abi.abi import encode

from bench.trust.rule import BPS
from efedllm.commitments.hashing import keccak
from verifier.sampling import Verdict

T = TypeVar("T")

OK, NO_REVEAL, DEVIATED = 0, 1, 2


@dataclass(frozen=True)
class Final:
    """The verdict of a quorum about one node and epoch, in units."""

    passed: int
    failed: int
    severe: bool


@dataclass(frozen=True)
class Judgement:
    """What a verifier's epoch earned it: `outcome` as in VerifierJudged, points, and the share of its stake to burn."""

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


def final(revealed: Sequence[Verdict], drawn: int) -> Final | None:
    """The final verdict, or None without a quorum."""
    if not revealed or len(revealed) < quorum(drawn):
        return None
    passed, failed, severe = outcome(revealed)
    return Final(passed, failed, severe >= quorum(drawn))


def judge(own: Mapping[str, Verdict], finals: Mapping[str, Final | None], deviation_bps: int) -> Judgement:
    """`judgeVerifier` of one that revealed `own`: one opposite verdict costs all points of the epoch and stake once."""
    points = 0
    for node, verdict in own.items():
        decided = finals[node]
        if decided is None:
            continue
        if (verdict.failed != 0) != (decided.failed != 0):
            return Judgement(DEVIATED, 0, deviation_bps)
        points += decided.passed + decided.failed
    return Judgement(OK, points, 0)


def slash(stake: Stake, bps: int) -> tuple[Stake, int]:
    """Stake after `bps` of it burned, and the amount: rounded up, pro rata, the unbonding part rounded up."""
    amount = min(ceil_div(stake.total * bps, BPS), stake.total)
    if amount == 0:
        return stake, 0
    from_unbonding = ceil_div(amount * stake.unbonding, stake.total)
    return Stake(stake.active - (amount - from_unbonding), stake.unbonding - from_unbonding), amount
