"""One job at one hop: an actor that takes events in order, so that nothing in it needs a lock.

What generation and embedding have in common is here; `generation_hop` and `embedding_hop` add what differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from typing import Literal, assert_never

import numpy as np

from efedllm.commitments.canonical import decode
from efedllm.commitments.messages import ids_bytes
from efedllm.errors import EfedError, ProtocolError
from efedllm.wire.messages import CancelMsg, FinishMsg, PayMsg
from efedllm_node.compute.engine_step import Output
from efedllm_node.compute.trace_files import IN, OUT, TAPS
from efedllm_node.compute.work_item import Inputs
from efedllm_node.jobs import job_events as events
from efedllm_node.jobs.boundary_streams import Inbound
from efedllm_node.jobs.job_state import JobCore, JobOver
from efedllm_node.jobs.peers import Link
from efedllm_node.payments.rules import payment_due

Reason = Literal["eos", "length", "cancelled"]
"""Why a job ended, as FINISH says it."""


class JobHop(JobCore, ABC):
    """`post` may be called from anywhere on the event loop; everything else happens in `run`."""

    # --- what the kinds of jobs do differently ---

    @abstractmethod
    async def _offer(self, inputs: Inputs) -> None:
        """Take the next positions: hold them, and feed the engine with what may run."""

    @abstractmethod
    async def _emit(self, result: Output, chunk: bytes) -> None:
        """Last hop: publish a result. `chunk`: hash of the leaves of its payload."""

    @abstractmethod
    def _end_position(self) -> int:
        """The first position that the previous hop must not send yet."""

    @abstractmethod
    def _takes_ack(self, link: Link) -> bool:
        """Whether an acknowledgement that came over `link` closes our outbound boundary."""

    @abstractmethod
    def _check_cancelled(self, held: int) -> None:
        """ProtocolError when the previous hop must not stop while `held` of its rows wait here."""

    @abstractmethod
    def _due_reason(self, claimed: str) -> Reason | None:
        """Hop 0: the reason for which the job is over if it ran to its end; None when it did not."""

    # --- events ---

    async def run(self) -> None:
        """Take events until the job has ended, one way or another."""
        services = self._services
        services.batcher.open(self.id, self._plan.work, lambda result: self.post(events.Computed(result)))
        try:
            while True:
                try:
                    await self._turn()
                except ProtocolError as error:
                    await self._abort(error)
                except EfedError as error:
                    self._log.error("job failed", code=error.code, reason=error.message)
                    await self._abort(error)
        except JobOver:
            pass
        except Exception:  # noqa: BLE001 - one job's crash must not take the node along
            self._log.exception("job crashed")
            with contextlib.suppress(JobOver):
                await self._abort(ProtocolError("internal", "The node failed.", "Choose another node."))
        finally:
            services.batcher.close(self.id)
            self._session.running.pop(self.id, None)

    async def _turn(self) -> None:
        try:
            async with asyncio.timeout(max(0.0, self._deadline() - time.monotonic())):
                event = await self._receive()
        except TimeoutError:
            await self._expired()
            return
        if self._overflow:
            raise ProtocolError("flood", "More messages arrived for this job than any job needs.")
        try:
            await self._handle(event)
        except ProtocolError as error:
            raise self._blamed(event, error) from error
        self._moved = time.monotonic()

    async def _handle(self, event: events.Event) -> None:
        match event:
            case events.StartArrived():
                await self._on_start()
            case events.RowsArrived():
                await self._on_rows(event)
            case events.AckArrived():
                await self._on_ack(event)
            case events.Computed():
                await self._on_computed(event)
            case events.VoucherTaken():
                await self._feed()
            case events.StopAsked():
                await self._on_stop(event)
            case events.FinishArrived():
                await self._on_finish(event)
            case events.CommitArrived():
                await self._on_commit(event)
            case events.LinkLost():
                await self._on_link_lost(event)
            case events.JobFailed():
                await self._abort(event.error, event.source)
            case _:
                assert_never(event)

    def _blamed(self, event: events.Event, error: ProtocolError) -> ProtocolError:
        """The error with the name of the node whose message caused it."""
        hop = self._plan.previous
        if isinstance(event, events.AckArrived):
            hop = self._plan.following
        elif not isinstance(event, events.RowsArrived | events.FinishArrived | events.CommitArrived):
            return error
        return error if hop is None else ProtocolError(error.code, f"Node {hop.node}: {error.message}", error.hint)

    async def _expired(self) -> None:
        now, limits = time.monotonic(), self._services.limits
        if self._client_gone is not None and now >= self._client_gone + limits.client_grace:
            self._client_gone = None
            await self._client_is_gone()
        elif self._paused is not None and now >= self._paused + limits.payment_timeout:
            raise ProtocolError(
                "payment-required",
                f"No sufficient voucher came within {limits.payment_timeout:g} s.",
                "Send vouchers as the job goes on.",
            )
        elif self._paused is None and not self._progress.given and now >= self._moved + limits.start_timeout:
            raise ProtocolError("start-timeout", f"The job was not started within {limits.start_timeout:g} s.")
        elif self._paused is None and self._progress.given and now >= self._moved + limits.stall_timeout:
            raise ProtocolError("stalled", f"Nothing happened for {limits.stall_timeout:g} s.", "Try another route.")

    # --- rows in ---

    async def _on_start(self) -> None:
        if not self._first or self._progress.started:
            raise ProtocolError("out-of-order", "START goes to hop 0, once.")
        self._progress.started = True
        if not self._progress.stopping:
            assert self.record.prompt is not None
            await self._offer(np.frombuffer(self.record.prompt, dtype="<i4").astype(np.int32))

    def _inbound_of(self, link: Link) -> Inbound:
        """The stream of the rows that the previous hop sends over `link`."""
        inbound, hop = self._plan.inbound, self._plan.previous
        if inbound is None or hop is None or not link.is_hop(hop):
            raise ProtocolError("out-of-order", "These rows do not come from the previous hop.")
        self._previous = link
        return inbound

    async def _on_rows(self, event: events.RowsArrived) -> None:
        """Rows of the previous hop: check and keep them, acknowledge them, compute them."""
        act, inbound = event.act, self._inbound_of(event.link)
        if self._progress.stopping or self._progress.finished:
            raise ProtocolError("out-of-order", "Rows after the end of the job.")
        inbound.check(act, self._end_position(), self.record.spec.prompt_tokens)
        rows = decode(act.payload, act.dtype, act.dim)
        ack = inbound.accept(act, self._plan.in_tree.append(act.payload))
        self._trace.append(IN, act.payload)
        await event.link.send(ack)
        await self._offer(rows)

    async def _feed(self) -> None:
        """Hand to the engine what is paid for; ask for payment otherwise."""
        progress, session = self._progress, self._session
        while progress.held:
            inputs = progress.held[0]
            account = session.account(self._services.credit, self.id)
            due = payment_due(account, self.record.spec.prompt_tokens, progress.given, len(inputs))
            if due is not None and not progress.stopping:
                if self._paused is None:
                    self._paused = time.monotonic()
                    self._services.metrics.pauses.inc()
                    await self._tell(PayMsg(self.id, due.due, due.paid, due.tokens))
                return
            progress.held.popleft()
            progress.given += len(inputs)
            session.running[self.id] = max(progress.given, self.record.spec.prompt_tokens)
            self._services.batcher.submit(self.id, inputs)
        self._paused = None

    # --- rows out ---

    async def _on_computed(self, event: events.Computed) -> None:
        result = event.result
        if not isinstance(result, Output):
            raise result
        progress, plan = self._progress, self._plan
        if self._first:
            row = ids_bytes(result.inputs)
            plan.in_tree.append(row)
            self._trace.append(IN, row)
        chunk = plan.out_tree.append(result.payload)
        self._trace.append(OUT, result.payload)
        if plan.taps is not None:
            plan.taps.append(result.taps)
            self._trace.append(TAPS, result.taps)
        progress.done += result.n
        self._services.metrics.positions.inc(result.n)
        if self._last:
            await self._emit(result, chunk)
        else:
            await self._forward(plan.outbound.emit(result.payload, result.n, chunk))
        if progress.stopping:
            await self._stop_if_idle()

    async def _on_ack(self, event: events.AckArrived) -> None:
        if not self._takes_ack(event.link):
            return
        self._plan.outbound.acknowledged(event.ack)
        if self._prev_commit is not None or (self._first and self._progress.finished):
            await self._commit()

    # --- the end ---

    async def _on_stop(self, event: events.StopAsked) -> None:
        progress = self._progress
        if event.source == "previous":
            progress.stopping = True
            held = progress.held_positions
            self._check_cancelled(held)
            # The previous hop has counted these rows: a few that are held are computed, paid for or not.
            if held > self._services.credit:
                raise ProtocolError("payment-required", "The job was cancelled with unpaid rows.", "Send vouchers.")
            await self._feed()
            await self._stop_if_idle()
        elif self._first and not progress.stopping and not progress.finished:
            progress.stopping = True
            progress.held.clear()
            progress.given -= self._services.batcher.withdraw(self.id)
            self._paused = None
            await self._stop_if_idle()

    async def _stop_if_idle(self) -> None:
        """Once nothing is in flight here, pass the stop on; at the last hop it becomes FINISH."""
        progress = self._progress
        if progress.busy or progress.finished or progress.stop_passed:
            return
        if self._last:
            await self._finish("cancelled")
            return
        progress.stop_passed = True
        await self._forward(CancelMsg(self.id, "cancelled"))
        if not self._first and progress.done == 0:
            await self._end("cancelled", 0)

    async def _finish(self, reason: Reason) -> None:
        """Last hop: say that the job is over."""
        progress = self._progress
        progress.finished = reason
        message = FinishMsg(self.id, reason, len(progress.tokens))
        await self._tell(message)
        if self._following is not None:
            await self._forward(message)
        if progress.done == 0:
            await self._end("cancelled", 0)
        if self._first:
            await self._commit()

    async def _on_finish(self, event: events.FinishArrived) -> None:
        """Hop 0: the last hop says that the job is over. It may say so only when it is."""
        progress, message = self._progress, event.message
        if not self._first or self._last:
            raise ProtocolError("out-of-order", "FINISH goes to hop 0.")
        due = self._due_reason(message.reason)
        allowed = due if due is not None else ("cancelled" if progress.stopping else None)
        if message.reason != allowed or message.tokens != len(progress.tokens) or progress.given != progress.done:
            raise ProtocolError("out-of-order", f"FINISH {message.reason} after {message.tokens} tokens is not due.")
        progress.finished = message.reason
        if progress.done == 0:
            await self._end("cancelled", 0)
        await self._commit()

    async def _on_commit(self, event: events.CommitArrived) -> None:
        before = self._plan.previous
        if self._prev_commit is not None and before is not None:
            await self._services.equivocation_watch.compare(before.node, self._prev_commit, event.signed)
        if self._first or self._prev_commit is not None or self._progress.given != self._progress.done:
            raise ProtocolError("out-of-order", "This commitment is not due.")
        if self._last and self._progress.finished is None:
            raise ProtocolError("out-of-order", "The previous hop committed before the job was over.")
        self._prev_commit = event.signed
        await self._commit()

    async def _on_link_lost(self, event: events.LinkLost) -> None:
        if event.link is self.client:
            self._client_gone = time.monotonic()
            return
        node = event.link.remote.node
        await self._abort(
            ProtocolError("peer-lost", f"The connection to node {node} broke.", "Choose another route."), event.link
        )

    async def _client_is_gone(self) -> None:
        """After the grace: hop 0 stops the job, the last hop asks it to. Others cannot, and need not."""
        self._log.info("client gone")
        if self._first:
            await self._on_stop(events.StopAsked("client"))
        elif self._last:
            await self._forward(CancelMsg(self.id, "the client is gone"))
