"""Lies in a posted batch: the leaf or the root of another node (11), malformed trees (25)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from efedllm.commitments.eip712 import to_hex
from efedllm.commitments.hashing import keccak
from efedllm.commitments.leaves import batch_root, hop_leaf
from efedllm.commitments.merkle import merkle
from efedllm.commitments.messages import SignedCommit, signed_job_json
from efedllm_bench.attacks.lab import DOMAIN, EPOCH, NODES, SIGNERS, Lab, LabJob
from efedllm_bench.attacks.lies.judges import code_of, refusal
from efedllm_verifier.leaf import Leaf, committed_leaves


def copied_leaf(lab: Lab, job: LabJob) -> str:
    """The leaf, commitment and signature of another node, in the batch of this node."""
    return code_of(lab.judge(job, 1, lab.leaf(job, 1, signer=SIGNERS[2])))


def _shown(leaves: Sequence[tuple[Leaf, bytes]]) -> dict[str, Any]:
    """A batch as a node serves it, of leaves and their salts."""
    found = []
    for leaf, salt in leaves:
        assert leaf.terms is not None
        job = signed_job_json(leaf.terms.key, leaf.terms.spec, leaf.terms.signature)
        signed = SignedCommit(leaf.commit, leaf.signature).to_json()
        found.append({**signed, "salt": to_hex(salt), "job": job})
    return {"leaves": found}


def _salted(lab: Lab, job: LabJob, count: int) -> tuple[list[tuple[Leaf, bytes]], list[bytes]]:
    """(`count` leaves of hop 1 with their salts, the hashes of these leaves)."""
    leaf = lab.leaf(job, 1)
    salts = [keccak(bytes([index])) for index in range(count)]
    return [(leaf, salt) for salt in salts], [hop_leaf(leaf.commit.digest(DOMAIN), salt) for salt in salts]


def _posted(shown: dict[str, Any], hop: int, root: bytes, count: int) -> str:
    """What an auditor says to these leaves of a batch that the node of `hop` posted."""
    return refusal(lambda: committed_leaves(shown, DOMAIN, NODES[hop], EPOCH, 0, root, count))


def copied_root(lab: Lab, job: LabJob) -> str:
    """A node posts the batch root of another node and shows the leaves of that node. The root binds an address."""
    leaves, hashes = _salted(lab, job, 3)
    theirs = batch_root(NODES[1], EPOCH, 0, hashes)
    if _posted(_shown(leaves), 1, theirs, 3):
        return "the owner's batch is refused"
    return _posted(_shown(leaves), 2, theirs, 3)


def second_preimage(lab: Lab, job: LabJob) -> str:
    """An inner node of the tree is shown as a leaf. The plain root is the same; the posted root binds the count."""
    leaves, hashes = _salted(lab, job, 4)
    inner = [keccak(b"\x01" + hashes[0] + hashes[1]), keccak(b"\x01" + hashes[2] + hashes[3])]
    assert merkle(inner) == merkle(hashes)
    return _posted(_shown(leaves), 1, batch_root(NODES[1], EPOCH, 0, inner), 2)


def leaf_repeated(lab: Lab, job: LabJob) -> str:
    """The last leaf is shown twice, as in trees that pad by repetition."""
    leaves, hashes = _salted(lab, job, 3)
    return _posted(_shown([*leaves, leaves[-1]]), 1, batch_root(NODES[1], EPOCH, 0, hashes), 3)
