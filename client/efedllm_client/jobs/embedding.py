"""Embedding texts through an encoder on the network."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import PPM, JobSpec, ids_hash
from efedllm.errors import ConfigError, EfedError
from efedllm_client.jobs.blame import Finding
from efedllm_client.jobs.embedding_job import EmbeddingJob, mean_pooled
from efedllm_client.jobs.failover import JobOutcome, Place, RoutedWork, RouteWishes, Switched, hops_of
from efedllm_client.jobs.job import Patience, RouteFailure
from efedllm_client.payments.session import PaidSession, SessionRequest, terms_for
from efedllm_client.policy import RetryPolicy
from efedllm_client.routes.choose import Candidate, Route


@dataclass(frozen=True)
class Embedded:
    """One text is done: `vector` is the mean of the last hidden states over its `tokens`."""

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
            "receipts_ok": not outcome.findings and all(c is not None for c in outcome.record.commits),
            "receipt_file": None if outcome.receipt is None else str(outcome.receipt),
            "faults": [finding.to_json() for finding in outcome.findings],
        }


EmbedEvent = Embedded | Switched


class Embedding(RoutedWork):
    """Texts, as token ids, on their way through one encoder, in order. `events` runs once.

    Raises ConfigError "empty-prompt" for a text without tokens.
    """

    def __init__(
        self,
        place: Place,
        texts: Sequence[Sequence[int]],
        wishes: RouteWishes | None = None,
        *,
        normalize: bool = True,
        retry: RetryPolicy | None = None,
        candidates: list[Candidate] | None = None,
    ) -> None:
        super().__init__(place, wishes or RouteWishes(), retry or RetryPolicy(), candidates)
        self._texts = [list(text) for text in texts]
        if not all(self._texts):
            # Before a session is opened for a job that no node would take.
            raise ConfigError("empty-prompt", "A text has no tokens.", "Leave it out.")
        self._normalize = normalize
        self._deposit = (wishes or RouteWishes()).deposit
        self._done = 0

    async def events(self) -> AsyncGenerator[EmbedEvent]:
        """Embedded for each text, with Switched where a route failed. Raises EfedError when no route is left."""
        async with aclosing(self.over_routes()) as events:
            async for event in events:
                assert isinstance(event, Embedded | Switched)
                yield event

    def is_complete(self) -> bool:
        return self._done == len(self._texts)

    def results(self) -> int:
        return self._done

    def tokens_left(self) -> int:
        # Nodes want one token more than the prompt to be covered before they open a job.
        return sum(map(len, self._texts[self._done :])) + 1

    async def attempt(self, route: Route, fresh: bool) -> AsyncGenerator[EmbedEvent]:
        """The texts that are left, one job each, in one session."""
        request = SessionRequest(self.place.model.model_id, route, self.tokens_left(), self._deposit, fresh)
        async with self.place.sessions.acquire(request) as session:
            for text in self._texts[self._done :]:
                yield await self._one(session, route, text)

    async def _one(self, session: PaidSession, route: Route, text: list[int]) -> Embedded:
        place = self.place
        spec = JobSpec(
            session_id=session.session_id,
            job_seq=await session.take_job(),
            prompt_hash=ids_hash(text),
            prompt_tokens=len(text),
            max_new_tokens=0,
            temperature_milli=0,
            top_k=0,
            top_p_ppm=PPM,
            seed=ZERO32,
            wire_dtype=int(WireDtype.F32),
        )
        terms = terms_for(session, len(text), 0)
        patience = Patience(token=self.retry.stall_seconds)
        hops = hops_of(route)
        job = EmbeddingJob(session, spec, text, hops, place.chain.efl_domain, terms, patience, place.model.hidden)
        error: EfedError | None = None
        found: list[Finding] = []
        try:
            async with aclosing(job.run()) as nothing:
                async for _ in nothing:
                    raise AssertionError("an embedding yields no tokens")
            fault = job.output_fault()
            if fault is not None:
                found.append(Finding(fault, tuple(hops[hop].node for hop in sorted(fault.guilty))))
        except RouteFailure as failure:
            error = failure.error
            raise
        except BaseException:
            error = EfedError("cancelled", "The embedding was stopped.")
            raise
        finally:
            await self.account(session, job.record, route, error, found)
        index = self._done
        self._done += 1
        vector = tuple(mean_pooled(job.states, normalize=self._normalize))
        return Embedded(index, len(text), vector, self.jobs[-1])
