"""The hot frames, packed: ACT carries rows of a boundary, ACK acknowledges them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from efedllm.commitments.canonical import WireDtype, as_dtype, itemsize
from efedllm.commitments.hashing import as_h32, as_uint
from efedllm.commitments.messages import Envelope
from efedllm.errors import ProtocolError
from efedllm.wire.body import expect, signature_bytes
from efedllm.wire.frames import ACK_BODY_BYTES, ACT_BODY_BYTES, Frame, FrameType

_ACT: Final = struct.Struct("<32sHIIBI32s65s")
_ACK: Final = struct.Struct("<32sHII65s")
assert _ACT.size == ACT_BODY_BYTES
assert _ACK.size == ACK_BODY_BYTES


@dataclass(frozen=True)
class ActMsg:
    """Rows of one boundary with the sender's envelope signature.

    The chunk hash is not sent: the receiver computes it from the rows (BoundaryTree.append) and checks `signature` over
    `envelope(chunk_hash)`. `payload` is `n` rows of `dim` elements, canonical bytes.
    """

    TYPE: ClassVar[FrameType] = FrameType.ACT
    job_id: bytes
    boundary: int
    from_pos: int
    n: int
    dtype: WireDtype
    dim: int
    prev: bytes
    signature: bytes
    payload: bytes

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")
        as_uint(self.boundary, 16, "boundary")
        as_uint(self.from_pos, 32, "from_pos")
        as_uint(self.n, 32, "n")
        as_uint(self.dim, 32, "dim")
        as_h32(self.prev, "prev")
        signature_bytes(self.signature)
        if (self.dtype is WireDtype.I32) != (self.boundary == 0):
            raise ProtocolError("bad-message", "Boundary 0 carries token ids and every other boundary hidden states.")
        if self.n < 1 or self.dim < 1 or (self.dtype is WireDtype.I32 and self.dim != 1):
            raise ProtocolError("bad-message", "An ACT frame carries at least one row of at least one element.")
        if len(self.payload) != self.n * self.dim * itemsize(self.dtype):
            raise ProtocolError("bad-length", "The payload is not n rows of dim elements.")

    def envelope(self, chunk_hash: bytes) -> Envelope:
        """The envelope `signature` covers, given the hash of the rows' leaves."""
        return Envelope(self.job_id, self.boundary, self.from_pos, self.n, chunk_hash, self.prev)

    def to_frame(self) -> Frame:
        body = _ACT.pack(
            self.job_id, self.boundary, self.from_pos, self.n, self.dtype, self.dim, self.prev, self.signature
        )
        return Frame(self.TYPE, body, self.payload)

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        expect(frame, cls.TYPE)
        if len(frame.body) != ACT_BODY_BYTES:
            raise ProtocolError("bad-frame", f"The body of an ACT frame has {ACT_BODY_BYTES} bytes.")
        job_id, boundary, from_pos, n, dtype, dim, prev, signature = _ACT.unpack(frame.body)
        return cls(job_id, boundary, from_pos, n, as_dtype(dtype), dim, prev, signature, frame.payload)


@dataclass(frozen=True)
class AckMsg:
    """The receiver's signature over the same envelope, on the socket the ACT came by."""

    TYPE: ClassVar[FrameType] = FrameType.ACK
    job_id: bytes
    boundary: int
    from_pos: int
    n: int
    signature: bytes

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")
        as_uint(self.boundary, 16, "boundary")
        as_uint(self.from_pos, 32, "from_pos")
        as_uint(self.n, 32, "n")
        signature_bytes(self.signature)

    def to_frame(self) -> Frame:
        return Frame(self.TYPE, _ACK.pack(self.job_id, self.boundary, self.from_pos, self.n, self.signature))

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        expect(frame, cls.TYPE)
        if len(frame.body) != ACK_BODY_BYTES or frame.payload:
            raise ProtocolError("bad-frame", f"An ACK frame has a body of {ACK_BODY_BYTES} bytes and no payload.")
        return cls(*_ACK.unpack(frame.body))
