"""Decides what a verifier does next, as a pure function of the state of one epoch and of the chain's clock.

Work of epoch e is judged in epoch e+1: seed, audits and commit in its first third, reveal in the second, finalise and
judge in the last. Points are claimed from e+2. An action is planned again until the state shows its effect, so a crash
between an action and its record only repeats the action.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

from efedllm.chain.types import ChainTime


class Phase(IntEnum):
    COMMIT = 0
    REVEAL = 1
    TALLY = 2


class AuditProgress(Enum):
    """Progress of our audit of one node."""

    NONE = "none"
    RUNNING = "running"
    DONE = "done"
    ABSTAINED = "abstained"


@dataclass(frozen=True)
class NodeWork:
    """A node with batches in the epoch. `drawn` is empty until the seed is fixed; the rest is its tally on chain."""

    node: str
    drawn: tuple[str, ...] = ()
    audit: AuditProgress = AuditProgress.NONE
    reveals: int = 0
    finalized: bool = False
    quorum: bool = False


@dataclass(frozen=True)
class EpochState:
    """All that decisions about one epoch depend on.

    seats: verifiers seated in the epoch, in registry order. armed_block: block whose hash becomes the seed, None when
    not armed. prepared: salt and verdicts are on disk. committed, revealed: our own, on chain. In the tally phase also:
    revealed_by: (verifier, nodes as it revealed them); committed_by: who committed; judged: whom somebody judged.
    """

    epoch: int
    me: str
    seats: tuple[str, ...] = ()
    nodes: tuple[NodeWork, ...] = ()
    armed_block: int | None = None
    seed: bytes | None = None
    prepared: bool = False
    committed: bool = False
    revealed: bool = False
    revealed_by: tuple[tuple[str, tuple[str, ...]], ...] = ()
    committed_by: frozenset[str] = frozenset()
    judged: frozenset[str] = frozenset()

    @property
    def assigned(self) -> tuple[NodeWork, ...]:
        """The nodes for which this verifier is drawn."""
        return tuple(node for node in self.nodes if self.me in node.drawn)


@dataclass(frozen=True)
class Timing:
    """stagger: delay between two verifiers' turns at an action that anyone may take, as a share of the epoch.
    commit_by: share of the commit phase after which unfinished audits are left out. seed_lifetime: number of blocks for
    which a block hash stays readable on chain."""

    stagger: float = 1 / 60
    commit_by: float = 0.75
    seed_lifetime: int = 256


DEFAULT_TIMING = Timing()


@dataclass(frozen=True)
class ArmSeed:
    epoch: int


@dataclass(frozen=True)
class FixSeed:
    epoch: int


@dataclass(frozen=True)
class AuditNode:
    epoch: int
    node: str


@dataclass(frozen=True)
class Commit:
    """Store salt and verdicts when `prepared` is false, then send the commitment."""

    epoch: int
    nodes: tuple[str, ...]
    prepared: bool


@dataclass(frozen=True)
class Reveal:
    epoch: int


@dataclass(frozen=True)
class Finalize:
    epoch: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Judge:
    epoch: int
    verifier: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    epochs: tuple[int, ...]


VerifierAction = ArmSeed | FixSeed | AuditNode | Commit | Reveal | Finalize | Judge | Claim


def plan(state: EpochState, time: ChainTime, timing: Timing = DEFAULT_TIMING) -> list[VerifierAction]:
    """Actions due now for the work of `state.epoch`; empty outside the epoch that judges it."""
    if time.epoch != state.epoch + 1 or not state.nodes or state.me not in state.seats:
        return []
    phase = Phase(time.phase)
    if phase is Phase.COMMIT:
        return _seed(state, time, timing) if state.seed is None else _audit_and_commit(state, time, timing)
    if phase is Phase.REVEAL:
        return [Reveal(state.epoch)] if state.prepared and state.committed and not state.revealed else []
    return _tally(state, time, timing)


def plan_claims(unclaimed: Iterable[int], time: ChainTime, limit: int = 16) -> list[VerifierAction]:
    """Claim the epochs with unpaid points that are due (two behind or more), oldest first, `limit` a transaction."""
    due = sorted(epoch for epoch in unclaimed if epoch + 2 <= time.epoch)
    return [Claim(tuple(due[:limit]))] if due else []


def turn(state: EpochState) -> int:
    """Our index in the order of actions that anyone may take; it rotates with the epoch, to share the gas."""
    return (state.seats.index(state.me) + state.epoch) % len(state.seats)


def _seed(state: EpochState, time: ChainTime, timing: Timing) -> list[VerifierAction]:
    place = turn(state)
    stale = state.armed_block is not None and time.block > state.armed_block + timing.seed_lifetime
    if state.armed_block is None or stale:
        return [ArmSeed(state.epoch)] if time.fraction >= place * timing.stagger else []
    # The target's hash is readable one block after it; later places leave the earlier ones a block each.
    return [FixSeed(state.epoch)] if time.block > state.armed_block + place else []


def _audit_and_commit(state: EpochState, time: ChainTime, timing: Timing) -> list[VerifierAction]:
    if state.committed or not state.assigned:
        return []
    late = 3 * time.fraction >= timing.commit_by
    done = tuple(work.node for work in state.assigned if work.audit is AuditProgress.DONE)
    settled = all(work.audit in (AuditProgress.DONE, AuditProgress.ABSTAINED) for work in state.assigned)
    if state.prepared or (done and (settled or late)):
        return [Commit(state.epoch, done, state.prepared)]
    return [AuditNode(state.epoch, work.node) for work in state.assigned if work.audit is AuditProgress.NONE]


def _tally(state: EpochState, time: ChainTime, timing: Timing) -> list[VerifierAction]:
    if time.fraction < 2 / 3 + turn(state) * timing.stagger:
        return []
    open_nodes = tuple(work.node for work in state.nodes if work.reveals and not work.finalized)
    if open_nodes:
        return [Finalize(state.epoch, open_nodes)]
    due = {verifier: _judged_on(state, verifier) for verifier in state.seats if verifier not in state.judged}
    return [Judge(state.epoch, verifier, nodes) for verifier, nodes in due.items() if nodes]


def _judged_on(state: EpochState, verifier: str) -> tuple[str, ...]:
    """The nodes for which a verifier is judged: those it revealed verdicts on, else those it owed a verdict on."""
    for revealer, nodes in state.revealed_by:
        if revealer == verifier:
            return nodes
    owed = tuple(work for work in state.nodes if verifier in work.drawn)
    if verifier in state.committed_by:
        return tuple(work.node for work in owed)
    return tuple(work.node for work in owed if work.quorum)
