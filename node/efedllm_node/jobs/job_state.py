"""State of one job at one hop: its inbox, its messages to others, and its end."""

from __future__ import annotations

import asyncio
import os
import time
from typing import ClassVar

from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import SignedCommit, ids_bytes
from efedllm.errors import EfedError, ProtocolError
from efedllm.logs import get_logger
from efedllm.wire.messages import CommitMsg, ErrorMsg, Message
from efedllm_node.jobs import job_events as events
from efedllm_node.jobs.job_plan import Progress, own_hop, plan_job
from efedllm_node.jobs.own_commit import check_previous, make_commit
from efedllm_node.jobs.peers import Link
from efedllm_node.jobs.services import NodeServices
from efedllm_node.payments.rules import billed_tokens
from efedllm_node.payments.sessions import ServedSession
from efedllm_node.storage.records import CommittedJob, OpenedJob


class JobOver(Exception):  # noqa: N818 - no error: it ends the loop of the job
    """Raised to end the loop of a job."""


class JobCore:
    """Base of `JobHop`. `emits`: the job generates tokens; False for a text that is embedded."""

    emits: ClassVar[bool]

    def __init__(
        self, services: NodeServices, session: ServedSession, record: OpenedJob, client: Link, following: Link | None
    ) -> None:
        self.record = record
        self.id = record.job_id
        self.client = client
        self._services = services
        self._session = session
        self._following = following
        self._previous: Link | None = None
        self._first = record.hop == 0
        self._last = record.hop == record.hops - 1
        self._plan = plan_job(record, session.record.key.signer, services.facts, services.domain, services.signer)
        self._progress = Progress()
        self._inbox: asyncio.Queue[events.Event] = asyncio.Queue()
        self._overflow = False
        self._waiting_bytes = 0  # of rows in the inbox
        spec = record.spec
        self._most_bytes = record.in_row * (spec.prompt_tokens + spec.max_new_tokens)
        self._trace = services.traces.writer(self.id)
        self._prev_commit: SignedCommit | None = None
        self._log = get_logger("job").bind(job=self.id.hex()[:16], hop=record.hop)
        now = time.monotonic()
        self._moved = now
        self._paused: float | None = None
        self._client_gone: float | None = None

    def post(self, event: events.Event) -> None:
        """Queue an event. A flood ends the job instead of filling the memory."""
        rows = len(event.act.payload) if isinstance(event, events.RowsArrived) else 0
        too_many = self._inbox.qsize() >= self._services.limits.job_inbox
        if too_many or self._waiting_bytes + rows > self._most_bytes:
            self._overflow = True
            return
        self._waiting_bytes += rows
        self._inbox.put_nowait(event)

    async def _receive(self) -> events.Event:
        event = await self._inbox.get()
        if isinstance(event, events.RowsArrived):
            self._waiting_bytes -= len(event.act.payload)
        return event

    def uses(self, link: Link) -> bool:
        return link in (self.client, self._following, self._previous)

    def _deadline(self) -> float:
        limits = self._services.limits
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
        plan, services = self._plan, self._services
        if plan.following is not None and not plan.outbound.all_acknowledged:
            return
        own = own_hop(self.record, plan, self._progress, services.facts, services.domain)
        prev = ZERO32
        if self._prev_commit is not None:
            assert plan.previous is not None
            check_previous(self._prev_commit, own, plan.previous, services.domain)
            prev = self._prev_commit.commit.digest(services.domain)
        commit = make_commit(own, prev, services.clock.time.epoch)
        digest = commit.digest(services.domain)
        signed = SignedCommit(commit, services.signer.sign(digest))
        billed = self._billed(own.tokens)
        emitted = None if own.emitted is None else ids_bytes(list(own.emitted))
        await self._trace.finish()
        done = CommittedJob(signed, digest, os.urandom(32), emitted, plan.envelopes, billed, self._prev_commit)
        # From here on nothing but this commitment may ever be shown for the job: two of them cost half the stake.
        if not await services.store.finish_job(self.id, done):
            raise ProtocolError("job-ended", "The job has ended already.")
        services.sessions.bill(self._session, self.id, billed)
        message = CommitMsg(commit, signed.signature)
        try:
            if not self._last:
                await self._forward(message)
        except ProtocolError as error:
            # Our part is done and kept; the next hop gives up by itself.
            self._log.warning("commitment not delivered", reason=error.message)
        await self._tell(message)
        services.metrics.ended("done")
        self._log.info("job done", reason=self._progress.finished, positions=own.tokens)
        raise JobOver

    def _billed(self, positions: int) -> int:
        return billed_tokens(positions, self.record.spec.prompt_tokens, emits=self.emits)

    async def _end(self, status: str, billed: int, fault: str | None = None) -> None:
        """End without a commitment."""
        await self._trace.abandon()
        evidence = self._plan.envelopes
        if await self._services.store.end_job(self.id, status, self._progress.done, billed, fault, evidence):
            self._services.sessions.bill(self._session, self.id, billed)
            self._services.metrics.ended(status)
        raise JobOver

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
