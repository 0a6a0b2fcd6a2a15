"""Second commitments: found where a neighbour holds another one than the leaf, kept, and taken to the contract once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from efedllm.chain.disputes import EvidenceFolder, read_proof
from efedllm.commitments.equivocation import Equivocation, find
from efedllm.commitments.hashing import as_address, keccak
from efedllm.commitments.messages import HopCommit, SignedCommit
from efedllm.commitments.signing import Signer
from efedllm.errors import ConfigError, ProtocolError
from efedllm_verifier.equivocation_search import AuditedCommit, EquivocationSearch
from efedllm_verifier.fetch import NodeReader
from efedllm_verifier.node_directory import Party
from efedllm_verifier.prosecutor import CaseStep, ProofStatus, next_step
from tests.verifier.audit_lab import DOMAIN
from tests.verifier.served_node import Job, Lies, ServedNode
from tests.verifier.test_leaf import NODES as ROUTE
from tests.verifier.test_leaf import SIGNERS, a_job
from tests.verifier.test_neighbour_checks import QUICK, signer

OTHER = keccak(b"other")
NODES = tuple(map(as_address, ROUTE))


def signed(commit: HopCommit, key: Signer) -> SignedCommit:
    return SignedCommit(commit, key.sign(commit.digest(DOMAIN)))


def other(job: Job, hop: int) -> SignedCommit:
    """What a liar at `hop` signs besides."""
    return signed(replace(job.commit(hop), in_root=OTHER), SIGNERS[hop])


def naming(previous: SignedCommit) -> Lies:
    """What the honest hop after a liar shows: it names, and holds, what it was given."""
    digest = previous.commit.digest(DOMAIN)
    return Lies(previous=previous, edit_commit=lambda commit: replace(commit, prev_commit=digest))


def audited_commit(job: Job, hop: int, before: str = "", own: str = "", after: str = "") -> AuditedCommit:
    commit = job.commit(hop)
    return AuditedCommit(
        signed=signed(commit, SIGNERS[hop]),
        node=NODES[hop],
        own=Party(own, signer(hop)),
        previous=NODES[hop - 1] if hop else None,
        before=Party(before, signer(hop - 1)) if hop else None,
        after=Party(after, signer(hop + 1)) if hop + 1 < job.hops else None,
    )


async def looked(*commits: AuditedCommit) -> list[Equivocation]:
    async with NodeReader(QUICK) as reader:
        return await EquivocationSearch(reader, DOMAIN).look(commits)


async def test_honest_neighbours_prove_nothing_and_are_asked_once_each() -> None:
    job = a_job()
    async with ServedNode(NODES[0], 0, [job]) as first, ServedNode(NODES[1], 1, [job]) as second:
        assert await looked(audited_commit(job, 0, after=second.url)) == []
        assert await looked(audited_commit(job, 1, before=first.url, own=second.url)) == []
        receipt = f"/v1/jobs/{job.spec.job_id.hex()}/receipt"
        assert first.requests == second.requests == [receipt]


async def test_what_the_next_hop_holds_convicts_the_audited_node() -> None:
    job = a_job()
    lie = other(job, 0)
    async with ServedNode(NODES[1], 1, [job], naming(lie)) as second:
        (proof,) = await looked(audited_commit(job, 0, after=second.url))
    assert (proof.node, proof.hop, proof.differing) == (NODES[0], 0, ("in_root",))
    assert set(proof.signers) == signer(0)
    assert {proof.first.commit, proof.second.commit} == {job.commit(0), lie.commit}


async def test_what_the_hop_before_answers_convicts_it() -> None:
    """The audited hop is the honest one: its leaf names what it was given, the hop before shows something else."""
    job = a_job()
    lie = other(job, 0)
    seen = audited_commit(job, 1)
    named = replace(job.commit(1), prev_commit=lie.commit.digest(DOMAIN))
    async with ServedNode(NODES[0], 0, [job]) as first, ServedNode(NODES[1], 1, [job], naming(lie)) as second:
        seen = replace(
            seen, signed=signed(named, SIGNERS[1]), own=Party(second.url, signer(1)), before=Party(first.url, signer(0))
        )
        (proof,) = await looked(seen)
    assert (proof.node, proof.hop) == (NODES[0], 0)


@pytest.mark.parametrize("case", ["forged", "another job", "the same", "nothing", "silent", "receipt by a stranger"])
async def test_what_a_neighbour_makes_up_proves_nothing(case: str) -> None:
    job = a_job()
    lie = other(job, 0)
    shown: dict[str, SignedCommit | None] = {
        "forged": signed(lie.commit, SIGNERS[1]),
        "another job": signed(replace(lie.commit, job_id=OTHER), SIGNERS[0]),
        "the same": signed(job.commit(0), SIGNERS[0]),
        "nothing": None,
    }
    lies = replace(naming(lie), previous=shown.get(case, lie))
    async with ServedNode(NODES[1], 1, [job], lies) as second:
        url = "http://127.0.0.1:1" if case == "silent" else second.url
        seen = audited_commit(job, 0, after=url)
        if case == "receipt by a stranger":
            seen = replace(seen, after=Party(url, signer(0)))
        assert await looked(seen) == []


async def test_two_leaves_of_one_job_convict_by_themselves() -> None:
    job = a_job()
    seen = audited_commit(job, 0)
    (proof,) = await looked(seen, replace(seen, signed=other(job, 0)), seen)
    assert (proof.node, proof.hop) == (NODES[0], 0)
    assert await looked(seen, seen) == []


def test_a_proof_has_one_form_and_reads_back() -> None:
    job = a_job()
    a, b = signed(job.commit(0), SIGNERS[0]), other(job, 0)
    proof = find(DOMAIN, NODES[0], a, b, signer(0))
    assert proof is not None
    assert proof == find(DOMAIN, NODES[0], b, a, signer(0)) == Equivocation.from_json(proof.to_json())
    assert proof.first.commit.digest(DOMAIN) < proof.second.commit.digest(DOMAIN)
    # Keys that changed in between are keys of the node.
    changed = signed(b.commit, SIGNERS[1])
    assert find(DOMAIN, NODES[0], a, changed, signer(0)) is None
    both = find(DOMAIN, NODES[0], a, changed, signer(0) | signer(1))
    assert both is not None
    assert set(both.signers) == signer(0) | signer(1)
    for wrong, code in (
        (a, "no-equivocation"),
        (signed(replace(b.commit, hop=1), SIGNERS[0]), "no-equivocation"),
        (SignedCommit(b.commit, bytes(65)), "bad-signature"),
    ):
        with pytest.raises(ProtocolError) as caught:
            Equivocation(DOMAIN, NODES[0], a, wrong)
        assert caught.value.code == code


def test_the_folder_keeps_a_case_once(tmp_path: Path) -> None:
    job = a_job()
    a = signed(job.commit(0), SIGNERS[0])
    folder = EvidenceFolder(tmp_path / "evidence")
    assert folder.open() == []
    proof = Equivocation(DOMAIN, NODES[0], a, other(job, 0))
    path = folder.keep(proof)
    assert path is not None
    assert read_proof(path) == proof
    third = Equivocation(DOMAIN, NODES[0], a, signed(replace(job.commit(0), tokens=1), SIGNERS[0]))
    assert folder.keep(third) is None
    assert folder.open() == [path]
    folder.settle(path)
    assert folder.open() == []
    assert folder.keep(proof) is None
    for text in ("{", "[]", "{}", "[" * 100_000):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_proof(tmp_path / "bad")
        assert caught.value.code == "bad-evidence"
    with pytest.raises(ConfigError):
        read_proof(tmp_path / "absent")


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (ProofStatus(ours=False), CaseStep.WAIT),
        (ProofStatus(True, theirs=True, stake=1), CaseStep.PROVE),
        (ProofStatus(True, theirs=True, stake=0), CaseStep.WAIT),
        (ProofStatus(True, theirs=True, proven=True, stake=1), CaseStep.SETTLE),
        (ProofStatus(True, theirs=False, stake=1), CaseStep.SETTLE),
    ],
)
def test_what_becomes_of_a_case(status: ProofStatus, step: CaseStep) -> None:
    assert next_step(status) is step
