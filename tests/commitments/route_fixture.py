"""A job over up to four hops, with whole commitments."""

from __future__ import annotations

import numpy as np

from efedllm.commitments.blame import Fault, check_route_commits, fed_ids, token_tree
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, encode
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import HopCommit, JobSpec, RouteHop, SignedCommit, ids_hash
from efedllm.commitments.signing import Signer

DOMAIN = Domain(31337, "0x" + "11" * 20)
MODEL = keccak(b"model")
SIGNERS = [Signer(keccak(bytes([i]))) for i in range(4)]
PROMPT = [5, 6, 7]
EMITTED = [8, 9, 10, 11]
T = len(PROMPT) + len(EMITTED) - 1
DIM = 2
FED = fed_ids(PROMPT, EMITTED)
SPEC = JobSpec(keccak(b"session"), 1, ids_hash(PROMPT), len(PROMPT), 8, 0, 0, 1_000_000, bytes(32), 2)
JOB = SPEC.job_id


def rows(boundary: int, version: int = 0, n: int = T) -> list[bytes]:
    """Canonical bytes of every row of a boundary; another version differs in row 4 only."""
    array = np.arange(n * DIM, dtype=np.float32).reshape(n, DIM) + boundary
    if version:
        array[4] += version
    return [encode(array[i : i + 1], WireDtype.BF16) for i in range(n)]


def tree_of(boundary: int, content: list[bytes]) -> BoundaryTree:
    if boundary == 0:
        return token_tree(JOB, fed_ids(PROMPT, EMITTED))
    tree = BoundaryTree(JOB, boundary, WireDtype.BF16, DIM)
    tree.append(b"".join(content))
    return tree


def sign(hop: int, commit: HopCommit) -> SignedCommit:
    return SignedCommit(commit, SIGNERS[hop].sign(commit.digest(DOMAIN)))


def route(hops: int) -> list[RouteHop]:
    return [
        RouteHop(s.address, s.address, "http://127.0.0.1:1", 2 * i, 2 * i + 2, keccak(bytes([9, i])))
        for i, s in enumerate(SIGNERS[:hops])
    ]


def commitments(hops: int) -> list[SignedCommit]:
    signed: list[SignedCommit] = []
    roots = [tree_of(b, rows(b)).root() for b in range(hops + 1)]
    for i, here in enumerate(route(hops)):
        assert here.shard_root is not None
        commit = HopCommit(
            job_id=JOB,
            spec_hash=SPEC.digest(DOMAIN),
            hop=i,
            lo=here.lo,
            hi=here.hi,
            profile=0,
            wire_dtype=2,
            tokens=T,
            model_id=MODEL,
            shard_root=here.shard_root,
            in_root=roots[i],
            out_root=roots[i + 1],
            tokens_hash=ids_hash(EMITTED) if i == hops - 1 else ZERO32,
            aux_root=ZERO32,
            prev_commit=signed[-1].commit.digest(DOMAIN) if signed else ZERO32,
            epoch=3,
        )
        signed.append(sign(i, commit))
    return signed


def check(commits: list[SignedCommit | None]) -> list[Fault]:
    return check_route_commits(SPEC, PROMPT, EMITTED, commits, domain=DOMAIN, route=route(len(commits)), model_id=MODEL)
