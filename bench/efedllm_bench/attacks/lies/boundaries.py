"""Lies about the rows of a boundary: rows of another job, disputed or forged envelopes, malformed bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from efedllm.commitments.blame import blame_boundary
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import decode, encode, itemsize
from efedllm.commitments.evidence import BoundaryEvidence, EnvelopeRecord
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import Envelope
from efedllm.commitments.signing import Signer
from efedllm_bench.attacks.lab import DOMAIN, SIGNERS, Lab, LabJob, rewritten
from efedllm_bench.attacks.lies.judges import commit_fault, refusal
from efedllm_verifier.leaf_audit import hashes_to
from efedllm_verifier.neighbour_checks import unsigned_positions

STRANGER = Signer(keccak(b"stranger"))


def stale_rows(lab: Lab, job: LabJob) -> str:
    """A hop commits to the root that its rows had in another job. Every leaf binds job and position, so that no rows
    hash to that root, and the verifier gets none.
    """
    other = replace(job, spec=replace(job.spec, job_seq=job.spec.job_seq + 7))
    commits = [lab.commit(job, 1, out_root=lab.commit(told, 1).out_root) for told in (job, other)]
    own, stale = (
        hashes_to(commit.job_id, 2, job.wire, lab.hidden, commit.out_root, job.boundaries[2]) for commit in commits
    )
    return "" if stale else "withheld" if own else "the job's own rows are refused"


def evidence(lab: Lab, job: LabJob, boundary: int, sender: Signer, receiver: Signer) -> BoundaryEvidence:
    """Leaves of a boundary, and one envelope per position, signed by both sides."""
    tree = BoundaryTree(job.spec.job_id, boundary, job.wire, lab.hidden)
    tree.append(job.boundaries[boundary])
    prev, records = ZERO32, []
    for at in range(tree.length):
        envelope = Envelope(job.spec.job_id, boundary, at, 1, tree.chunk(at, 1), prev)
        prev = envelope.digest(DOMAIN)
        records.append(EnvelopeRecord(envelope, sender.sign(prev), receiver.sign(prev)))
    return BoundaryEvidence(tree.leaves, tuple(records))


def _nudged(lab: Lab, job: LabJob, boundary: int) -> LabJob:
    rows = decode(job.boundaries[boundary], job.wire, lab.hidden).copy()
    rows[-1, 0] += 1
    return rewritten(job, boundary, encode(rows, job.wire))


def dispute(lab: Lab, job: LabJob, liar: str) -> str:
    """Hops 1 and 2 exchange boundary 2 honestly; then `liar` commits to other rows and opens them.

    `liar`: "sender" (hop 1) or "receiver" (hop 2). Returns whom the blame names where that is not the liar.
    """
    lie = _nudged(lab, job, 2)
    told = {side: lie if side == liar else job for side in ("sender", "receiver")}
    honest = evidence(lab, job, 2, SIGNERS[1], SIGNERS[2])
    shown = {
        side: honest if told[side] is job else replace(honest, leaves=evidence(lab, lie, 2, STRANGER, STRANGER).leaves)
        for side in told
    }
    fault = blame_boundary(
        DOMAIN,
        job.spec.job_id,
        2,
        shown["sender"],
        shown["receiver"],
        lab.commit(told["sender"], 1),
        lab.commit(told["receiver"], 2),
        SIGNERS[1].address,
        SIGNERS[2].address,
    )
    right = {"sender": frozenset({1}), "receiver": frozenset({2})}[liar]
    return fault.kind if fault.guilty == right else f"blamed {sorted(fault.guilty)}"


def forged_envelope(lab: Lab, job: LabJob) -> str:
    """A hop signs envelopes itself and shows them for inputs that the hop before never sent."""
    forged = evidence(lab, job, 2, STRANGER, SIGNERS[2])
    missing = unsigned_positions(DOMAIN, forged.leaves, 0, forged, frozenset({SIGNERS[1].address}))
    return "unsigned-input" if len(missing) == job.positions else ""


def nonfinite(lab: Lab, job: LabJob) -> str:
    """A NaN in the output rows."""
    return _poisoned(lab, job, 0x7FC00000)


def minus_zero(lab: Lab, job: LabJob) -> str:
    """A negative zero in the output rows; canonical rows have none."""
    return _poisoned(lab, job, 0x80000000)


def _poisoned(lab: Lab, job: LabJob, bits: int) -> str:
    words = np.frombuffer(job.boundaries[2], dtype="<u4").copy()
    words[777] = bits
    return commit_fault(lab, rewritten(job, 2, words.tobytes()), 1)


def big_endian(lab: Lab, job: LabJob) -> str:
    """Output rows in big-endian: read as little-endian they are other numbers, or not finite."""
    return commit_fault(lab, rewritten(job, 2, np.frombuffer(job.boundaries[2], "<u4").astype(">u4").tobytes()), 1)


def half_rows(lab: Lab, job: LabJob) -> str:
    """The first half of a row."""
    tree = BoundaryTree(job.spec.job_id, 2, job.wire, lab.hidden)
    return refusal(lambda: tree.append(job.boundaries[2][: lab.hidden * itemsize(job.wire) // 2]))
