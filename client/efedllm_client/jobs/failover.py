"""Work that a route does for a session: choose one, and go on with another when it fails."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from efedllm.chain import Chain
from efedllm.chain.amounts import cost_of_tokens
from efedllm.chain.disputes import FOLDER, EvidenceFolder
from efedllm.chain.types import ModelInfo
from efedllm.commitments.messages import RouteHop
from efedllm.errors import ChainError, ConfigError, EfedError
from efedllm_client.jobs.blame import Finding, contradictions, find_faults
from efedllm_client.jobs.job import JobRecord, RouteFailure
from efedllm_client.jobs.receipts import receipt_document, save_receipt
from efedllm_client.payments.session import PaidSession, Sessions, is_route_error
from efedllm_client.policy import RetryPolicy, may_retry, needs_fresh_session, nodes_to_avoid
from efedllm_client.routes.choose import Candidate, Route, check_price, choose_known_route, named_route, resolve_names
from efedllm_client.routes.discovery import find_candidates
from efedllm_client.routes.newcomers import SHARE, check_share, draw_lot, explored_route, tries_newcomer


@dataclass(frozen=True)
class RouteWishes:
    """What a person may say about the route and what it costs."""

    route: tuple[str, ...] = ()  # nodes by address, in layer order; empty chooses
    avoid: tuple[str, ...] = ()
    max_price: int | None = None  # gwei of EFED per 1000 tokens for the whole route; None takes what it costs
    deposit: int | None = None  # wei for a new session; None chooses
    fresh_session: bool = False
    explore: float = SHARE  # of jobs that try a node without trust


@dataclass(frozen=True)
class Started:
    """A route is about to work on the prompt."""

    route: Route
    session_id: bytes
    job_id: bytes
    seed: bytes


@dataclass(frozen=True)
class Switched:
    """The route failed after `tokens` results in all; another one is looked for without the nodes `avoided`."""

    error: EfedError
    avoided: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class JobOutcome:
    """One job of a piece of work; there are several after a fail-over."""

    record: JobRecord
    route: Route
    session_id: bytes
    cost: int  # wei
    findings: list[Finding]
    receipt: Path | None
    failure: EfedError | None


@dataclass(frozen=True)
class Place:
    """Where the work is bought, and from whom nothing is."""

    chain: Chain
    sessions: Sessions
    home: Path
    model: ModelInfo


class RoutedWork(ABC):
    """Subclasses say what one attempt on one route does, and when all is done."""

    def __init__(
        self, place: Place, wishes: RouteWishes, retry: RetryPolicy, candidates: list[Candidate] | None
    ) -> None:
        self.place = place
        self.jobs: list[JobOutcome] = []
        self.retry = retry
        self._wishes = wishes
        check_share(wishes.explore)
        self._candidates = candidates

    @abstractmethod
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""

    @abstractmethod
    def results(self) -> int:
        """How much is done, in whatever the work counts."""

    @abstractmethod
    def tokens_left(self) -> int:
        """Most tokens that a session for the rest is billed for."""

    @abstractmethod
    def attempt(self, route: Route, fresh: bool) -> AsyncGenerator[object]:
        """Do what is left on `route`; RouteFailure or ChainError when the route does not carry it."""

    async def over_routes(self) -> AsyncGenerator[object]:
        """What the attempts yield, with Switched between them.

        Raises EfedError when no route is left or the attempts are used up.
        """
        avoid: set[str] = set()
        failures = 0
        first, fresh = True, self._wishes.fresh_session
        while not self.is_complete():
            route = await self._choose(avoid, first)
            first = False
            try:
                async with aclosing(self.attempt(route, fresh)) as attempt:
                    async for event in attempt:
                        yield event
            except (RouteFailure, ChainError, ConfigError) as failure:
                error = failure.error if isinstance(failure, RouteFailure) else failure
                if route.newcomer:
                    # Trying a newcomer costs no attempt, and the best route may need no new session, money or gas.
                    dead = failure.dead if isinstance(failure, RouteFailure) else frozenset()
                    leave = dead | {route.newcomer}
                elif isinstance(failure, ConfigError) or (
                    isinstance(failure, ChainError) and not is_route_error(failure)
                ):
                    raise
                else:
                    failures += 1
                    if not may_retry(self.retry, failures):
                        raise error from failure
                    if needs_fresh_session(error.code) and not fresh:
                        fresh, leave = True, frozenset[str]()
                    else:
                        leave = await self._who_to_avoid(route, failure)
                avoid |= leave
                yield Switched(error, tuple(sorted(leave)), self.results())

    async def _choose(self, avoid: Collection[str], first: bool) -> Route:
        candidates = self._candidates if first and self._candidates is not None else None
        if candidates is None:
            candidates = await find_candidates(self.place.chain, self.place.model)
        return check_price(await self._pick(candidates, avoid, first), self._wishes.max_price)

    async def _pick(self, candidates: list[Candidate], avoid: Collection[str], first: bool) -> Route:
        model, wishes = self.place.model, self._wishes
        if first and wishes.route:
            return named_route(candidates, model.layers, wishes.route)
        unwanted = {*avoid, *resolve_names(candidates, wishes.avoid)}
        known = [] if wishes.fresh_session else await self.place.sessions.open_routes(model.model_id)
        best = choose_known_route(candidates, model.layers, known, unwanted)
        return await self._explored(candidates, unwanted, best) or best if first else best

    async def _explored(self, candidates: list[Candidate], unwanted: Collection[str], best: Route) -> Route | None:
        """A route that tries a newcomer, when this job's lot says so and a session on it may hold what it costs."""
        sessions, model, wishes = self.place.sessions, self.place.model, self._wishes
        lot = draw_lot(sessions.client, await sessions.jobs_started())
        if not tries_newcomer(lot, wishes.explore):
            return None
        route = explored_route(candidates, model.layers, best, lot, unwanted, wishes.max_price)
        if route is None or not await sessions.may_open(route, model.model_id, self.tokens_left()):
            return None
        return route

    async def account(
        self,
        session: PaidSession,
        record: JobRecord,
        route: Route,
        failure: EfedError | None,
        more: Collection[Finding] = (),
    ) -> None:
        """Book what a job used, check its receipts (`more`: what else was found) and keep them."""
        before = session.billed_tokens
        billed = before + record.spec.prompt_tokens + len(record.emitted)
        if failure is not None:
            # The nodes may have worked further than we saw, up to what was promised to them.
            billed = max(session.signed.tokens, before) if record.connect_ms else before
        domain = self.place.chain.efl_domain
        digests = [signed.commit.digest(domain) for signed in record.commits if signed is not None]
        await session.end_job(billed, digests)
        findings: list[Finding]
        receipt: Path | None = None
        if failure is None:
            findings = [*await find_faults(record, domain, self.place.model.model_id), *more]
        else:
            findings = contradictions(record, domain)
        folder = EvidenceFolder(self.place.home / FOLDER)
        for proof in {finding.proof.name: finding.proof for finding in findings if finding.proof}.values():
            await asyncio.to_thread(folder.keep, proof)
        if record.emitted or (record.spec.embeds and failure is None):
            document = receipt_document(record, session.key, findings)
            receipt = await asyncio.to_thread(save_receipt, self.place.home, document)
        cost = cost_of_tokens(billed, session.price) - cost_of_tokens(before, session.price)
        self.jobs.append(JobOutcome(record, route, session.session_id, cost, findings, receipt, failure))

    async def _who_to_avoid(self, route: Route, failure: RouteFailure | ChainError) -> frozenset[str]:
        """The nodes of a failed route that the next one leaves out. Those that do not answer now are to blame first."""
        if isinstance(failure, ChainError):
            return nodes_to_avoid(route.addresses, (), accused_by_chain(failure, route))
        now = {c.address: c for c in await find_candidates(self.place.chain, self.place.model)}
        silent = {a for a in route.addresses if a not in now or now[a].latency_ms is None}
        return nodes_to_avoid(route.addresses, failure.dead | silent, failure.accused)


def accused_by_chain(failure: ChainError, route: Route) -> set[str]:
    """Nodes of `route` that a contract's refusal names."""
    return {address for address in route.addresses if address.lower() in failure.message.lower()}


def hops_of(route: Route) -> list[RouteHop]:
    """The route as a job names it."""
    return [RouteHop(c.address, c.signer, c.endpoint, c.lo, c.hi, c.shard_root or None) for c in route.hops]
