"""What one side of a boundary can show: its leaves and the envelopes both sides signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from efedllm.commitments.boundary import MAX_POSITIONS
from efedllm.commitments.eip712 import as_object, parse_hex, to_hex
from efedllm.commitments.hashing import as_h32
from efedllm.commitments.messages import Envelope
from efedllm.errors import ProtocolError

_KEYS = frozenset({"from_pos", "n", "prev", "chunk_hash", "sender_sig", "receiver_sig"})


@dataclass(frozen=True)
class EnvelopeRecord:
    """One envelope with the signatures its holder has; None where it has none. Signatures are not checked here."""

    envelope: Envelope
    sender_sig: bytes | None
    receiver_sig: bytes | None

    def __post_init__(self) -> None:
        for sig in (self.sender_sig, self.receiver_sig):
            if sig is not None and (not isinstance(sig, bytes) or len(sig) != 65):
                raise ProtocolError("bad-message", "A signature must be 65 bytes.")

    def to_json(self) -> dict[str, Any]:
        """{from_pos, n, prev, chunk_hash, sender_sig, receiver_sig}; job and boundary are the document's."""
        return {
            "from_pos": self.envelope.from_pos,
            "n": self.envelope.n,
            "prev": to_hex(self.envelope.prev),
            "chunk_hash": to_hex(self.envelope.chunk_hash),
            "sender_sig": None if self.sender_sig is None else to_hex(self.sender_sig),
            "receiver_sig": None if self.receiver_sig is None else to_hex(self.receiver_sig),
        }

    @classmethod
    def from_json(cls, value: object, job_id: bytes, boundary: int) -> Self:
        """The record behind `to_json`; ProtocolError("bad-message") on anything else."""
        data = as_object(value, _KEYS, "envelope")
        envelope = Envelope(
            job_id,
            boundary,
            data["from_pos"],
            data["n"],
            parse_hex(data["chunk_hash"], "chunk_hash", 32),
            parse_hex(data["prev"], "prev", 32),
        )
        sigs = [None if data[k] is None else parse_hex(data[k], k, 65) for k in ("sender_sig", "receiver_sig")]
        return cls(envelope, sigs[0], sigs[1])


@dataclass(frozen=True)
class BoundaryEvidence:
    """Leaves of a boundary in position order, and its envelopes. Served as `GET
    /v1/jobs/{job_id}/evidence?boundary=b`.
    """

    leaves: tuple[bytes, ...]
    envelopes: tuple[EnvelopeRecord, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", tuple(self.leaves))
        object.__setattr__(self, "envelopes", tuple(self.envelopes))
        if len(self.leaves) > MAX_POSITIONS or len(self.envelopes) > MAX_POSITIONS:
            raise ProtocolError("too-long", f"A boundary holds at most {MAX_POSITIONS} positions.")
        for leaf in self.leaves:
            as_h32(leaf, "leaf")
        # Rows are sent once and in order; overlaps would only make evidence costly to check.
        end = 0
        for record in self.envelopes:
            if record.envelope.from_pos < end:
                raise ProtocolError("bad-message", "The envelopes of a boundary must be in order and not overlap.")
            end = record.envelope.from_pos + record.envelope.n

    def to_json(self) -> dict[str, Any]:
        """{leaves, envelopes}."""
        return {"leaves": [to_hex(leaf) for leaf in self.leaves], "envelopes": [e.to_json() for e in self.envelopes]}

    @classmethod
    def from_json(cls, value: object, job_id: bytes, boundary: int) -> Self:
        """The evidence behind `to_json`; ProtocolError("bad-message") on anything else."""
        data = as_object(value, frozenset({"leaves", "envelopes"}), "evidence")
        if not isinstance(data["leaves"], list) or not isinstance(data["envelopes"], list):
            raise ProtocolError("bad-message", "leaves and envelopes must be lists.")
        return cls(
            tuple(parse_hex(leaf, "leaf", 32) for leaf in data["leaves"]),
            tuple(EnvelopeRecord.from_json(record, job_id, boundary) for record in data["envelopes"]),
        )
