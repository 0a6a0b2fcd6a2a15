"""Generating text: choose a route, pay a session, run the job, and go on elsewhere when a route fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from client.discovery import find_candidates
from client.faults import Finding, find_faults
from client.job import Job, JobRecord, Patience, RouteFailure, terms_for
from client.options import GenerateOptions, Sampling, sampling_of
from client.policy import RetryPolicy, may_retry, needs_fresh_session, nodes_to_avoid
from client.receipts import receipt_document, save_receipt
from client.routing import Candidate, Route, check_price, choose_known_route, named_route, resolve_names
from client.session import PaidSession, SessionRequest, Sessions, is_route_error
from client.text import IncrementalDecoder
from client.tokenizer import Text
from efedllm.chain import Chain
from efedllm.chain.amounts import cost_of_tokens
from efedllm.chain.types import ModelInfo
from efedllm.commitments.messages import RouteHop
from efedllm.errors import ChainError, EfedError


@dataclass(frozen=True)
class Started:
    """A route is about to work on the prompt."""

    route: Route
    session_id: bytes
    job_id: bytes
    seed: bytes


@dataclass(frozen=True)
class Piece:
    """One more token, and the text it adds (maybe none yet)."""

    token: int
    text: str


@dataclass(frozen=True)
class Switched:
    """The route failed after `tokens` tokens in all; another one is looked for without the nodes `avoided`."""

    error: EfedError
    avoided: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class JobOutcome:
    """One job of a generation; there are several after a fail-over."""

    record: JobRecord
    route: Route
    session_id: bytes
    cost: int  # wei
    findings: list[Finding]
    receipt: Path | None
    failure: EfedError | None


@dataclass(frozen=True)
class Finished:
    """The generation is complete."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    seed: bytes
    jobs: list[JobOutcome]


Event = Started | Piece | Switched | Finished


class Generation:
    """What stays the same over all routes of one generation. `events` runs once."""

    def __init__(
        self,
        chain: Chain,
        sessions: Sessions,
        home: Path,
        model: ModelInfo,
        text: Text,
        prompt_ids: list[int],
        options: GenerateOptions,
        retry: RetryPolicy | None = None,
        candidates: list[Candidate] | None = None,
    ) -> None:
        self._chain = chain
        self._sessions = sessions
        self._home = home
        self._model = model
        self._text = text
        self._prompt = prompt_ids
        self._options = options
        self._retry = retry or RetryPolicy()
        self._sampling: Sampling = sampling_of(options, text.eos[0] if text.eos else None)
        self._candidates = candidates
        self._ids: list[int] = []
        self._jobs: list[JobOutcome] = []
        self._decoder = IncrementalDecoder(text.tokenizer, prompt_ids)
        self._pieces: list[str] = []
        text.check_length(len(prompt_ids), options.max_tokens)

    async def events(self) -> AsyncGenerator[Event]:
        """Started, then Piece after Piece (with Switched and Started between them), then Finished.

        Raises EfedError when no route is left or the attempts are used up.
        """
        avoid: set[str] = set()
        failures = 0
        fresh = self._options.fresh_session
        while not self._is_complete():
            route = await self._choose(avoid, first=failures == 0)
            try:
                async with aclosing(self._attempt(route, fresh)) as attempt:
                    async for event in attempt:
                        yield event
            except (RouteFailure, ChainError) as failure:
                failures += 1
                error = failure.error if isinstance(failure, RouteFailure) else failure
                if isinstance(failure, ChainError) and not is_route_error(failure):
                    raise
                if not may_retry(self._retry, failures):
                    raise error from failure
                if needs_fresh_session(error.code) and not fresh:
                    fresh, leave = True, frozenset[str]()
                else:
                    leave = await self._who_to_avoid(route, failure)
                avoid |= leave
                yield Switched(error, tuple(sorted(leave)), len(self._ids))
        tail = self._decoder.flush()
        if tail:
            self._pieces.append(tail)
            yield Piece(self._ids[-1], tail)
        yield Finished(
            tuple(self._prompt), tuple(self._ids), "".join(self._pieces), self._sampling.seed, list(self._jobs)
        )

    def _is_complete(self) -> bool:
        ended = bool(self._ids) and self._options.stop_at_eos and self._ids[-1] in self._text.eos
        return ended or len(self._ids) >= self._options.max_tokens

    async def _choose(self, avoid: Collection[str], first: bool) -> Route:
        candidates = self._candidates if first and self._candidates is not None else None
        if candidates is None:
            candidates = await find_candidates(self._chain, self._model)
        return check_price(await self._pick(candidates, avoid, first), self._options.max_price)

    async def _pick(self, candidates: list[Candidate], avoid: Collection[str], first: bool) -> Route:
        if first and self._options.route:
            return named_route(candidates, self._model.layers, self._options.route)
        unwanted = {*avoid, *resolve_names(candidates, self._options.avoid)}
        known = [] if self._options.fresh_session else await self._sessions.open_routes(self._model.model_id)
        return choose_known_route(candidates, self._model.layers, known, unwanted)

    async def _attempt(self, route: Route, fresh: bool) -> AsyncGenerator[Event]:
        """Run the rest of the generation on one route. The tokens so far become part of its prompt, so that every
        further token is sampled at the same absolute position, with the same seed, as without the interruption.
        """
        prompt = [*self._prompt, *self._ids]
        new = self._options.max_tokens - len(self._ids)
        request = SessionRequest(self._model.model_id, route, len(prompt) + new, self._options.deposit, fresh)
        async with self._sessions.acquire(request) as session:
            terms = terms_for(session, len(prompt), new)
            spec = self._sampling.spec(session.session_id, await session.take_job(), prompt, new)
            hops = [RouteHop(c.address, c.signer, c.endpoint, c.lo, c.hi, c.shard_root or None) for c in route.hops]
            patience = Patience(token=self._retry.stall_seconds)
            job = Job(session, spec, prompt, hops, self._chain.efl_domain, terms, patience)
            yield Started(route, session.session_id, spec.job_id, self._sampling.seed)
            error: EfedError | None = None
            try:
                async with aclosing(job.run()) as tokens:
                    async for token in tokens:
                        yield self._push(token)
                        if self._is_complete():
                            # Nodes know one end token; a model may have several.
                            job.stop()
            except RouteFailure as failure:
                error = failure.error
                raise
            except BaseException:
                error = EfedError("cancelled", "The generation was stopped.")
                raise
            finally:
                await self._account(session, job.record, route, error)

    def _push(self, token: int) -> Piece:
        self._ids.append(token)
        piece = self._decoder.push(token)
        self._pieces.append(piece)
        return Piece(token, piece)

    async def _account(self, session: PaidSession, record: JobRecord, route: Route, failure: EfedError | None) -> None:
        """Book what the job used, check its receipts and keep them."""
        before = session.billed_tokens
        billed = before + record.spec.prompt_tokens + len(record.emitted)
        if failure is not None:
            # The nodes may have worked further than we saw, up to what was promised to them.
            billed = max(session.signed.tokens, before) if record.connect_ms else before
        domain = self._chain.efl_domain
        digests = [signed.commit.digest(domain) for signed in record.commits if signed is not None]
        await session.end_job(billed, digests)
        findings: list[Finding] = []
        receipt: Path | None = None
        if failure is None:
            findings = await find_faults(record, domain, self._model.model_id)
        if record.emitted:
            receipt = await asyncio.to_thread(save_receipt, self._home, receipt_document(record, session.key, findings))
        cost = cost_of_tokens(billed, session.price) - cost_of_tokens(before, session.price)
        self._jobs.append(JobOutcome(record, route, session.session_id, cost, findings, receipt, failure))

    async def _who_to_avoid(self, route: Route, failure: RouteFailure | ChainError) -> frozenset[str]:
        """The nodes of a failed route that the next one leaves out. Those that do not answer now are to blame first."""
        if isinstance(failure, ChainError):
            return nodes_to_avoid(route.addresses, (), accused_by_chain(failure, route))
        now = {c.address: c for c in await find_candidates(self._chain, self._model)}
        silent = {a for a in route.addresses if a not in now or now[a].latency_ms is None}
        return nodes_to_avoid(route.addresses, failure.dead | silent, failure.accused)


def accused_by_chain(failure: ChainError, route: Route) -> set[str]:
    """Nodes of `route` that a contract's refusal names."""
    return {address for address in route.addresses if address.lower() in failure.message.lower()}
