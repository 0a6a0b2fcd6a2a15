"""Embedding texts with an encoder: one job for each text, on another route when one fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import NO_EOS, PPM
from efedllm.errors import ConfigError, EfedError
from efedllm_client.jobs.blame import Finding
from efedllm_client.jobs.context import JobContext
from efedllm_client.jobs.embedding_job import EmbeddingJob, mean_pooled
from efedllm_client.jobs.failover import RouteSwitched, run_with_failover
from efedllm_client.jobs.job import RouteFailure
from efedllm_client.jobs.options import RouteOptions, Sampling
from efedllm_client.jobs.outcome import JobOutcome, finish_job
from efedllm_client.jobs.route_chooser import RouteChooser
from efedllm_client.payments.session import PaidSession
from efedllm_client.routes.choose import Candidate, Route


@dataclass(frozen=True)
class Embedded:
    """The embedding of text `index`: the mean of the last hidden states over its `tokens` tokens."""

    index: int
    tokens: int
    vector: tuple[float, ...]
    outcome: JobOutcome

    def to_json(self) -> dict[str, Any]:
        outcome = self.outcome
        return {
            "index": self.index,
            "tokens": self.tokens,
            "embedding": list(self.vector),
            "job_id": "0x" + outcome.record.spec.job_id.hex(),
            "session_id": "0x" + outcome.session_id.hex(),
            "route": [hop.node for hop in outcome.record.route],
            "explored": [outcome.route.newcomer] if outcome.route.newcomer else [],
            "cost_wei": outcome.cost,
            "receipts_ok": outcome.receipts_ok,
            "receipt_file": None if outcome.receipt is None else str(outcome.receipt),
            "faults": [finding.to_json() for finding in outcome.findings],
        }


EmbedEvent = Embedded | RouteSwitched

# An encoder samples nothing: the fields of a greedy job.
_NO_SAMPLING = Sampling(temperature_milli=0, top_k=0, top_p_ppm=PPM, seed=ZERO32, wire=WireDtype.F32, eos_token=NO_EOS)


class Embedding:
    """Texts, as token ids, embedded by one encoder in order. `events` runs once."""

    def __init__(
        self,
        context: JobContext,
        texts: Sequence[Sequence[int]],
        options: RouteOptions | None = None,
        *,
        normalize: bool = True,
        candidates: list[Candidate] | None = None,
    ) -> None:
        """`candidates`: nodes probed a moment ago. Raises ConfigError "empty-prompt" or "bad-option"."""
        self.jobs: list[JobOutcome] = []
        self._texts = [list(text) for text in texts]
        if not all(self._texts):
            # Checked before a session is opened for a job that no node would take.
            raise ConfigError("empty-prompt", "A text has no tokens.", "Leave it out.")
        self._context = context
        self._options = options or RouteOptions()
        self._chooser = RouteChooser(context, self._options, candidates)
        self._normalize = normalize
        self._done = 0

    async def events(self) -> AsyncGenerator[EmbedEvent]:
        """Embedded for each text, with RouteSwitched where a route failed. Raises EfedError when no route is left."""
        fresh = self._options.fresh_session
        async with aclosing(run_with_failover(self, self._chooser, self._context, fresh)) as events:
            async for event in events:
                yield event

    def is_complete(self) -> bool:
        return self._done == len(self._texts)

    def results(self) -> int:
        return self._done

    def tokens_left(self) -> int:
        # Nodes want one token more than the prompt to be covered before they open a job.
        return sum(map(len, self._texts[self._done :])) + 1

    async def attempt(self, route: Route, fresh: bool) -> AsyncGenerator[Embedded]:
        """Embed the texts that are left, one job each, in one session."""
        request = self._context.request(route, self.tokens_left(), self._options.deposit, fresh)
        async with self._context.sessions.acquire(request) as session:
            for text in self._texts[self._done :]:
                yield await self._one(session, route, text)

    async def _one(self, session: PaidSession, route: Route, text: list[int]) -> Embedded:
        context = self._context
        order = await context.order(session, _NO_SAMPLING, text, 0, route)
        job = EmbeddingJob(order, context.model.hidden)
        error: EfedError | None = None
        found: list[Finding] = []
        try:
            async with aclosing(job.run()) as nothing:
                async for _ in nothing:
                    raise AssertionError("an embedding yields no tokens")
            fault = job.output_fault()
            if fault is not None:
                found.append(Finding(fault, tuple(job.record.route[hop].node for hop in sorted(fault.guilty))))
        except RouteFailure as failure:
            error = failure.error
            raise
        except BaseException:
            error = EfedError("cancelled", "The embedding was stopped.")
            raise
        finally:
            self.jobs.append(await finish_job(context, session, job.record, route, error, found))
        index = self._done
        self._done += 1
        vector = tuple(mean_pooled(job.states, normalize=self._normalize))
        return Embedded(index, len(text), vector, self.jobs[-1])
