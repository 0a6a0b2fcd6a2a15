"""After a job: do the receipts fit together, and if not, who is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from client.http import get_json
from client.job import JobRecord
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.evidence import BoundaryEvidence
from efedllm.commitments.links import Fault, blame_boundary, blame_tokens, check_route_commits
from efedllm.commitments.messages import HopCommit
from efedllm.errors import ProtocolError

EVIDENCE_SECONDS = 10.0
MAX_EVIDENCE_BYTES = 64 * 1024 * 1024

# (hop, boundary) -> what that hop shows; missing when it shows nothing usable.
Evidence = Mapping[tuple[int, int], BoundaryEvidence]


@dataclass(frozen=True)
class Finding:
    """A fault with the addresses of the guilty nodes; none when nobody's guilt is proven."""

    fault: Fault
    guilty: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.fault.kind,
            "boundary": self.fault.boundary,
            "detail": self.fault.detail,
            "guilty": list(self.guilty),
        }


async def find_faults(record: JobRecord, domain: Domain, model_id: bytes) -> list[Finding]:
    """Every fault of a finished job. Where two hops contradict each other, both are asked for their evidence."""
    faults = check_route_commits(
        record.spec, record.prompt, record.emitted, record.commits, domain=domain, route=record.route, model_id=model_id
    )
    wanted = evidence_needed(faults, len(record.route))
    evidence = await fetch_evidence(record, wanted) if wanted else {}
    return [_finding(record, blamed) for blamed in blame(record, faults, evidence, domain)]


def evidence_needed(faults: list[Fault], hops: int) -> set[tuple[int, int]]:
    """(hop, boundary) pairs whose evidence decides the open faults."""
    wanted = set()
    for fault in faults:
        if fault.kind == "boundary-mismatch":
            wanted |= {(fault.boundary - 1, fault.boundary), (fault.boundary, fault.boundary)}
        elif fault.kind == "input-mismatch":
            wanted |= {(0, 0), (hops - 1, 0)}
    return wanted


def blame(record: JobRecord, faults: list[Fault], evidence: Evidence, domain: Domain) -> list[Fault]:
    """`faults` with the open ones decided by `evidence`. Pure."""
    return [_decide(record, fault, evidence, domain) for fault in faults]


def _decide(record: JobRecord, fault: Fault, evidence: Evidence, domain: Domain) -> Fault:
    if fault.guilty_hop is not None:
        return fault
    signers = [hop.signer for hop in record.route]
    b = fault.boundary
    try:
        if fault.kind == "boundary-mismatch":
            return blame_boundary(
                domain,
                record.spec.job_id,
                b,
                evidence.get((b - 1, b)),
                evidence.get((b, b)),
                _commit(record, b - 1),
                _commit(record, b),
                signers[b - 1],
                signers[b],
            )
        if fault.kind == "input-mismatch":
            last = len(record.route) - 1
            return blame_tokens(
                domain,
                record.spec,
                record.prompt,
                record.emitted,
                _commit(record, 0),
                evidence.get((0, 0)),
                evidence.get((last, 0)),
                signers[0],
                last,
                signers[last],
            )
    except ProtocolError:
        # "no-dispute": the evidence leaves the fault as it was found.
        return fault
    return fault


def _commit(record: JobRecord, hop: int) -> HopCommit:
    signed = record.commits[hop]
    if signed is None:
        raise ProtocolError("no-dispute", f"Hop {hop} gave no commitment.")
    return signed.commit


def _finding(record: JobRecord, fault: Fault) -> Finding:
    return Finding(fault, tuple(record.route[hop].node for hop in sorted(fault.guilty)))


async def fetch_evidence(
    record: JobRecord, wanted: set[tuple[int, int]], seconds: float = EVIDENCE_SECONDS
) -> dict[tuple[int, int], BoundaryEvidence]:
    """Ask the hops for their evidence, all at once. Who does not answer, or nonsense, is left out."""
    pairs = sorted(wanted)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as http:
        answers = await asyncio.gather(*(_ask(http, record, hop, boundary) for hop, boundary in pairs))
    return {pair: answer for pair, answer in zip(pairs, answers, strict=True) if answer is not None}


async def _ask(http: aiohttp.ClientSession, record: JobRecord, hop: int, boundary: int) -> BoundaryEvidence | None:
    job_id = record.spec.job_id
    url = f"{record.route[hop].endpoint.rstrip('/')}/v1/jobs/0x{job_id.hex()}/evidence"
    try:
        document = await get_json(http, url, MAX_EVIDENCE_BYTES, {"boundary": str(boundary)})
        return BoundaryEvidence.from_json(document, job_id, boundary)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, ProtocolError):
        return None
