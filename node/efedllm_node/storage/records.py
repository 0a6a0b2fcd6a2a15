"""Frozen records between the store and the rest of the node."""

from __future__ import annotations

from dataclasses import dataclass

from efedllm.commitments.evidence import EnvelopeRecord
from efedllm.commitments.messages import JobSpec, RouteHop, SessionKey, SignedCommit, Voucher
from efedllm.errors import ProtocolError


@dataclass(frozen=True)
class SessionRecord:
    """A payment channel that pays this node. `price`: gwei for 1000 tokens on the whole route; amounts in wei."""

    session_id: bytes
    key: SessionKey
    hop: int
    price: int
    deposit: int
    settled: int
    status: int
    cumulative: int = 0
    voucher: Voucher | None = None
    voucher_sig: bytes | None = None
    billed: int = 0


@dataclass(frozen=True)
class OpenedJob:
    """A job as it was opened. `in_row`: bytes of one row that it reads."""

    job_id: bytes
    session_id: bytes
    hop: int
    hops: int
    spec: JobSpec
    spec_sig: bytes
    route: tuple[RouteHop, ...]
    prompt: bytes | None
    in_row: int


@dataclass(frozen=True)
class CommittedJob:
    """Our commitment of a job with its evidence. `salt`: of its leaf; `previous`: commitment of the previous hop."""

    signed: SignedCommit
    digest: bytes
    salt: bytes
    emitted: bytes | None
    envelopes: tuple[EnvelopeRecord, ...]
    billed: int
    previous: SignedCommit | None = None


@dataclass(frozen=True)
class Predecessor:
    """The commitment of the previous hop. `node`: address of that hop's node."""

    node: str
    signed: SignedCommit


@dataclass(frozen=True)
class PendingLeaf:
    """A commitment that no batch holds yet."""

    job_id: bytes
    digest: bytes
    salt: bytes
    epoch: int


@dataclass(frozen=True)
class BatchRecord:
    """A batch of leaves. status: planned, posted or superseded."""

    number: int
    seq: int
    epoch: int
    root: bytes
    count: int
    status: str


@dataclass(frozen=True)
class LeafRecord:
    """One leaf with all that an auditor needs to repeat the hop."""

    signed: SignedCommit
    salt: bytes
    key: SessionKey
    job: OpenedJob
    emitted: bytes | None


@dataclass(frozen=True)
class BoundaryPlace:
    """Where the rows under a boundary root are. `incoming`: among what the job read."""

    job_id: bytes
    boundary: int
    incoming: bool
    wire_dtype: int
    count: int


@dataclass(frozen=True)
class OriginRecord:
    """`block`: the store has every job of the sessions that were opened after it. `file`: inode number of the store's
    file; a copy has another one.
    """

    block: int
    file: str


def job_exists() -> ProtocolError:
    """A job number is used once."""
    return ProtocolError("job-exists", "This job number of the session was used before.", "Use the next one.")
