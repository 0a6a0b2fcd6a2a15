"""The end of a job: account for its tokens, check its receipts and keep them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from efedllm.chain.amounts import cost_of_tokens
from efedllm.chain.disputes import FOLDER, EvidenceFolder
from efedllm.errors import EfedError
from efedllm_client.jobs.blame import Finding, contradictions, find_faults
from efedllm_client.jobs.context import JobContext
from efedllm_client.jobs.job import PaidJobRecord
from efedllm_client.jobs.receipts import receipt_document, save_receipt
from efedllm_client.payments.session import PaidSession
from efedllm_client.routes.choose import Route


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
