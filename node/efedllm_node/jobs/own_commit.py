"""The commitment of one hop: making ours, and checking that of the previous hop against what it sent us."""

from __future__ import annotations

from dataclasses import dataclass

from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import EXACT_PROFILE, HopCommit, RouteHop, SignedCommit, ids_hash
from efedllm.commitments.signing import check
from efedllm.errors import ProtocolError


@dataclass(frozen=True)
class OwnHop:
    """What a hop knows of a job when it commits. `spec_hash`: digest of the signed spec it was opened with; `tokens`:
    positions; `emitted`: on the last hop only."""

    job_id: bytes
    spec_hash: bytes
    hop: int
    lo: int
    hi: int
    wire_dtype: int
    model_id: bytes
    shard_root: bytes
    tokens: int
    in_root: bytes
    out_root: bytes
    emitted: tuple[int, ...] | None
    profile: int = 0
    aux_root: bytes = ZERO32


def check_previous(signed: SignedCommit, own: OwnHop, prev: RouteHop, domain: Domain) -> None:
    """Whether the previous hop's commitment fits what we received from it: "bad-signature" or "commit-mismatch"."""
    check(signed.commit.digest(domain), signed.signature, prev.signer)
    commit = signed.commit
    wanted = (
        own.job_id,
        own.spec_hash,
        own.hop - 1,
        prev.lo,
        prev.hi,
        own.wire_dtype,
        own.tokens,
        own.model_id,
        own.in_root,
        own.profile == EXACT_PROFILE,
    )
    got = (
        commit.job_id,
        commit.spec_hash,
        commit.hop,
        commit.lo,
        commit.hi,
        commit.wire_dtype,
        commit.tokens,
        commit.model_id,
        commit.out_root,
        # Neighbours may compute a float model in different dtypes.
        commit.profile == EXACT_PROFILE,
    )
    names = ("job", "spec", "hop", "lo", "hi", "wire dtype", "positions", "model", "output root", "profile")
    wrong = [name for name, a, b in zip(names, wanted, got, strict=True) if a != b]
    if prev.shard_root is not None and commit.shard_root != prev.shard_root:
        wrong.append("shard")
    if wrong:
        raise ProtocolError("commit-mismatch", f"The commitment of hop {own.hop - 1} has another {', '.join(wrong)}.")


def make_commit(own: OwnHop, prev_commit: bytes, epoch: int) -> HopCommit:
    """Our commitment."""
    return HopCommit(
        job_id=own.job_id,
        spec_hash=own.spec_hash,
        hop=own.hop,
        lo=own.lo,
        hi=own.hi,
        profile=own.profile,
        wire_dtype=own.wire_dtype,
        tokens=own.tokens,
        model_id=own.model_id,
        shard_root=own.shard_root,
        in_root=own.in_root,
        out_root=own.out_root,
        tokens_hash=ZERO32 if own.emitted is None else ids_hash(list(own.emitted)),
        aux_root=own.aux_root,
        prev_commit=prev_commit,
        epoch=epoch,
    )
