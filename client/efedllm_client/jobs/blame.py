"""Checks of the receipts after a job: whether they are consistent, and which node is to blame if not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from efedllm.commitments.blame import (
    Fault,
    blame_boundary,
    blame_prev_commit,
    blame_tokens,
    check_route_commits,
    equivocation,
)
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.equivocation import Equivocation
from efedllm.commitments.evidence import BoundaryEvidence
from efedllm.commitments.messages import SignedCommit
from efedllm.errors import ProtocolError
from efedllm_client.config import ClientConfig
from efedllm_client.http import get_json
from efedllm_client.jobs.job import PaidJobRecord

MAX_EVIDENCE_BYTES = 64 * 1024 * 1024
MAX_COMMIT_BYTES = 1 << 16

_UNUSABLE = (aiohttp.ClientError, OSError, TimeoutError, ValueError, ProtocolError)

# (hop, boundary) -> the evidence of that hop; missing when it sent nothing usable.
Evidence = Mapping[tuple[int, int], BoundaryEvidence]
# hop -> the commitment of the hop before, as this hop received it.
Previous = Mapping[int, SignedCommit]


@dataclass(frozen=True)
class Finding:
    """A fault with the addresses of the nodes proven guilty, if any. `proof`: evidence for which a contract slashes."""

    fault: Fault
    guilty: tuple[str, ...]
    proof: Equivocation | None = None

    def to_json(self) -> dict[str, Any]:
        shown = {
            "kind": self.fault.kind,
            "boundary": self.fault.boundary,
            "detail": self.fault.detail,
            "guilty": list(self.guilty),
        }
        return shown if self.proof is None else shown | {"evidence": self.proof.name}


async def find_faults(
    record: PaidJobRecord, domain: Domain, model_id: bytes, seconds: float = ClientConfig.evidence_seconds
) -> list[Finding]:
    """Every fault of a finished job. Asks two hops that contradict each other for evidence, at most `seconds` long."""
    faults = check_route_commits(
        record.spec, record.prompt, record.emitted, record.commits, domain=domain, route=record.route, model_id=model_id
    )
    wanted = evidence_needed(faults, len(record.route))
    evidence = await fetch_evidence(record, wanted, seconds) if wanted else {}
    named = {fault.boundary for fault in faults if fault.kind == "prev-commit" and fault.guilty_hop is None}
    previous = await fetch_previous(record, named, seconds) if named else {}
    blamed = blame(record, faults, evidence, previous, domain)
    return [_finding(record, fault, previous, domain) for fault in blamed] + contradictions(record, domain)


def contradictions(record: PaidJobRecord, domain: Domain) -> list[Finding]:
    """A finding for each hop that sent the client two different commitments."""
    found = []
    for hop, other in record.others:
        first, here = record.commits[hop], record.route[hop]
        fault = None if first is None else equivocation(domain, first, other, here.signer)
        if first is not None and fault is not None:
            found.append(Finding(fault, (here.node,), Equivocation(domain, here.node, first, other)))
    return found


def evidence_needed(faults: list[Fault], hops: int) -> set[tuple[int, int]]:
    """(hop, boundary) pairs whose evidence decides the open faults."""
    wanted = set()
    for fault in faults:
        if fault.kind == "boundary-mismatch":
            wanted |= {(fault.boundary - 1, fault.boundary), (fault.boundary, fault.boundary)}
        elif fault.kind == "input-mismatch":
            wanted |= {(0, 0), (hops - 1, 0)}
    return wanted


def blame(
    record: PaidJobRecord, faults: list[Fault], evidence: Evidence, previous: Previous, domain: Domain
) -> list[Fault]:
    """`faults` with the open ones decided by the evidence of the hops. Pure function."""
    return [_decide(record, fault, evidence, previous, domain) for fault in faults]


def _decide(record: PaidJobRecord, fault: Fault, evidence: Evidence, previous: Previous, domain: Domain) -> Fault:
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
                _commit(record, b - 1).commit,
                _commit(record, b).commit,
                signers[b - 1],
                signers[b],
            )
        if fault.kind == "prev-commit":
            ours, theirs = _commit(record, b - 1), _commit(record, b).commit
            return blame_prev_commit(domain, ours, b, theirs, signers[b - 1], previous.get(b))
        if fault.kind == "input-mismatch":
            last = len(record.route) - 1
            return blame_tokens(
                domain,
                record.spec,
                record.prompt,
                record.emitted,
                _commit(record, 0).commit,
                evidence.get((0, 0)),
                evidence.get((last, 0)),
                signers[0],
                last,
                signers[last],
            )
    except ProtocolError:
        # "no-dispute": the evidence does not decide the fault.
        return fault
    return fault


def _commit(record: PaidJobRecord, hop: int) -> SignedCommit:
    signed = record.commits[hop]
    if signed is None:
        raise ProtocolError("no-dispute", f"Hop {hop} gave no commitment.")
    return signed


def _finding(record: PaidJobRecord, fault: Fault, previous: Previous, domain: Domain) -> Finding:
    guilty = tuple(record.route[hop].node for hop in sorted(fault.guilty))
    proof = None
    if fault.kind == "equivocation":
        b = fault.boundary
        proof = Equivocation(domain, record.route[b - 1].node, _commit(record, b - 1), previous[b])
    return Finding(fault, guilty, proof)


async def fetch_previous(record: PaidJobRecord, hops: set[int], seconds: float) -> dict[int, SignedCommit]:
    """Ask hops for the commitment of the hop before, which their own commitment names.

    Hops without a usable answer are left out.
    """
    asked = sorted(hops)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as http:
        answers = await asyncio.gather(*(_ask_previous(http, record, hop) for hop in asked))
    return {hop: answer for hop, answer in zip(asked, answers, strict=True) if answer is not None}


async def _ask_previous(http: aiohttp.ClientSession, record: PaidJobRecord, hop: int) -> SignedCommit | None:
    try:
        document = await get_json(http, _job_url(record, hop, "previous"), MAX_COMMIT_BYTES)
        return SignedCommit.from_json(document)
    except _UNUSABLE:
        return None


async def fetch_evidence(
    record: PaidJobRecord, wanted: set[tuple[int, int]], seconds: float
) -> dict[tuple[int, int], BoundaryEvidence]:
    """Ask the hops for their evidence, all at once. Hops without a usable answer are left out."""
    pairs = sorted(wanted)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as http:
        answers = await asyncio.gather(*(_ask(http, record, hop, boundary) for hop, boundary in pairs))
    return {pair: answer for pair, answer in zip(pairs, answers, strict=True) if answer is not None}


async def _ask(http: aiohttp.ClientSession, record: PaidJobRecord, hop: int, boundary: int) -> BoundaryEvidence | None:
    url = _job_url(record, hop, "evidence")
    try:
        document = await get_json(http, url, MAX_EVIDENCE_BYTES, {"boundary": str(boundary)})
        return BoundaryEvidence.from_json(document, record.spec.job_id, boundary)
    except _UNUSABLE:
        return None


def _job_url(record: PaidJobRecord, hop: int, page: str) -> str:
    return f"{record.route[hop].endpoint.rstrip('/')}/v1/jobs/0x{record.spec.job_id.hex()}/{page}"
