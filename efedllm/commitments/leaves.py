"""Leaves, identifiers and length-bound roots. Integers are big-endian and packed.

First byte: 0x00 leaf, 0x01 inner node, 0x02 root with length, 0x03 pad. Then a 16-byte ASCII tag, zero padded. No
value of one kind can therefore be read as another kind.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import address_bytes, as_h32, keccak, sha256
from efedllm.commitments.merkle import merkle
from efedllm.errors import ProtocolError

TAG_JOB = b"EFL.job.1".ljust(16, b"\0")
TAG_ACT = b"EFL.act.1".ljust(16, b"\0")
TAG_HOP = b"EFL.hop.1".ljust(16, b"\0")
TAG_BATCH = b"EFL.batch.1".ljust(16, b"\0")
LEAF = b"\x00"
ROOT = b"\x02"


def _pack(layout: str, *values: int) -> bytes:
    try:
        return struct.pack(layout, *values)
    except struct.error:
        raise ProtocolError("bad-message", f"An integer of a leaf is out of range: {values}.") from None


def job_id(session_id: bytes, job_seq: int) -> bytes:
    """Identifier of the `job_seq`-th job of a session."""
    return keccak(LEAF + TAG_JOB + as_h32(session_id, "session_id") + _pack(">Q", job_seq))


def act_prefix(job_id: bytes, boundary: int) -> bytes:
    """The part of an activation leaf that all rows of a boundary share."""
    return LEAF + TAG_ACT + as_h32(job_id, "job_id") + _pack(">H", boundary)


def act_leaf(job_id: bytes, boundary: int, pos: int, dtype: WireDtype, dim: int, row: bytes) -> bytes:
    """Leaf of one row (one position) of a boundary; `row` is its canonical bytes."""
    return keccak(act_prefix(job_id, boundary) + _pack(">IBI", pos, dtype, dim) + sha256(row))


def chunk_hash(leaves: Sequence[bytes]) -> bytes:
    """What an envelope signs for consecutive leaves: K of their concatenation."""
    return keccak(b"".join(leaves))


def boundary_root(job_id: bytes, boundary: int, leaves: Sequence[bytes]) -> bytes:
    """Root of one boundary of a job, bound to the number of rows."""
    head = ROOT + TAG_ACT + as_h32(job_id, "job_id") + _pack(">HI", boundary, len(leaves))
    return keccak(head + merkle(leaves))


def hop_leaf(commit_digest: bytes, salt: bytes) -> bytes:
    """Leaf of one HopCommit in a node's batch; the salt keeps roots from being guessed or copied."""
    return keccak(LEAF + TAG_HOP + as_h32(commit_digest, "commit digest") + as_h32(salt, "salt"))


def batch_root(node: str, epoch: int, seq: int, leaves: Sequence[bytes]) -> bytes:
    """Root a node posts on chain: over hop leaves, bound to the node, the epoch, the sequence number and the count."""
    head = ROOT + TAG_BATCH + address_bytes(node) + _pack(">QQI", epoch, seq, len(leaves))
    return keccak(head + merkle(leaves))
