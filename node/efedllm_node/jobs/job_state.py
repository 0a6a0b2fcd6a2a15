"""What a job at one hop consists of, how it talks, and how it ends. `jobs.job` decides what happens when."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import SignedCommit, ids_bytes
from efedllm.commitments.signing import Signer
from efedllm.errors import EfedError, ProtocolError
from efedllm.logs import get_logger
from efedllm.wire.messages import CommitMsg, ErrorMsg, Message
from efedllm_node.compute.batcher import Batcher
from efedllm_node.compute.trace_files import Traces
from efedllm_node.config import Limits
from efedllm_node.epoch.chain_clock import Clock
from efedllm_node.jobs import job_events as events
from efedllm_node.jobs.admission import NodeFacts, check_previous, make_commit
from efedllm_node.jobs.equivocation_watch import Witness
from efedllm_node.jobs.job_plan import Progress, own_hop, wire
from efedllm_node.jobs.peers import Link
from efedllm_node.metrics import Metrics
from efedllm_node.payments.rules import billed_tokens
from efedllm_node.payments.sessions import Book, Entry
from efedllm_node.storage.records import Committed, JobRecord
from efedllm_node.storage.store import Store


@dataclass(frozen=True)
class Workshop:
    """What every job of a node shares. `endpoint`: where this process is registered to be reached."""

    facts: NodeFacts
    domain: Domain
    signer: Signer
    store: Store
    traces: Traces
    batcher: Batcher
    book: Book
    clock: Clock
    limits: Limits
    credit: int
    metrics: Metrics
    endpoint: str
    witness: Witness


class Over(Exception):  # noqa: N818  (not an error: the actor's way out)
    """The job has ended."""


class JobCore:
    """State of one job at one hop."""

    def __init__(self, shop: Workshop, entry: Entry, record: JobRecord, client: Link, following: Link | None) -> None:
        self.record = record
        self.id = record.job_id
        self.client = client
        self._shop = shop
        self._entry = entry
        self._following = following
        self._previous: Link | None = None
        self._first = record.hop == 0
        self._last = record.hop == record.hops - 1
        self._wiring = wire(record, entry.record.key.signer, shop.facts, shop.domain, shop.signer)
        self._progress = Progress()
        self._inbox: asyncio.Queue[events.Event] = asyncio.Queue()
        self._overflow = False
        self._waiting_bytes = 0  # of rows in the inbox
        spec = record.spec
        self._most_bytes = record.in_row * (spec.prompt_tokens + spec.max_new_tokens)
        self._trace = shop.traces.writer(self.id)
        self._prev_commit: SignedCommit | None = None
        self._log = get_logger("job").bind(job=self.id.hex()[:16], hop=record.hop)
        now = time.monotonic()
        self._moved = now
        self._paused: float | None = None
        self._client_gone: float | None = None
        entry.running[self.id] = record.spec.prompt_tokens

    def post(self, event: events.Event) -> None:
        """Queue an event. A flood ends the job instead of filling the memory."""
        rows = len(event.act.payload) if isinstance(event, events.Rows) else 0
        too_many = self._inbox.qsize() >= self._shop.limits.job_inbox
        if too_many or self._waiting_bytes + rows > self._most_bytes:
            self._overflow = True
            return
        self._waiting_bytes += rows
        self._inbox.put_nowait(event)

    async def _receive(self) -> events.Event:
        event = await self._inbox.get()
        if isinstance(event, events.Rows):
            self._waiting_bytes -= len(event.act.payload)
        return event

    def uses(self, link: Link) -> bool:
        return link in (self.client, self._following, self._previous)

    def _deadline(self) -> float:
        limits = self._shop.limits
        quiet = limits.stall_timeout if self._progress.given else limits.start_timeout
        deadline = self._moved + quiet
        if self._paused is not None:
            deadline = self._paused + limits.payment_timeout
        if self._client_gone is not None:
            deadline = min(deadline, self._client_gone + limits.client_grace)
        return deadline

    # --- the end ---

    async def _commit(self) -> None:
        """Commit once every row we sent is acknowledged: keep it, then show it."""
        wiring, shop = self._wiring, self._shop
        if wiring.following is not None and not wiring.outbound.all_acknowledged:
            return
        own = own_hop(self.record, wiring, self._progress, shop.facts, shop.domain)
        prev = ZERO32
        if self._prev_commit is not None:
            assert wiring.previous is not None
            check_previous(self._prev_commit, own, wiring.previous, shop.domain)
            prev = self._prev_commit.commit.digest(shop.domain)
        commit = make_commit(own, prev, shop.clock.time.epoch)
        digest = commit.digest(shop.domain)
        signed = SignedCommit(commit, shop.signer.sign(digest))
        billed = self._billed(own.tokens)
        emitted = None if own.emitted is None else ids_bytes(list(own.emitted))
        await self._trace.finish()
        done = Committed(signed, digest, os.urandom(32), emitted, wiring.envelopes, billed, self._prev_commit)
        # From here on nothing but this commitment may ever be shown for the job: two of them cost half the stake.
        if not await shop.store.finish_job(self.id, done):
            raise ProtocolError("job-ended", "The job has ended already.")
        shop.book.bill(self._entry, self.id, billed)
        message = CommitMsg(commit, signed.signature)
        try:
            if not self._last:
                await self._forward(message)
        except ProtocolError as error:
            # Our part is done and kept; the next hop gives up by itself.
            self._log.warning("commitment not delivered", reason=error.message)
        await self._tell(message)
        shop.metrics.ended("done")
        self._log.info("job done", reason=self._progress.finished, positions=own.tokens)
        raise Over

    def _billed(self, positions: int) -> int:
        spec = self.record.spec
        return billed_tokens(positions, spec.prompt_tokens, emits=not spec.embeds)

    async def _end(self, status: str, billed: int, fault: str | None = None) -> None:
        """End without a commitment."""
        await self._trace.abandon()
        evidence = self._wiring.envelopes
        if await self._shop.store.end_job(self.id, status, self._progress.done, billed, fault, evidence):
            self._shop.book.bill(self._entry, self.id, billed)
            self._shop.metrics.ended(status)
        raise Over

    async def _abort(self, error: EfedError, source: Link | None = None) -> None:
        """Give the job up, and tell everyone concerned but `source`."""
        self._log.warning("job aborted", code=error.code, reason=error.message)
        report = ErrorMsg.of(error, self.id)
        for link in {self.client, self._following, self._previous}:
            if link is not None and link is not source:
                await link.refuse(report.to_error(), self.id)
        billed = self._billed(self._progress.done)
        await self._end("aborted", billed, f"{error.code}: {error.message}")

    # --- sending ---

    async def _tell(self, message: Message) -> None:
        """To the client, if it is still there."""
        if self.client.closed:
            if self._client_gone is None:
                self._client_gone = time.monotonic()
            return
        try:
            await self.client.send(message)
        except ProtocolError:
            self._client_gone = time.monotonic()

    async def _forward(self, message: Message) -> None:
        """To the next hop; on the last hop that is hop 0."""
        if self._following is not None:
            await self._following.send(message)
