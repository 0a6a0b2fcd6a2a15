"""Reads the chain into the frozen state that `plan` decides on. Values that cannot change any more are read once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from efedllm.chain.client import Chain
from efedllm.chain.types import BatchInfo, ChainEvent, ChainTime
from efedllm.commitments.hashing import ZERO32
from efedllm_verifier.plan import AuditProgress, EpochState, NodeWork, Phase

_NO_REVEAL = 1  # VerifierJudged.outcome of a missed duty


@dataclass
class _Known:
    """What was read about an epoch and cannot change any more."""

    batches: tuple[BatchInfo, ...] = ()
    seats: tuple[str, ...] = ()
    seed: bytes | None = None
    drawn: dict[str, tuple[str, ...]] = field(default_factory=dict)
    committed: bool = False
    revealed: bool = False


class ChainView:
    """The chain as the verifier `me` sees it."""

    def __init__(self, chain: Chain, me: str) -> None:
        self._chain = chain
        self._contracts = chain.contracts
        self._me = me
        self._known: dict[int, _Known] = {}
        self._worthless: set[int] = set()

    async def epoch_state(
        self, epoch: int, time: ChainTime, audits: Mapping[str, AuditProgress], prepared: bool
    ) -> EpochState:
        """State of the work of `epoch`, which `time` lies one epoch after. `audits`, `prepared`: our own progress."""
        known = self._known.setdefault(epoch, _Known())
        for old in [other for other in self._known if other < epoch - 1]:
            del self._known[old]
        armed: int | None = None
        if known.seed is None:
            known.batches = tuple(await self._chain.batches(epoch))
            if not known.batches:
                return EpochState(epoch, self._me)
            known.seats = tuple(await self._contracts.seat_registry.seats_of(epoch))
            known.seed = await self._seed(epoch, known)
            armed = await self._contracts.seat_registry.armed_block(epoch) or None
        if known.seed is not None:
            await self._refresh_own(epoch, known)
        nodes = await self._nodes(epoch, known, audits)
        state = EpochState(
            epoch,
            self._me,
            known.seats,
            nodes,
            armed,
            known.seed,
            prepared,
            known.committed,
            known.revealed,
        )
        return await self._with_tally(state, known) if time.phase == Phase.TALLY and known.seed is not None else state

    def batches(self, epoch: int, node: str) -> tuple[BatchInfo, ...]:
        """The node's batches of an observed epoch, in chain order."""
        return tuple(batch for batch in self._known[epoch].batches if batch.node == node)

    async def unclaimed(self, time: ChainTime) -> frozenset[int]:
        """Epochs, due by `time`, for which we were given points and have not been paid."""
        judged = await self._chain.history("VerifierCommittee", "VerifierJudged")
        paid = {
            event.args["epoch"]
            for event in await self._chain.history("RewardPool", "RewardClaimed")
            if event.args["account"] == self._me and event.args["kind"] == 1
        }
        earned = {
            event.args["epoch"] for event in judged if event.args["verifier"] == self._me and event.args["points"] > 0
        }
        due = [epoch for epoch in earned - paid - self._worthless if epoch + 2 <= time.epoch]
        amounts = await asyncio.gather(*(self._contracts.reward_pool.claimable(epoch, self._me) for epoch in due))
        # Rewards of a due epoch are fixed: an epoch with nothing to claim now never has anything to claim.
        self._worthless |= {epoch for epoch, amount in zip(due, amounts, strict=True) if not amount}
        return frozenset(due) - self._worthless

    async def _seed(self, epoch: int, known: _Known) -> bytes | None:
        """The seed, once every batch of the nodes that it is for has been read.

        A server may know the newest state and miss the newest logs. Without one of a node's batches our audit would
        cover fewer leaves than the others', and our tap digest would be another one.
        """
        seed = await self._chain.seed(epoch)
        if seed is None:
            return None
        nodes = tuple(dict.fromkeys(batch.node for batch in known.batches))
        # Read before the logs: a batch posted in between is then in the logs and not required.
        seqs = await asyncio.gather(*(self._contracts.commitment_log.next_seq(node) for node in nodes))
        known.batches = tuple(await self._chain.batches(epoch))
        later = await self._chain.batches(epoch + 1)
        return seed if none_missing((*known.batches, *later), dict(zip(nodes, seqs, strict=True))) else None

    async def _refresh_own(self, epoch: int, known: _Known) -> None:
        if not known.committed:
            commitment = await self._contracts.verifier_committee.commitment_of(epoch, self._me)
            known.committed = commitment != ZERO32
        if known.committed and not known.revealed:
            known.revealed = await self._contracts.verifier_committee.has_revealed(epoch, self._me)

    async def _nodes(self, epoch: int, known: _Known, audits: Mapping[str, AuditProgress]) -> tuple[NodeWork, ...]:
        addresses = tuple(dict.fromkeys(batch.node for batch in known.batches))
        if known.seed is not None:
            await self._draw(epoch, known, addresses)
        return tuple(
            NodeWork(address, known.drawn.get(address, ()), audits.get(address, AuditProgress.NONE))
            for address in addresses
        )

    async def _draw(self, epoch: int, known: _Known, addresses: tuple[str, ...]) -> None:
        for address in addresses:
            if address not in known.drawn:
                known.drawn[address] = tuple(await self._chain.drawn(epoch, address))

    async def _with_tally(self, state: EpochState, known: _Known) -> EpochState:
        """Add what finalising and judging need; nodes that others revealed about count even without batches."""
        events = [
            event
            for event in await self._chain.history("VerifierCommittee", "Committed", "Revealed", "VerifierJudged")
            if event.args["epoch"] == state.epoch
        ]
        revealed = {e.args["verifier"]: tuple(e.args["nodes"]) for e in events if e.name == "Revealed"}
        known_nodes = {work.node for work in state.nodes}
        extra = tuple(dict.fromkeys(n for nodes in revealed.values() for n in nodes if n not in known_nodes))
        await self._draw(state.epoch, known, extra)
        works = [*state.nodes, *(NodeWork(address, known.drawn[address]) for address in extra)]
        return EpochState(
            epoch=state.epoch,
            me=state.me,
            seats=state.seats,
            nodes=tuple(await asyncio.gather(*(self._tally(state.epoch, work) for work in works))),
            armed_block=state.armed_block,
            seed=state.seed,
            prepared=state.prepared,
            committed=state.committed,
            revealed=state.revealed,
            revealed_by=tuple(revealed.items()),
            committed_by=frozenset(e.args["verifier"] for e in events if e.name == "Committed"),
            judged=_judged(events, set(revealed)),
        )

    async def _tally(self, epoch: int, work: NodeWork) -> NodeWork:
        tally = await self._contracts.verifier_committee.tally_of(epoch, work.node)
        return NodeWork(work.node, work.drawn, work.audit, tally.reveals, tally.finalized, tally.quorum)


def none_missing(posted: Iterable[BatchInfo], next_seq: Mapping[str, int]) -> bool:
    """Whether `posted` holds every batch of each node from its first one there up to `next_seq`, without gaps."""
    seqs: dict[str, set[int]] = {node: set() for node in next_seq}
    for batch in posted:
        seqs.setdefault(batch.node, set()).add(batch.seq)
    return all(seqs[node] and seqs[node] >= set(range(min(seqs[node]), bound)) for node, bound in next_seq.items())


def _judged(events: list[ChainEvent], revealed: set[str]) -> frozenset[str]:
    """Whom a further judgement cannot change. One who revealed may have been judged for a missed duty only."""
    return frozenset(
        event.args["verifier"]
        for event in events
        if event.name == "VerifierJudged"
        and (event.args["outcome"] != _NO_REVEAL or event.args["verifier"] not in revealed)
    )
