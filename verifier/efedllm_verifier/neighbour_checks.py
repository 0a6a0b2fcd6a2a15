"""Checks that a hop read what its neighbour sent, and sent what it committed to, by signed envelopes and roots."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from efedllm.commitments.blame import blame_boundary
from efedllm.commitments.eip712 import Domain, parse_hex
from efedllm.commitments.evidence import BoundaryEvidence
from efedllm.commitments.leaves import chunk_hash
from efedllm.commitments.messages import HopCommit
from efedllm.commitments.signing import is_signed_by, recover
from efedllm.errors import ProtocolError
from efedllm_verifier.fetch import NodeReader, UnavailableError
from efedllm_verifier.leaf import LeafFault
from efedllm_verifier.node_directory import Party
from efedllm_verifier.statistic import Outcome

# Kinds of a side that does not open its root: a failure, but no proof of a lie.
_UNPROVEN = ("silent", "bad-opening")


def unsigned_positions(
    domain: Domain, leaves: Sequence[bytes], start: int, evidence: BoundaryEvidence, signers: frozenset[str]
) -> list[int]:
    """Positions from `start` on whose leaf is not covered by an envelope that one of `signers` sent. Pure.

    Each envelope contains the digest of the one before it, so a signature on an envelope covers all earlier ones.
    Envelopes are read backwards: where their chain is unbroken, one signature is checked.
    """
    covered = [False] * len(leaves)
    digests = domain.digests([record.envelope for record in evidence.envelopes])
    attested = b""
    for record, digest in zip(reversed(evidence.envelopes), reversed(digests), strict=True):
        envelope = record.envelope
        end = envelope.from_pos + envelope.n
        if end <= start:
            break
        fits = end <= len(leaves) and chunk_hash(leaves[envelope.from_pos : end]) == envelope.chunk_hash
        if digest != attested and not (fits and _sent_by(digest, record.sender_sig, signers)):
            continue
        attested = envelope.prev
        if fits:
            covered[envelope.from_pos : end] = [True] * envelope.n
    return [position for position in range(start, len(leaves)) if not covered[position]]


def _sent_by(digest: bytes, signature: bytes | None, signers: frozenset[str]) -> bool:
    return signature is not None and is_signed_by(digest, signature, signers)


async def check_inputs(
    reader: NodeReader,
    domain: Domain,
    commit: HopCommit,
    leaves: Sequence[bytes],
    start: int,
    own: Party,
    sender: Party,
) -> LeafFault | None:
    """Check that the hop shows the sender's signature over every row from position `start` on.

    leaves: of the committed input boundary. A fault when the hop shows no evidence or a row is unsigned.
    """
    evidence = await _evidence(reader, own, commit.job_id, commit.hop)
    if evidence is None:
        return LeafFault("withheld", f"the node does not show who sent it boundary {commit.hop}")
    missing = await asyncio.to_thread(unsigned_positions, domain, leaves, start, evidence, sender.signers)
    if missing:
        return LeafFault("unsigned-input", f"nobody sent position {missing[0]} of boundary {commit.hop} to the node")
    return None


async def check_outputs(
    reader: NodeReader, domain: Domain, commit: HopCommit, own: Party, receiver: Party
) -> LeafFault | None:
    """When the next hop committed to another boundary, decide by the signed envelopes whether this hop lied.

    None when it did not, and when the next hop shows no valid commitment, which proves nothing.
    """
    theirs = await _commit_of(reader, domain, commit, receiver)
    if theirs is None or (theirs.in_root, theirs.tokens) == (commit.out_root, commit.tokens):
        return None
    boundary = commit.hop + 1
    ours, other = await asyncio.gather(
        _evidence(reader, own, commit.job_id, boundary), _evidence(reader, receiver, commit.job_id, boundary)
    )
    fault = await asyncio.to_thread(
        blame_boundary, domain, commit.job_id, boundary, ours, other, commit, theirs, own.signers, receiver.signers
    )
    if commit.hop not in fault.guilty:
        return None
    outcome = Outcome.FAIL if fault.kind in _UNPROVEN else Outcome.SEVERE
    return LeafFault("broken-link", fault.detail, outcome)


async def _commit_of(reader: NodeReader, domain: Domain, commit: HopCommit, receiver: Party) -> HopCommit | None:
    """The next hop's commitment for the job, None where it shows no valid one."""
    try:
        receipt = await reader.receipt(receiver.endpoint, commit.job_id)
        theirs = HopCommit.from_json(receipt.get("commit"))
        signer = recover(theirs.digest(domain), parse_hex(receipt.get("signature"), "signature", 65))
    except (UnavailableError, ProtocolError):
        return None
    fits = (theirs.job_id, theirs.hop) == (commit.job_id, commit.hop + 1) and signer in receiver.signers
    return theirs if fits else None


async def _evidence(reader: NodeReader, party: Party, job_id: bytes, boundary: int) -> BoundaryEvidence | None:
    try:
        value = await reader.evidence(party.endpoint, job_id, boundary)
        return BoundaryEvidence.from_json(value, job_id, boundary)
    except (UnavailableError, ProtocolError):
        return None
