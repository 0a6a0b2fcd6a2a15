"""Frames: a 16-byte header, a body and a payload in one binary WebSocket message.

Header, little-endian: magic "EFL1", u8 type, u8 flags, u16 reserved, u32 body length, u32 payload length. Flags and
reserved are zero in this version. Lengths are checked against the limits of the frame's type before any byte is copied.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from efedllm.errors import ProtocolError

MAGIC: Final = b"EFL1"
HEADER: Final = struct.Struct("<4sBBHII")
HEADER_BYTES: Final = HEADER.size
MAX_FRAME: Final = 16 * 1024 * 1024
"""Bytes of a whole frame, header included."""
MAX_JSON: Final = 256 * 1024
"""Bytes of a JSON body."""
MAX_PROMPT_BYTES: Final = 4 * 1024 * 1024
"""Bytes of the prompt ids in OPEN_JOB: a million tokens."""
ACT_BODY_BYTES: Final = 144
ACK_BODY_BYTES: Final = 107


class FrameType(IntEnum):
    """The `u8 type` of a frame."""

    HELLO = 1
    WELCOME = 2
    OPEN_JOB = 3
    OPENED = 4
    START = 5
    ACT = 6
    ACK = 7
    VOUCHER = 8
    PAY = 9
    FINISH = 10
    COMMIT = 11
    CANCEL = 12
    ERROR = 13


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """Bounds of one frame type, in bytes."""

    min_body: int
    max_body: int
    max_payload: int


_JSON: Final = FrameLimits(2, MAX_JSON, 0)
LIMITS: Final[dict[FrameType, FrameLimits]] = {
    **dict.fromkeys(FrameType, _JSON),
    FrameType.OPEN_JOB: FrameLimits(2, MAX_JSON, MAX_PROMPT_BYTES),
    FrameType.ACT: FrameLimits(ACT_BODY_BYTES, ACT_BODY_BYTES, MAX_FRAME - HEADER_BYTES - ACT_BODY_BYTES),
    FrameType.ACK: FrameLimits(ACK_BODY_BYTES, ACK_BODY_BYTES, 0),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One message as it travels. `body` is packed for ACT and ACK and JSON for the rest; `payload` is rows or prompt
    ids.
    """

    type: FrameType
    body: bytes
    payload: bytes = b""

    @property
    def size(self) -> int:
        """Bytes on the wire, header included, WebSocket framing not."""
        return HEADER_BYTES + len(self.body) + len(self.payload)


def _check_sizes(kind: FrameType, body: int, payload: int) -> None:
    limits = LIMITS[kind]
    if body > limits.max_body or payload > limits.max_payload:
        raise ProtocolError(
            "oversized",
            f"A {kind.name} frame of {body} + {payload} bytes exceeds {limits.max_body} + {limits.max_payload}.",
            "Split it into smaller chunks.",
        )
    if body < limits.min_body:
        raise ProtocolError("bad-frame", f"A {kind.name} frame needs a body of at least {limits.min_body} bytes.")


def check_sizes(frame: Frame) -> None:
    """ProtocolError "oversized" or "bad-frame" when `frame` breaks the limits of its type."""
    _check_sizes(frame.type, len(frame.body), len(frame.payload))


def encode(frame: Frame) -> bytes:
    """Bytes of `frame`. ProtocolError "oversized" or "bad-frame" when it breaks the limits of its type."""
    check_sizes(frame)
    header = HEADER.pack(MAGIC, frame.type, 0, 0, len(frame.body), len(frame.payload))
    return b"".join((header, frame.body, frame.payload))


def decode(data: bytes) -> Frame:
    """The frame in `data`, which must hold exactly one. ProtocolError "oversized" or "bad-frame"."""
    if len(data) > MAX_FRAME:
        raise ProtocolError("oversized", f"A frame of {len(data)} bytes exceeds {MAX_FRAME}.")
    if len(data) < HEADER_BYTES:
        raise ProtocolError("bad-frame", f"A frame needs {HEADER_BYTES} header bytes, got {len(data)}.")
    magic, number, flags, reserved, body, payload = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError("bad-frame", "The frame does not start with EFL1.", "Is the other side an eFedLLM node?")
    try:
        kind = FrameType(number)
    except ValueError:
        raise ProtocolError("bad-frame", f"Unknown frame type {number}.") from None
    if flags or reserved:
        raise ProtocolError("bad-frame", "Flags and reserved bits must be zero.")
    _check_sizes(kind, body, payload)
    if HEADER_BYTES + body + payload != len(data):
        raise ProtocolError(
            "bad-frame", f"The header announces {body} + {payload} bytes, got {len(data) - HEADER_BYTES}."
        )
    middle = HEADER_BYTES + body
    return Frame(kind, bytes(data[HEADER_BYTES:middle]), bytes(data[middle:]))
