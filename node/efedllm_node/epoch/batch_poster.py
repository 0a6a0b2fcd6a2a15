"""Posting the epoch's commitments in batches. The plan is pure; every step is safe to repeat after a crash.

A batch is kept (number, epoch, root, leaves) before its transaction is sent. Whether that transaction was mined is
then read from the chain, never remembered, so no batch is posted twice and no leaf is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efedllm.chain import Chain, ChainTime
from efedllm.commitments.leaves import batch_root, hop_leaf
from efedllm.errors import ChainError
from efedllm.logs import get_logger
from efedllm_node.config import Policy
from efedllm_node.metrics import NodeMetrics
from efedllm_node.storage.records import BatchRecord, PendingLeaf
from efedllm_node.storage.store import NodeStore

MAX_BATCH = 1024  # leaves; more go into the next batch. Auditors read at most 64 MiB, prompts included


@dataclass(frozen=True)
class BatchView:
    """Input of `next_step`. `landed`: the planned batch is on chain, in the epoch that its root names."""

    time: ChainTime
    next_seq: int
    planned: BatchRecord | None
    landed: bool
    leaf_epochs: tuple[int, ...]
    posted_epoch: int
    draining: bool


@dataclass(frozen=True)
class Plan:
    """Keep a new batch of the leaves at these places."""

    seq: int
    epoch: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Send:
    """Send the planned batch's transaction, maybe again."""

    batch: BatchRecord


@dataclass(frozen=True)
class Confirm:
    """The planned batch is on chain."""

    batch: BatchRecord


@dataclass(frozen=True)
class Release:
    """The planned batch is not and will not be valid on chain: free its leaves."""

    batch: BatchRecord


@dataclass(frozen=True)
class GiveUp:
    """The leaves at these places are too old for any batch."""

    places: tuple[int, ...]


Step = Plan | Send | Confirm | Release | GiveUp | None


def next_step(view: BatchView, policy: Policy) -> Step:
    """The next thing to do, None when there is nothing (yet).

    A batch root names its epoch, so a transaction is only sent while it will probably be mined in that epoch; mined
    later it reverts, and the leaves go into another batch.
    """
    time, planned = view.time, view.planned
    in_time = time.fraction < policy.post_until
    if planned is not None:
        if view.next_seq > planned.seq:
            return Confirm(planned) if view.landed else Release(planned)
        if planned.epoch != time.epoch or planned.seq != view.next_seq:
            return Release(planned)
        return Send(planned) if in_time else None
    oldest = time.epoch - policy.max_lag
    late = tuple(i for i, epoch in enumerate(view.leaf_epochs) if epoch < oldest)
    if late:
        return GiveUp(late)
    # More leaves than one batch holds: those of the epoch before are lost unless they follow at once.
    urgent = any(epoch < time.epoch for epoch in view.leaf_epochs)
    due = view.draining or (time.fraction >= policy.post_at and (view.posted_epoch < time.epoch or urgent))
    # The clock is a little behind: a commitment of the epoch after it may exist already.
    places = tuple(i for i, epoch in enumerate(view.leaf_epochs) if epoch <= time.epoch)[:MAX_BATCH]
    if not places or not due or not in_time:
        return None
    return Plan(view.next_seq, time.epoch, places)


class BatchPoster:
    """Carries out the steps of `next_step`."""

    def __init__(self, chain: Chain, store: NodeStore, policy: Policy, metrics: NodeMetrics) -> None:
        self._chain = chain
        self._store = store
        self._policy = policy
        self._metrics = metrics
        self._node = chain.account_address
        self._log = get_logger("batch_poster")

    async def tick(self, time: ChainTime, draining: bool) -> bool:
        """Do what is due. True when nothing of ours waits to be posted. Raises ChainError: try again later."""
        for _ in range(8):
            leaves = await self._store.pending_leaves()
            planned = await self._store.planned()
            if planned is None and not leaves:
                return True
            view = await self._view(time, planned, leaves, draining)
            step = next_step(view, self._policy)
            if step is None:
                return False
            await self._carry_out(step, leaves, time)
        return False

    async def _view(
        self, time: ChainTime, planned: BatchRecord | None, leaves: Sequence[PendingLeaf], draining: bool
    ) -> BatchView:
        next_seq = await self._chain.contracts.commitment_log.next_seq(self._node)
        landed = False
        if planned is not None and next_seq > planned.seq:
            landed = await self._chain.contracts.commitment_log.is_committed(
                self._node, planned.seq, planned.root, planned.count, planned.epoch
            )
        return BatchView(
            time=time,
            next_seq=next_seq,
            planned=planned,
            landed=landed,
            leaf_epochs=tuple(leaf.epoch for leaf in leaves),
            posted_epoch=await self._store.last_posted_epoch(),
            draining=draining,
        )

    async def _carry_out(self, step: Step, leaves: Sequence[PendingLeaf], time: ChainTime) -> None:
        match step:
            case Plan():
                chosen = [leaves[i] for i in step.places]
                root = batch_root(
                    self._node, step.epoch, step.seq, [hop_leaf(leaf.digest, leaf.salt) for leaf in chosen]
                )
                await self._store.plan(step.seq, step.epoch, root, [leaf.job_id for leaf in chosen])
            case Send():
                await self._send(step.batch)
            case Confirm():
                await self._store.mark_posted(step.batch.number, time.timestamp)
                self._metrics.batches.inc()
                self._log.info("batch posted", seq=step.batch.seq, epoch=step.batch.epoch, leaves=step.batch.count)
            case Release():
                self._log.warning("batch did not make it into its epoch", seq=step.batch.seq, epoch=step.batch.epoch)
                await self._store.supersede(step.batch.number)
            case GiveUp():
                late = [leaves[i].job_id for i in step.places]
                self._log.error("commitments too old for any batch", jobs=[job.hex() for job in late])
                await self._store.mark_late(late)

    async def _send(self, batch: BatchRecord) -> None:
        """Post; the next look at the chain tells whether it arrived."""
        try:
            await self._chain.contracts.commitment_log.post(batch.epoch, batch.seq, batch.root, batch.count)
        except ChainError as error:
            # The number is taken: by this very batch, if an earlier attempt got through. Or the epoch is over.
            if error.code not in ("revert:WrongSequence", "revert:WrongEpoch"):
                raise
