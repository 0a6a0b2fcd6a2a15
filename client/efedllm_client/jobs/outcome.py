"""The end of a job: book what it used, check its receipts and keep them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from efedllm.chain import Chain
from efedllm.chain.amounts import cost_of_tokens
from efedllm.chain.disputes import FOLDER, EvidenceFolder
from efedllm.chain.types import ModelInfo
from efedllm.commitments.messages import RouteHop
from efedllm.errors import EfedError
from efedllm_client.config import ClientConfig
from efedllm_client.jobs.blame import Finding, contradictions, find_faults
from efedllm_client.jobs.job import JobOrder, PaidJobRecord
from efedllm_client.jobs.options import Sampling
from efedllm_client.jobs.receipts import receipt_document, save_receipt
from efedllm_client.payments.session import PaidHop, PaidSession, SessionRequest, Sessions
from efedllm_client.routes.choose import Route


@dataclass(frozen=True)
class JobContext:
    """What the jobs of one wallet on one model share."""

    chain: Chain
    sessions: Sessions
    home: Path
    model: ModelInfo
    config: ClientConfig

    def request(self, route: Route, tokens: int, deposit: int | None, fresh: bool) -> SessionRequest:
        """A session on `route` for a job of at most `tokens` tokens. `deposit`: wei, None for the default."""
        return SessionRequest(
            model_id=self.model.model_id,
            hops=tuple(PaidHop(hop.address, hop.price, hop.hi - hop.lo) for hop in route.hops),
            tokens=tokens,
            deposit=deposit,
            fresh=fresh,
            # A route through a newcomer is unlikely to be chosen for the next jobs.
            jobs_ahead=1 if route.newcomer else self.config.jobs_ahead,
        )

    async def order(
        self, session: PaidSession, sampling: Sampling, prompt: Sequence[int], new_tokens: int, route: Route
    ) -> JobOrder:
        """The next job of an open session. Raises ConfigError "deposit-exhausted" when the prompt is not covered."""
        terms = session.terms(len(prompt), new_tokens, self.config)
        spec = sampling.spec(session.session_id, await session.take_job(), list(prompt), new_tokens)
        return JobOrder(session, spec, tuple(prompt), _hops(route), self.chain.efl_domain, terms, self.config)


def _hops(route: Route) -> tuple[RouteHop, ...]:
    return tuple(RouteHop(c.address, c.signer, c.endpoint, c.lo, c.hi, c.shard_root or None) for c in route.hops)


@dataclass(frozen=True)
class JobOutcome:
    """One job of a request. A request has several after a fail-over."""

    record: PaidJobRecord
    route: Route
    session_id: bytes
    cost: int  # wei
    findings: list[Finding]
    receipt: Path | None
    failure: EfedError | None

    @property
    def receipts_ok(self) -> bool:
        """Whether every hop committed and no fault was found."""
        return not self.findings and all(signed is not None for signed in self.record.commits)


async def finish_job(
    context: JobContext,
    session: PaidSession,
    record: PaidJobRecord,
    route: Route,
    failure: EfedError | None,
    more: Collection[Finding] = (),
) -> JobOutcome:
    """Account for a job, check its receipts and keep them. `more`: faults found elsewhere."""
    domain = context.chain.efl_domain
    before = session.billed_tokens
    billed = before + record.spec.prompt_tokens + len(record.emitted)
    if failure is not None:
        # The nodes may have worked further than the client saw, up to what was promised to them.
        billed = max(session.signed.tokens, before) if record.connect_ms else before
    await session.end_job(billed, [signed.commit.digest(domain) for signed in record.commits if signed is not None])
    if failure is None:
        seconds = context.config.evidence_seconds
        findings = [*await find_faults(record, domain, context.model.model_id, seconds), *more]
    else:
        findings = contradictions(record, domain)
    folder = EvidenceFolder(context.home / FOLDER)
    for proof in {finding.proof.name: finding.proof for finding in findings if finding.proof}.values():
        await asyncio.to_thread(folder.keep, proof)
    receipt: Path | None = None
    if record.emitted or (record.spec.embeds and failure is None):
        document = receipt_document(record, session.key, findings)
        receipt = await asyncio.to_thread(save_receipt, context.home, document)
    cost = cost_of_tokens(billed, session.price) - cost_of_tokens(before, session.price)
    return JobOutcome(record, route, session.session_id, cost, findings, receipt, failure)
