"""Lies in one hop commitment: copied, stale, late, missing, for another job, session or chain."""

from __future__ import annotations

from dataclasses import replace

from efedllm.commitments.blame import check_route_commits
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import JobSpec, RouteHop, SignedCommit
from efedllm.commitments.signing import recover
from efedllm_bench.attacks.lab import CLIENT, DOMAIN, EPOCH, NODES, RANGES, SIGNERS, Lab, LabJob, session
from efedllm_bench.attacks.lies.judges import code_of, commit_fault, refusal

LAST = len(RANGES) - 1
# The order of secp256k1: s and order - s are signatures of the same key over the same digest.
_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


def copied_commit(lab: Lab, job: LabJob) -> str:
    """The commitment of another hop, with the signature of this node."""
    return code_of(lab.judge(job, 2, lab.leaf(job, 1, signer=SIGNERS[2])))


def stale_commit(lab: Lab, job: LabJob) -> str:
    """The commitment of an earlier job is shown for this job."""
    other = replace(job, spec=replace(job.spec, job_seq=job.spec.job_seq + 1))
    return commit_fault(lab, job, 1, job_id=other.spec.job_id)


def late(lab: Lab, job: LabJob) -> str:
    """A commitment that names an epoch two epochs before the batch."""
    return commit_fault(lab, job, 1, epoch=EPOCH - 2)


def wrong_dtype(lab: Lab, job: LabJob) -> str:
    """A commitment that names another wire dtype than the client signed."""
    return commit_fault(lab, job, 1, wire_dtype=int(WireDtype.BF16))


def wrong_length(lab: Lab, job: LabJob) -> str:
    """One position more than the job may have."""
    return commit_fault(lab, job, 1, tokens=job.spec.prompt_tokens + job.spec.max_new_tokens)


def omitted(lab: Lab, job: LabJob) -> str:
    """A hop makes no commitment for a job whose tokens the client has. The client's receipt check names the hop."""
    route = [
        RouteHop(NODES[hop], SIGNERS[hop].address, "http://127.0.0.1:1", *RANGES[hop], lab.registration(hop).shard_root)
        for hop in range(len(RANGES))
    ]
    commits: list[SignedCommit | None] = []
    prev = ZERO32
    for hop in range(len(RANGES)):
        commit = lab.commit(job, hop, prev_commit=prev)
        prev = commit.digest(DOMAIN)
        commits.append(None if hop == 1 else SignedCommit(commit, SIGNERS[hop].sign(prev)))
    model = session().model_id
    faults = check_route_commits(job.spec, job.prompt, job.emitted, commits, domain=DOMAIN, route=route, model_id=model)
    return faults[0].kind if [fault.guilty for fault in faults] == [frozenset({1})] else str(faults)


def tokens_rewritten(lab: Lab, job: LabJob) -> str:
    """The last hop shows the verifier another last token than it committed to."""
    told = replace(job, emitted=(*job.emitted[:-1], (job.emitted[-1] + 1) % 4096))
    leaf = replace(lab.leaf(job, LAST), emitted=told.emitted)
    return code_of(lab.judge(told, LAST, leaf))


def other_chain(lab: Lab, job: LabJob) -> str:
    """A commitment signed for another deployment."""
    commit = lab.commit(job, 1)
    elsewhere = SIGNERS[1].sign(commit.digest(Domain(1, DOMAIN.contract)))
    return code_of(lab.judge(job, 1, replace(lab.leaf(job, 1), signature=elsewhere)))


def malleable(lab: Lab, job: LabJob) -> str:
    """The second valid signature, which anybody can derive from the first."""
    digest = lab.commit(job, 1).digest(DOMAIN)
    good = SIGNERS[1].sign(digest)
    other = (_ORDER - int.from_bytes(good[32:64])).to_bytes(32) + bytes([55 - good[64]])
    return refusal(lambda: recover(digest, good[:32] + other))


def other_session(lab: Lab, job: LabJob) -> str:
    """A job spec that the client signed for another session."""
    moved: JobSpec = replace(job.spec, session_id=keccak(b"another session"))
    resold = replace(job, spec=moved)
    leaf = lab.leaf(resold, 1, lab.commit(resold, 1))
    assert leaf.terms is not None
    terms = replace(leaf.terms, signature=CLIENT.sign(moved.digest(DOMAIN)))
    return code_of(lab.judge(resold, 1, replace(leaf, terms=terms)))
