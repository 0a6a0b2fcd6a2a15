"""Two signed specs of one job number (15): a node and a client in league would tell each verifier another job.

As in `messages.py` each takes a real job of the lab and returns the name of the fault or refusal that it met; a real
node that shows its auditors different specs plays in tests/attacks/test_specs.py.
"""

from __future__ import annotations

from dataclasses import replace

from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import JobSpec, RouteHop, SignedCommit
from efedllm.errors import ProtocolError
from efedllm_bench.attacks.lab import CLIENT, DOMAIN, MODEL_ID, NODES, RANGES, SIGNERS, Lab, LabJob
from efedllm_node.jobs.own_commit import OwnHop, check_previous

LAST = len(RANGES) - 1


def second(spec: JobSpec) -> JobSpec:
    """The same job of the same session, to be sampled with another seed; the client signs it as well."""
    return replace(spec, seed=keccak(b"the other seed" + spec.seed))


def shown(lab: Lab, job: LabJob, hop: int, committed: JobSpec, spec: JobSpec) -> str:
    """What a verifier says to a hop of `job` that committed to one spec and shows it another."""
    leaf = lab.leaf(job, hop, lab.commit(job, hop, spec_hash=committed.digest(DOMAIN)))
    assert leaf.terms is not None
    terms = replace(leaf.terms, spec=spec, signature=CLIENT.sign(spec.digest(DOMAIN)))
    fault = lab.judge(replace(job, spec=spec), hop, replace(leaf, terms=terms)).fault
    return "" if fault is None else fault.code


def two_specs(lab: Lab, job: LabJob) -> str:
    """The last hop shows one verifier the job that it committed to, and the next one the other."""
    honest = shown(lab, job, LAST, job.spec, job.spec)
    return f"accused of {honest}" if honest else shown(lab, job, LAST, job.spec, second(job.spec))


def committed_to_the_other(lab: Lab, job: LabJob) -> str:
    """Tokens sampled by one spec, a commitment to the other, which every verifier is shown."""
    return shown(lab, job, LAST, second(job.spec), second(job.spec))


def one_for_each_hop(lab: Lab, job: LabJob) -> str:
    """The client opens the job with another spec at the next hop, which sees it in the commitment it is given."""
    commit = lab.commit(job, 0)
    given = SignedCommit(commit, SIGNERS[0].sign(commit.digest(DOMAIN)))
    after = lab.commit(job, 1)
    own = OwnHop(
        job_id=after.job_id,
        spec_hash=second(job.spec).digest(DOMAIN),
        hop=1,
        lo=after.lo,
        hi=after.hi,
        wire_dtype=after.wire_dtype,
        model_id=MODEL_ID,
        shard_root=after.shard_root,
        tokens=after.tokens,
        in_root=after.in_root,
        out_root=after.out_root,
        emitted=None,
        profile=after.profile,
        aux_root=after.aux_root,
    )
    before = RouteHop(NODES[0], SIGNERS[0].address, "http://127.0.0.1:1", *RANGES[0], commit.shard_root)
    # The same hop, told the same job, takes the commitment.
    check_previous(given, replace(own, spec_hash=job.spec.digest(DOMAIN)), before, DOMAIN)
    try:
        check_previous(given, own, before, DOMAIN)
    except ProtocolError as error:
        return error.code
    return ""
