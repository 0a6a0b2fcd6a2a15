"""Attacks on messages and commitments: what is signed, hashed and shown. Each yields what the checks say about it.

Every strategy takes a real job of the lab, tells one lie about it, and hands the result to its judge: the code that a
verifier, a node or a client runs, or the compiled contracts. The name of the fault found is returned, "" when none was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from efedllm.commitments.blame import blame_boundary, check_route_commits
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, decode, encode, itemsize
from efedllm.commitments.eip712 import Domain, to_hex
from efedllm.commitments.evidence import BoundaryEvidence, EnvelopeRecord
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.leaves import batch_root, hop_leaf
from efedllm.commitments.merkle import merkle
from efedllm.commitments.messages import Envelope, JobSpec, RouteHop, SignedCommit, signed_job_json
from efedllm.commitments.signing import Signer, recover
from efedllm.errors import ProtocolError
from efedllm.sampling.float import SamplingSpec
from efedllm_bench.attacks.cheats.catalog import Profile
from efedllm_bench.attacks.cheats.outputs import EditedOutput, noisy
from efedllm_bench.attacks.lab import CLIENT, DOMAIN, EPOCH, NODES, RANGES, SIGNERS, Job, Lab, rewritten, session
from efedllm_bench.attacks.lies import canaries, equivocation, specs
from efedllm_bench.attacks.lies import openings as opened
from efedllm_verifier.engine_cache import self_test
from efedllm_verifier.leaf import Leaf, committed_leaves
from efedllm_verifier.leaf_audit import hashes_to
from efedllm_verifier.neighbour_checks import unsigned_positions
from efedllm_verifier.statistic import BackendError

STRANGER = Signer(keccak(b"stranger"))
LAST = len(RANGES) - 1
# The order of secp256k1: s and order - s are signatures of the same key over the same digest.
_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


Judge = Literal["verifier", "node", "client", "contract", "nobody"]


@dataclass(frozen=True)
class MessageAttack:
    """A lie in what is signed or shown. `finds`: the fault or refusal it must meet, `exact` where that differs in the
    exact profile. `judge`: whose code says so; "nobody" where a function could, but nothing that runs calls it.
    """

    number: int
    name: str
    changes: str
    run: Callable[[Lab, Job], str]
    finds: str
    exact: str = ""
    judge: Judge = "verifier"

    def expected(self, profile: Profile) -> str:
        return self.exact if self.exact and profile == "exact" else self.finds


def _code(lab: Lab, job: Job, hop: int, **commit: object) -> str:
    leaf = lab.leaf(job, hop, lab.commit(job, hop, **commit))
    fault = lab.judge(job, hop, leaf).fault
    return "" if fault is None else fault.code


def _refused(work: Callable[[], object]) -> str:
    try:
        work()
    except ProtocolError as error:
        return error.code
    return ""


def _other_prompt(lab: Lab, job: Job, prompt: tuple[int, ...]) -> str:
    """Hop 0 ran and committed to another prompt than the one that the client signed."""
    spec = SamplingSpec.from_job(job.spec)
    (made,) = lab.generate([prompt], len(job.emitted), sampling=spec)
    return _code(lab, replace(made, spec=job.spec, prompt=job.prompt), 0)


def _prompt_edit(lab: Lab, job: Job) -> str:
    return _other_prompt(lab, job, (*job.prompt[:3], (job.prompt[3] + 1) % 4096, *job.prompt[4:]))


def _prompt_drop(lab: Lab, job: Job) -> str:
    return _other_prompt(lab, job, job.prompt[1:])


def _system_inject(lab: Lab, job: Job) -> str:
    return _other_prompt(lab, job, (11, 12, 13, *job.prompt))


def _copied_leaf(lab: Lab, job: Job) -> str:
    """Another node's leaf, commitment and signature, in one's own batch."""
    fault = lab.judge(job, 1, lab.leaf(job, 1, signer=SIGNERS[2])).fault
    assert fault is not None
    return fault.code


def _copied_commit(lab: Lab, job: Job) -> str:
    """Another hop's commitment under one's own signature."""
    leaf = lab.leaf(job, 1, signer=SIGNERS[2])
    fault = lab.judge(job, 2, leaf).fault
    return "" if fault is None else fault.code


def _shown(leaves: Sequence[tuple[Leaf, bytes]]) -> dict[str, Any]:
    """A batch as a node serves it, of leaves and their salts."""
    found = []
    for leaf, salt in leaves:
        assert leaf.terms is not None
        job = signed_job_json(leaf.terms.key, leaf.terms.spec, leaf.terms.signature)
        signed = SignedCommit(leaf.commit, leaf.signature).to_json()
        found.append({**signed, "salt": to_hex(salt), "job": job})
    return {"leaves": found}


def _salted(lab: Lab, job: Job, count: int) -> tuple[list[tuple[Leaf, bytes]], list[bytes]]:
    """(leaves of hop 1 with their salts, their hashes)."""
    leaf = lab.leaf(job, 1)
    salts = [keccak(bytes([index])) for index in range(count)]
    return [(leaf, salt) for salt in salts], [hop_leaf(leaf.commit.digest(DOMAIN), salt) for salt in salts]


def _posted(shown: dict[str, Any], hop: int, root: bytes, count: int) -> str:
    """What an auditor says to these leaves of a batch that the node of `hop` posted."""
    return _refused(lambda: committed_leaves(shown, DOMAIN, NODES[hop], EPOCH, 0, root, count))


def _copied_root(lab: Lab, job: Job) -> str:
    """Another node's batch root, posted as one's own, with that node's leaves: the address is in the root."""
    leaves, hashes = _salted(lab, job, 3)
    theirs = batch_root(NODES[1], EPOCH, 0, hashes)
    if _posted(_shown(leaves), 1, theirs, 3):
        return "the owner's batch is refused"
    return _posted(_shown(leaves), 2, theirs, 3)


def _stale_commit(lab: Lab, job: Job) -> str:
    """Yesterday's commitment with today's job."""
    other = replace(job, spec=replace(job.spec, job_seq=job.spec.job_seq + 1))
    return _code(lab, job, 1, job_id=other.spec.job_id)


def _stale_rows(lab: Lab, job: Job) -> str:
    """Rows of another job under the root that they had there: job and position are in every leaf, so that no answer
    hashes to it.
    """
    other = replace(job, spec=replace(job.spec, job_seq=job.spec.job_seq + 7))
    commits = [lab.commit(job, 1, out_root=lab.commit(told, 1).out_root) for told in (job, other)]
    own, stale = (
        hashes_to(commit.job_id, 2, job.wire, lab.hidden, commit.out_root, job.boundaries[2]) for commit in commits
    )
    return "" if stale else "withheld" if own else "the job's own rows are refused"


def evidence(lab: Lab, job: Job, boundary: int, sender: Signer, receiver: Signer) -> BoundaryEvidence:
    """Leaves of a boundary, and one envelope per position, signed by both sides."""
    tree = BoundaryTree(job.spec.job_id, boundary, job.wire, lab.hidden)
    tree.append(job.boundaries[boundary])
    prev, records = ZERO32, []
    for at in range(tree.length):
        envelope = Envelope(job.spec.job_id, boundary, at, 1, tree.chunk(at, 1), prev)
        prev = envelope.digest(DOMAIN)
        records.append(EnvelopeRecord(envelope, sender.sign(prev), receiver.sign(prev)))
    return BoundaryEvidence(tree.leaves, tuple(records))


def _nudged(lab: Lab, job: Job, boundary: int) -> Job:
    rows = decode(job.boundaries[boundary], job.wire, lab.hidden).copy()
    rows[-1, 0] += 1
    return rewritten(job, boundary, encode(rows, job.wire))


def _dispute(lab: Lab, job: Job, liar: str) -> str:
    """Hops 1 and 2 exchanged boundary 2 honestly; then `liar` commits to, and opens, another version of it."""
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


def _forged_envelope(lab: Lab, job: Job) -> str:
    """A hop that shows envelopes of its own making for what it says it was sent."""
    forged = evidence(lab, job, 2, STRANGER, SIGNERS[2])
    missing = unsigned_positions(DOMAIN, forged.leaves, 0, forged, frozenset({SIGNERS[1].address}))
    return "unsigned-input" if len(missing) == job.positions else ""


def _omission(lab: Lab, job: Job) -> str:
    """No commitment at all for a job whose tokens the client has; its receipt check sees it, no contract punishes."""
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


def _late(lab: Lab, job: Job) -> str:
    return _code(lab, job, 1, epoch=EPOCH - 2)


def _nonfinite(lab: Lab, job: Job) -> str:
    return _poisoned(lab, job, 0x7FC00000)


def _minus_zero(lab: Lab, job: Job) -> str:
    return _poisoned(lab, job, 0x80000000)


def _poisoned(lab: Lab, job: Job, bits: int) -> str:
    words = np.frombuffer(job.boundaries[2], dtype="<u4").copy()
    words[777] = bits
    return _code(lab, rewritten(job, 2, words.tobytes()), 1)


def _big_endian(lab: Lab, job: Job) -> str:
    """Right numbers in the wrong byte order: other numbers, or none at all."""
    return _code(lab, rewritten(job, 2, np.frombuffer(job.boundaries[2], "<u4").astype(">u4").tobytes()), 1)


def _dtype_lie(lab: Lab, job: Job) -> str:
    return _code(lab, job, 1, wire_dtype=int(WireDtype.BF16))


def _length_lie(lab: Lab, job: Job) -> str:
    """One position more than the job may have."""
    return _code(lab, job, 1, tokens=job.spec.prompt_tokens + job.spec.max_new_tokens)


def _half_rows(lab: Lab, job: Job) -> str:
    """A row of half the width."""
    tree = BoundaryTree(job.spec.job_id, 2, job.wire, lab.hidden)
    return _refused(lambda: tree.append(job.boundaries[2][: lab.hidden * itemsize(job.wire) // 2]))


def _second_preimage(lab: Lab, job: Job) -> str:
    """An inner node of the tree passed off as a leaf: the plain root is the same, the posted one binds the count."""
    leaves, hashes = _salted(lab, job, 4)
    inner = [keccak(b"\x01" + hashes[0] + hashes[1]), keccak(b"\x01" + hashes[2] + hashes[3])]
    assert merkle(inner) == merkle(hashes)
    return _posted(_shown(leaves), 1, batch_root(NODES[1], EPOCH, 0, inner), 2)


def _odd_leaf(lab: Lab, job: Job) -> str:
    """The last leaf twice, as in trees that pad by repetition."""
    leaves, hashes = _salted(lab, job, 3)
    return _posted(_shown([*leaves, leaves[-1]]), 1, batch_root(NODES[1], EPOCH, 0, hashes), 3)


def _duplicated_tokens_hash(lab: Lab, job: Job) -> str:
    told = replace(job, emitted=(*job.emitted[:-1], (job.emitted[-1] + 1) % 4096))
    leaf = replace(lab.leaf(job, LAST), emitted=told.emitted)
    fault = lab.judge(told, LAST, leaf).fault
    return "" if fault is None else fault.code


def _other_chain(lab: Lab, job: Job) -> str:
    """A commitment signed for another deployment."""
    commit = lab.commit(job, 1)
    elsewhere = SIGNERS[1].sign(commit.digest(Domain(1, DOMAIN.contract)))
    fault = lab.judge(job, 1, replace(lab.leaf(job, 1), signature=elsewhere)).fault
    return "" if fault is None else fault.code


def _malleable(lab: Lab, job: Job) -> str:
    """The second signature that anybody can derive from one."""
    digest = lab.commit(job, 1).digest(DOMAIN)
    good = SIGNERS[1].sign(digest)
    other = (_ORDER - int.from_bytes(good[32:64])).to_bytes(32) + bytes([55 - good[64]])
    return _refused(lambda: recover(digest, good[:32] + other))


def _resold_job(lab: Lab, job: Job) -> str:
    """A job spec that the client signed for another session."""
    moved: JobSpec = replace(job.spec, session_id=keccak(b"another session"))
    leaf = lab.leaf(replace(job, spec=moved), 1, lab.commit(replace(job, spec=moved), 1))
    assert leaf.terms is not None
    terms = replace(leaf.terms, signature=CLIENT.sign(moved.digest(DOMAIN)))
    fault = lab.judge(replace(job, spec=moved), 1, replace(leaf, terms=terms)).fault
    return "" if fault is None else fault.code


def _drift(lab: Lab, _job: Job) -> str:
    """A verifier whose backend changed since its golden vector: it must abstain, not accuse."""
    with TemporaryDirectory() as folder:
        golden = Path(folder) / "golden.npy"
        self_test(lab.engines[1], golden)
        try:
            self_test(EditedOutput(lab.engines[1], noisy(1e-4)), golden)
        except BackendError:
            return "abstains"
    return ""


MESSAGE_ATTACKS: tuple[MessageAttack, ...] = (
    MessageAttack(
        7, "prompt_edit_committed", "hop 0 commits to a prompt with one other token", _prompt_edit, "wrong-prompt"
    ),
    MessageAttack(7, "prompt_drop", "hop 0 leaves out the first token", _prompt_drop, "wrong-prompt"),
    MessageAttack(
        7, "system_inject_committed", "hop 0 puts three tokens before the prompt", _system_inject, "wrong-length"
    ),
    MessageAttack(
        10,
        "tokens_rewritten",
        "the last hop shows another token than it committed to",
        _duplicated_tokens_hash,
        "tokens-hash",
    ),
    MessageAttack(11, "lazy_copy_leaf", "another node's leaf in one's own batch", _copied_leaf, "commit-signature"),
    MessageAttack(11, "lazy_copy_commit", "another hop's commitment, signed by oneself", _copied_commit, "wrong-shard"),
    MessageAttack(11, "lazy_copy_root", "another node's batch root", _copied_root, "other-root"),
    MessageAttack(12, "stale_commit", "a commitment of another job", _stale_commit, "foreign-job"),
    MessageAttack(12, "stale_rows", "rows of another job", _stale_rows, "withheld"),
    MessageAttack(
        *(15, "equivocation", "two commitments for one job and hop", equivocation.played, "slashed"), judge="contract"
    ),
    MessageAttack(15, "two_specs", "another signed spec of the job for every verifier", specs.two_specs, "wrong-spec"),
    MessageAttack(
        *(15, "second_spec_committed", "tokens of one spec, a commitment to the other"),
        *(specs.committed_to_the_other, "wrong-token"),
    ),
    MessageAttack(
        *(15, "spec_for_each_hop", "another signed spec for the next hop", specs.one_for_each_hop, "commit-mismatch"),
        judge="node",
    ),
    MessageAttack(
        15,
        "sender_lies",
        "commits to other rows than it sent",
        lambda lab, job: _dispute(lab, job, "sender"),
        "sender-lied",
    ),
    MessageAttack(
        15,
        "receiver_lies",
        "commits to other rows than it got",
        lambda lab, job: _dispute(lab, job, "receiver"),
        "receiver-lied",
    ),
    MessageAttack(
        15, "bad_envelope", "inputs that nobody sent, under forged envelopes", _forged_envelope, "unsigned-input"
    ),
    MessageAttack(
        *(16, "commit_omission", "no commitment for a job that was served", _omission, "missing-commit"), judge="client"
    ),
    MessageAttack(16, "late_commit", "a commitment two epochs old", _late, "wrong-epoch"),
    MessageAttack(19, "canary_recomputed", "a canary, before a verifier that looks", canaries.unseen, "wrong-output"),
    MessageAttack(
        *(19, "consent_afterwards", "a cheat's client signs once it is drawn", opened.afterwards, "UnknownBatch"),
        judge="contract",
    ),
    MessageAttack(
        *(19, "cheat_behind_canary", "a cheat beside a canary", opened.behind, "slashed, nothing forgiven"),
        judge="contract",
    ),
    MessageAttack(
        *(19, "consent_reused", "the consent of another job", canaries.of_another_job, "bad-signature"), judge="node"
    ),
    MessageAttack(
        *(19, "consent_of_the_node", "signed by the node itself", canaries.of_the_node, "bad-signature"), judge="node"
    ),
    MessageAttack(
        *(19, "consent_of_a_stranger", "a client the operator does not know", canaries.of_a_stranger, "canary-refused"),
        judge="node",
    ),
    MessageAttack(25, "nonfinite_bytes", "a NaN in the output", _nonfinite, "bad-output-bytes"),
    MessageAttack(25, "minus_zero", "a negative zero in the output", _minus_zero, "bad-output-bytes"),
    MessageAttack(25, "wrong_endianness", "the output in big-endian", _big_endian, "bad-output-bytes"),
    MessageAttack(
        25, "dtype_lie", "another wire dtype than the client signed", _dtype_lie, "foreign-job", "wrong-wire"
    ),
    MessageAttack(25, "length_lie", "more positions than the job may have", _length_lie, "wrong-length"),
    MessageAttack(25, "half_rows", "rows of half the width", _half_rows, "bad-length", judge="node"),
    MessageAttack(25, "second_preimage", "an inner node passed off as a leaf", _second_preimage, "other-root"),
    MessageAttack(25, "odd_leaf", "the last leaf twice", _odd_leaf, "other-root"),
    MessageAttack(26, "verifier_drift", "a verifier whose backend changed", _drift, "abstains"),
    MessageAttack(28, "other_chain", "a signature for another deployment", _other_chain, "commit-signature"),
    MessageAttack(28, "malleable_signature", "the other s of a signature", _malleable, "bad-signature"),
    MessageAttack(28, "resold_job", "a job of another session", _resold_job, "foreign-job"),
)
