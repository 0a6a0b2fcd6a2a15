"""One hop of a job that generates tokens: they go round the ring of nodes, from the last hop to hop 0."""

from __future__ import annotations

from typing import Literal

import numpy as np

from efedllm.commitments.canonical import decode
from efedllm.errors import ProtocolError
from efedllm_node.compute.engine_step import Output
from efedllm_node.compute.work_item import Inputs
from efedllm_node.jobs import job_events as events
from efedllm_node.jobs.job_hop import JobHop, Reason
from efedllm_node.jobs.job_plan import token_chunk, token_row
from efedllm_node.jobs.peers import Link


class GenerationHop(JobHop):
    """On hop 0 tokens arrive from the last hop; on the last hop they are sampled and sent to hop 0 and the client."""

    emits = True

    async def _offer(self, inputs: Inputs) -> None:
        self._progress.held.append(inputs)
        await self._feed()

    def _end_position(self) -> int:
        spec = self.record.spec
        if not self._last:
            return spec.most_positions
        # Nobody can have fed a token that was not sampled yet.
        return min(spec.most_positions, spec.prompt_tokens + len(self._progress.tokens))

    async def _on_rows(self, event: events.RowsArrived) -> None:
        if self._first:
            await self._on_token(event)
        else:
            await super()._on_rows(event)

    async def _on_token(self, event: events.RowsArrived) -> None:
        """Hop 0: the last hop sampled a token."""
        act, inbound, progress = event.act, self._inbound_of(event.link), self._progress
        prompt = self.record.spec.prompt_tokens
        # Only the token after the last position that we fed can have been sampled.
        inbound.check(act, progress.done + 1 if progress.done >= prompt else 0, prompt)
        ack = inbound.accept(act, token_chunk(self.id, act.from_pos, act.payload))
        token = int(decode(act.payload, act.dtype, 1)[0, 0])
        if not 0 <= token < self._services.facts.vocab:
            raise ProtocolError("bad-token", f"Token {token} is not in the vocabulary.")
        await event.link.send(ack)
        progress.tokens.append(token)
        if self._ended() is None and not progress.stopping:
            await self._offer(np.array([token], dtype=np.int32))

    async def _emit(self, result: Output, chunk: bytes) -> None:  # noqa: ARG002 - the token is what goes out
        if result.token is None:
            return
        progress, token = self._progress, result.token
        position = self.record.spec.prompt_tokens + len(progress.tokens)
        row = token_row(token)
        progress.tokens.append(token)
        act = self._plan.outbound.emit(row, 1, token_chunk(self.id, position, row))
        await self._tell(act)
        self._services.metrics.tokens.inc()
        if self._following is not None:
            await self._forward(act)
        reason = self._ended()
        if reason is not None:
            await self._finish(reason)
        elif self._first and not progress.stopping:
            await self._offer(np.array([token], dtype=np.int32))

    def _takes_ack(self, link: Link) -> bool:
        # The client signs for tokens too; on a longer route hop 0's signature is the one that closes the ring.
        return not self._last or link.is_node or self._first

    def _check_cancelled(self, held: int) -> None:
        """Generation may stop after any position."""

    def _due_reason(self, claimed: str) -> Reason | None:  # noqa: ARG002 - hop 0 knows from the tokens
        return self._ended() if self._progress.tokens else None

    def _ended(self) -> Literal["eos", "length"] | None:
        spec, tokens = self.record.spec, self._progress.tokens
        return end_reason(tokens[-1], len(tokens), spec.max_new_tokens, spec.eos_token)


def end_reason(token: int, generated: int, max_new: int, eos: int) -> Literal["eos", "length"] | None:
    """Why generation stops after `token`, the `generated`-th; None when it goes on."""
    if token == eos:
        return "eos"
    return "length" if generated >= max_new else None
