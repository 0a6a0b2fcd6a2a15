"""One job at one hop: an actor that takes events in order, so that nothing in it needs a lock."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from efedllm.commitments.canonical import decode
from efedllm.commitments.messages import ids_bytes
from efedllm.errors import EfedError, ProtocolError
from efedllm.wire.messages import ActMsg, CancelMsg, FinishMsg, PayMsg
from efedllm_node.compute.batcher import Output
from efedllm_node.compute.trace_files import IN, OUT, TAPS
from efedllm_node.compute.work_item import Inputs
from efedllm_node.jobs import job_events as events
from efedllm_node.jobs.admission import ended
from efedllm_node.jobs.job_plan import token_chunk, token_row
from efedllm_node.jobs.job_state import JobCore, JobOver, NodeServices
from efedllm_node.jobs.peers import Link
from efedllm_node.payments.rules import payment_due


class Job(JobCore):
    """See the module. `post` may be called from anywhere on the event loop; everything else happens in `run`."""

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
            await self._handlers[type(event)](self, event)
        except ProtocolError as error:
            raise self._blamed(event, error) from error
        self._moved = time.monotonic()

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

    async def _on_started(self, _event: events.StartArrived) -> None:
        if not self._first or self._progress.started:
            raise ProtocolError("out-of-order", "START goes to hop 0, once.")
        self._progress.started = True
        if not self._progress.stopping:
            assert self.record.prompt is not None
            await self._offer(np.frombuffer(self.record.prompt, dtype="<i4").astype(np.int32))

    async def _on_rows(self, event: events.RowsArrived) -> None:
        act, inbound = event.act, self._plan.inbound
        hop = self._plan.previous
        if inbound is None or hop is None or not event.link.is_hop(hop):
            raise ProtocolError("out-of-order", "These rows do not come from the hop before.")
        self._previous = event.link
        if self._first:
            await self._token_in(act, event.link)
            return
        spec, progress = self.record.spec, self._progress
        if progress.stopping or progress.finished:
            raise ProtocolError("out-of-order", "Rows after the end of the job.")
        end = spec.most_positions
        if self._last:
            # Nobody can have fed a token that was not sampled yet.
            end = min(end, spec.prompt_tokens + len(progress.tokens))
        rows: list[Inputs] = []

        def hashed(payload: bytes) -> bytes:
            rows.append(decode(payload, act.dtype, act.dim))
            return self._plan.in_tree.append(payload)

        ack = inbound.accept(act, inbound.expected(end, spec.prompt_tokens), hashed)
        self._trace.append(IN, act.payload)
        await event.link.send(ack)
        await self._offer(rows[0])

    async def _token_in(self, act: ActMsg, link: Link) -> None:
        """Hop 0: the last hop sampled a token."""
        spec, progress, inbound = self.record.spec, self._progress, self._plan.inbound
        assert inbound is not None
        # Only the token after the last position that we fed can have been sampled.
        end = progress.done + 1 if progress.done >= spec.prompt_tokens else 0
        ack = inbound.accept(
            act, inbound.expected(end, spec.prompt_tokens), lambda row: token_chunk(self.id, act.from_pos, row)
        )
        token = int(decode(act.payload, act.dtype, 1)[0, 0])
        if not 0 <= token < self._services.facts.vocab:
            raise ProtocolError("bad-token", f"Token {token} is not in the vocabulary.")
        await link.send(ack)
        progress.tokens.append(token)
        if ended(token, len(progress.tokens), spec.max_new_tokens, spec.eos_token) is None and not progress.stopping:
            await self._offer(np.array([token], dtype=np.int32))

    async def _offer(self, inputs: Inputs) -> None:
        held, spec = self._progress.held, self.record.spec
        held.append(inputs)
        if spec.embeds:
            # An encoder takes the text whole, in however many pieces the hop before sends it.
            if sum(map(len, held)) < spec.prompt_tokens:
                return
            whole = np.concatenate(held)
            held.clear()
            held.append(whole)
        await self._feed()

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

    async def _on_paid(self, _event: events.VoucherTaken) -> None:
        await self._feed()

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
        if not self._last:
            await self._forward(plan.outbound.emit(result.payload, result.n, chunk))
        elif self.record.spec.embeds:
            await self._tell(plan.outbound.emit(result.payload, result.n, chunk))
            if not progress.stopping:
                await self._finish("length")
        elif result.token is not None:
            await self._sampled(result.token)
        if progress.stopping:
            await self._stop_if_idle()

    async def _sampled(self, token: int) -> None:
        progress, spec = self._progress, self.record.spec
        position = spec.prompt_tokens + len(progress.tokens)
        row = token_row(token)
        progress.tokens.append(token)
        act = self._plan.outbound.emit(row, 1, token_chunk(self.id, position, row))
        await self._tell(act)
        self._services.metrics.tokens.inc()
        if self._following is not None:
            await self._forward(act)
        reason = ended(token, len(progress.tokens), spec.max_new_tokens, spec.eos_token)
        if reason is not None:
            await self._finish(reason)
        elif self._first and not progress.stopping:
            await self._offer(np.array([token], dtype=np.int32))

    async def _on_acknowledged(self, event: events.AckArrived) -> None:
        if self._last and not event.link.is_node and (not self._first or self.record.spec.embeds):
            return  # The client signs for tokens too; hop 0's signature is the one that closes the ring.
        self._plan.outbound.acknowledged(event.ack)
        if self._prev_commit is not None or (self._first and self._progress.finished):
            await self._commit()

    # --- the end ---

    async def _on_stop(self, event: events.StopAsked) -> None:
        progress = self._progress
        if event.source == "previous":
            progress.stopping = True
            held, spec = sum(map(len, progress.held)), self.record.spec
            if spec.embeds and 0 < held < spec.prompt_tokens:
                # A part of a text is none: what an encoder makes of it is nothing that can be committed to.
                raise ProtocolError("out-of-order", "The text was cancelled in the middle.", "Send it whole.")
            # The hop before has counted these rows: a few that are held are computed, paid for or not.
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
        if progress.given != progress.done or progress.held or progress.finished or progress.stop_passed:
            return
        if self._last:
            await self._finish("cancelled")
            return
        progress.stop_passed = True
        await self._forward(CancelMsg(self.id, "cancelled"))
        if not self._first and progress.done == 0:
            await self._end("cancelled", 0)

    async def _finish(self, reason: str) -> None:
        """Last hop: generation is over."""
        progress = self._progress
        progress.finished = reason
        assert reason in ("eos", "length", "cancelled")
        message = FinishMsg(self.id, reason, len(progress.tokens))  # type: ignore[arg-type]
        await self._tell(message)
        if self._following is not None:
            await self._forward(message)
        if progress.done == 0:
            await self._end("cancelled", 0)
        if self._first:
            await self._commit()

    async def _on_finished(self, event: events.FinishArrived) -> None:
        """Hop 0: the last hop says so; we know whether it may."""
        progress, spec, message = self._progress, self.record.spec, event.message
        if not self._first or self._last:
            raise ProtocolError("out-of-order", "FINISH goes to hop 0.")
        reason = None
        if progress.tokens:
            reason = ended(progress.tokens[-1], len(progress.tokens), spec.max_new_tokens, spec.eos_token)
        elif spec.embeds and progress.done == spec.prompt_tokens and message.reason == "length":
            # A stop may have crossed the result.
            reason = "length"
        allowed = reason if reason is not None else ("cancelled" if progress.stopping else None)
        if message.reason != allowed or message.tokens != len(progress.tokens) or progress.given != progress.done:
            raise ProtocolError("out-of-order", f"FINISH {message.reason} after {message.tokens} tokens is not due.")
        progress.finished = message.reason
        if progress.done == 0:
            await self._end("cancelled", 0)
        await self._commit()

    async def _on_committed(self, event: events.CommitArrived) -> None:
        before = self._plan.previous
        if self._prev_commit is not None and before is not None:
            await self._services.equivocation_watch.compare(before.node, self._prev_commit, event.signed)
        if self._first or self._prev_commit is not None or self._progress.given != self._progress.done:
            raise ProtocolError("out-of-order", "This commitment is not due.")
        if self._last and self._progress.finished is None:
            raise ProtocolError("out-of-order", "The previous hop committed before generation was over.")
        self._prev_commit = event.signed
        await self._commit()

    async def _on_failed(self, event: events.JobFailed) -> None:
        await self._abort(event.error, event.source)

    async def _on_gone(self, event: events.LinkLost) -> None:
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

    _handlers: dict[type[Any], Callable[[Job, Any], Any]] = {  # noqa: RUF012
        events.StartArrived: _on_started,
        events.RowsArrived: _on_rows,
        events.AckArrived: _on_acknowledged,
        events.Computed: _on_computed,
        events.VoucherTaken: _on_paid,
        events.StopAsked: _on_stop,
        events.FinishArrived: _on_finished,
        events.CommitArrived: _on_committed,
        events.LinkLost: _on_gone,
        events.JobFailed: _on_failed,
    }


__all__ = ["Job", "NodeServices"]
