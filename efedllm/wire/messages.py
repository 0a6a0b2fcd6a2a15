"""The typed body of each frame type, to and from frames.

`to_frame()` and `from_frame()` of each class, or `parse(frame)` for whatever arrived. Everything malformed raises
ProtocolError: "bad-message" for the content, "bad-frame" for a body of the wrong kind.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from efedllm.commitments.canonical import WireDtype, as_dtype, itemsize
from efedllm.commitments.eip712 import as_object, parse_hex, to_hex
from efedllm.commitments.hashing import as_address, as_h32, as_uint
from efedllm.commitments.messages import (
    MAX_HOPS,
    Envelope,
    HopCommit,
    JobSpec,
    RouteHop,
    SessionKey,
    SignedCommit,
    Voucher,
    ids_bytes,
)
from efedllm.errors import EfedError, ProtocolError
from efedllm.wire.frames import ACK_BODY_BYTES, ACT_BODY_BYTES, Frame, FrameType

PROTOCOL_VERSION: Final = 1
MAX_CODE: Final = 64
MAX_TEXT: Final = 1000
"""Characters of an ERROR's message and of its hint."""
_ACT: Final = struct.Struct("<32sHIIBI32s65s")
_ACK: Final = struct.Struct("<32sHII65s")
assert _ACT.size == ACT_BODY_BYTES
assert _ACK.size == ACK_BODY_BYTES

Role = Literal["client", "node"]
FinishReason = Literal["eos", "length", "cancelled"]


class Message(Protocol):
    """What every class of this module offers."""

    TYPE: ClassVar[FrameType]

    def to_frame(self) -> Frame: ...


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("duplicate key")
    return out


def _json_body(kind: FrameType, value: dict[str, Any], payload: bytes = b"") -> Frame:
    return Frame(kind, json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(), payload)


def _object(frame: Frame, kind: FrameType, keys: frozenset[str]) -> dict[str, Any]:
    _expect(frame, kind)
    if frame.payload and kind is not FrameType.OPEN_JOB:
        raise ProtocolError("bad-frame", f"A {kind.name} frame has no payload.")
    try:
        value = json.loads(frame.body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise ProtocolError("bad-frame", f"The body of a {kind.name} frame is not valid JSON.") from None
    return as_object(value, keys, kind.name)


def _expect(frame: Frame, kind: FrameType) -> None:
    if frame.type is not kind:
        raise ProtocolError("bad-frame", f"Expected a {kind.name} frame, got {frame.type.name}.")


def _one_of(value: object, allowed: tuple[str, ...], name: str) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ProtocolError("bad-message", f"{name} must be one of {', '.join(allowed)}.")
    return value


def _text(value: object, limit: int, name: str) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise ProtocolError("bad-message", f"{name} must be a text of at most {limit} characters.")
    # A lone surrogate survives JSON but cannot be printed or encoded again.
    if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise ProtocolError("bad-message", f"{name} is not valid text.")
    return value


def _signature(value: object, name: str = "signature") -> bytes:
    if not isinstance(value, bytes) or len(value) != 65:
        raise ProtocolError("bad-message", f"{name} must be 65 bytes.")
    return value


@dataclass(frozen=True)
class HelloMsg:
    """First frame of both sides. `address` is the node's address, None for a client; `challenge` is 32 fresh random
    bytes.
    """

    TYPE: ClassVar[FrameType] = FrameType.HELLO
    chain_id: int
    role: Role
    address: str | None
    challenge: bytes
    protocol: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        as_uint(self.protocol, 16, "protocol")
        as_uint(self.chain_id, 256, "chain_id")
        _one_of(self.role, ("client", "node"), "role")
        as_h32(self.challenge, "challenge")
        if self.address is not None:
            object.__setattr__(self, "address", as_address(self.address))
        elif self.role == "node":
            raise ProtocolError("bad-message", "A node says which node it is.")

    def to_frame(self) -> Frame:
        return _json_body(
            self.TYPE,
            {
                "protocol": self.protocol,
                "chain_id": self.chain_id,
                "role": self.role,
                "address": self.address,
                "challenge": to_hex(self.challenge),
            },
        )

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = _object(frame, cls.TYPE, frozenset({"protocol", "chain_id", "role", "address", "challenge"}))
        return cls(
            chain_id=data["chain_id"],
            role=cast(Role, _one_of(data["role"], ("client", "node"), "role")),
            address=data["address"],
            challenge=parse_hex(data["challenge"], "challenge", 32),
            protocol=data["protocol"],
        )


@dataclass(frozen=True)
class WelcomeMsg:
    """A node's answer to the other side's challenge: `signature` is by `signer` over Hello(node, challenge)."""

    TYPE: ClassVar[FrameType] = FrameType.WELCOME
    chain_id: int
    node: str
    signer: str
    signature: bytes

    def __post_init__(self) -> None:
        as_uint(self.chain_id, 256, "chain_id")
        object.__setattr__(self, "node", as_address(self.node, "node"))
        object.__setattr__(self, "signer", as_address(self.signer, "signer"))
        _signature(self.signature)

    def to_frame(self) -> Frame:
        return _json_body(
            self.TYPE,
            {
                "chain_id": self.chain_id,
                "node": self.node,
                "signer": self.signer,
                "signature": to_hex(self.signature),
            },
        )

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = _object(frame, cls.TYPE, frozenset({"chain_id", "node", "signer", "signature"}))
        return cls(data["chain_id"], data["node"], data["signer"], parse_hex(data["signature"], "signature", 65))


@dataclass(frozen=True)
class OpenJobMsg:
    """A client opens a job with one node of the route. `prompt` (int32 ids) goes to hop 0 only.

    A voucher is optional: a node may give credit. `route` lists every hop in order; `hop` is the receiver's index.
    """

    TYPE: ClassVar[FrameType] = FrameType.OPEN_JOB
    session_key: SessionKey
    job_spec: JobSpec
    spec_signature: bytes
    voucher: Voucher | None
    voucher_signature: bytes | None
    hop: int
    route: tuple[RouteHop, ...]
    prompt: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _signature(self.spec_signature, "spec_signature")
        if (self.voucher is None) != (self.voucher_signature is None):
            raise ProtocolError("bad-message", "A voucher and its signature come together.")
        if self.voucher_signature is not None:
            _signature(self.voucher_signature, "voucher_signature")
        object.__setattr__(self, "route", tuple(self.route))
        as_uint(self.hop, 16, "hop")
        if not 1 <= len(self.route) <= MAX_HOPS or self.hop >= len(self.route):
            raise ProtocolError("bad-message", f"hop must be below the route's length, which is 1 to {MAX_HOPS}.")
        if self.prompt is not None:
            object.__setattr__(self, "prompt", tuple(self.prompt))
            if self.hop != 0:
                raise ProtocolError("bad-message", "Only hop 0 receives the prompt.")
            if len(self.prompt) != self.job_spec.prompt_tokens:
                raise ProtocolError("bad-message", "The prompt's length differs from the job's prompt_tokens.")
        elif self.hop == 0:
            raise ProtocolError("bad-message", "Hop 0 needs the prompt.")

    def to_frame(self) -> Frame:
        return _json_body(
            self.TYPE,
            {
                "session_key": self.session_key.to_json(),
                "job_spec": self.job_spec.to_json(),
                "spec_signature": to_hex(self.spec_signature),
                "voucher": None if self.voucher is None else self.voucher.to_json(),
                "voucher_signature": None if self.voucher_signature is None else to_hex(self.voucher_signature),
                "hop": self.hop,
                "route": [hop.to_json() for hop in self.route],
            },
            b"" if self.prompt is None else ids_bytes(self.prompt),
        )

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        keys = frozenset({"session_key", "job_spec", "spec_signature", "voucher", "voucher_signature", "hop", "route"})
        data = _object(frame, cls.TYPE, keys)
        route = data["route"]
        if not isinstance(route, list) or len(route) > MAX_HOPS:
            raise ProtocolError("bad-message", f"A route is a list of at most {MAX_HOPS} hops.")
        signature = data["voucher_signature"]
        return cls(
            session_key=SessionKey.from_json(data["session_key"]),
            job_spec=JobSpec.from_json(data["job_spec"]),
            spec_signature=parse_hex(data["spec_signature"], "spec_signature", 65),
            voucher=None if data["voucher"] is None else Voucher.from_json(data["voucher"]),
            voucher_signature=None if signature is None else parse_hex(signature, "voucher_signature", 65),
            hop=data["hop"],
            route=tuple(RouteHop.from_json(hop) for hop in route),
            prompt=_prompt(frame.payload) if data["hop"] == 0 or frame.payload else None,
        )


def _prompt(payload: bytes) -> tuple[int, ...]:
    if not payload or len(payload) % 4:
        raise ProtocolError("bad-message", "A prompt is one or more int32 token ids.")
    ids: npt.NDArray[np.int32] = np.frombuffer(payload, dtype="<i4")
    if ids.min() < 0:
        raise ProtocolError("bad-message", "A token id must be in [0, 2**31).")
    return tuple(ids.tolist())


@dataclass(frozen=True)
class OpenedMsg:
    """The node holds the job. `next_ready`: it has reached hop+1 (true on the last hop, once it has reached hop 0)."""

    TYPE: ClassVar[FrameType] = FrameType.OPENED
    job_id: bytes
    hop: int
    next_ready: bool

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")
        as_uint(self.hop, 16, "hop")
        if type(self.next_ready) is not bool:
            raise ProtocolError("bad-message", "next_ready must be true or false.")

    def to_frame(self) -> Frame:
        return _json_body(self.TYPE, {"job_id": to_hex(self.job_id), "hop": self.hop, "next_ready": self.next_ready})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = _object(frame, cls.TYPE, frozenset({"job_id", "hop", "next_ready"}))
        return cls(parse_hex(data["job_id"], "job_id", 32), data["hop"], data["next_ready"])


@dataclass(frozen=True)
class StartMsg:
    """Client to hop 0, once every hop has opened."""

    TYPE: ClassVar[FrameType] = FrameType.START
    job_id: bytes

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")

    def to_frame(self) -> Frame:
        return _json_body(self.TYPE, {"job_id": to_hex(self.job_id)})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        return cls(parse_hex(_object(frame, cls.TYPE, frozenset({"job_id"}))["job_id"], "job_id", 32))


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
        _signature(self.signature)
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
        _expect(frame, cls.TYPE)
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
        _signature(self.signature)

    def to_frame(self) -> Frame:
        return Frame(self.TYPE, _ACK.pack(self.job_id, self.boundary, self.from_pos, self.n, self.signature))

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        _expect(frame, cls.TYPE)
        if len(frame.body) != ACK_BODY_BYTES or frame.payload:
            raise ProtocolError("bad-frame", f"An ACK frame has a body of {ACK_BODY_BYTES} bytes and no payload.")
        return cls(*_ACK.unpack(frame.body))


@dataclass(frozen=True)
class VoucherMsg:
    """Client to every node: a newer voucher for the session (`voucher.session_id`)."""

    TYPE: ClassVar[FrameType] = FrameType.VOUCHER
    voucher: Voucher
    signature: bytes

    def __post_init__(self) -> None:
        _signature(self.signature)

    def to_frame(self) -> Frame:
        return _json_body(self.TYPE, {"voucher": self.voucher.to_json(), "signature": to_hex(self.signature)})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = _object(frame, cls.TYPE, frozenset({"voucher", "signature"}))
        return cls(Voucher.from_json(data["voucher"]), parse_hex(data["signature"], "signature", 65))


@dataclass(frozen=True)
class PayMsg:
    """A node paused: it wants a voucher whose `cumulative` is at least `due` wei; it holds one of `paid` wei.

    `tokens`: billed tokens of the session so far that `due` stands for.
    """

    TYPE: ClassVar[FrameType] = FrameType.PAY
    job_id: bytes
    due: int
    paid: int
    tokens: int

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")
        as_uint(self.due, 128, "due")
        as_uint(self.paid, 128, "paid")
        as_uint(self.tokens, 64, "tokens")

    def to_frame(self) -> Frame:
        return _json_body(
            self.TYPE, {"job_id": to_hex(self.job_id), "due": self.due, "paid": self.paid, "tokens": self.tokens}
        )

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = _object(frame, cls.TYPE, frozenset({"job_id", "due", "paid", "tokens"}))
        return cls(parse_hex(data["job_id"], "job_id", 32), data["due"], data["paid"], data["tokens"])


_REASONS: Final = ("eos", "length", "cancelled")


@dataclass(frozen=True)
class FinishMsg:
    """Last hop to hop 0 and to the client: the job ended after `tokens` emitted tokens."""

    TYPE: ClassVar[FrameType] = FrameType.FINISH
    job_id: bytes
    reason: FinishReason
    tokens: int

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")
        _one_of(self.reason, _REASONS, "reason")
        as_uint(self.tokens, 32, "tokens")

    def to_frame(self) -> Frame:
        return _json_body(self.TYPE, {"job_id": to_hex(self.job_id), "reason": self.reason, "tokens": self.tokens})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = _object(frame, cls.TYPE, frozenset({"job_id", "reason", "tokens"}))
        reason = cast(FinishReason, _one_of(data["reason"], _REASONS, "reason"))
        return cls(parse_hex(data["job_id"], "job_id", 32), reason, data["tokens"])


@dataclass(frozen=True)
class CommitMsg:
    """Hop i's signed commitment, to hop i+1 (which needs its digest) and to the client (its receipt)."""

    TYPE: ClassVar[FrameType] = FrameType.COMMIT
    commit: HopCommit
    signature: bytes

    def __post_init__(self) -> None:
        _signature(self.signature)

    @property
    def signed(self) -> SignedCommit:
        """The pair as the link checks take it."""
        return SignedCommit(self.commit, self.signature)

    def to_frame(self) -> Frame:
        return _json_body(self.TYPE, {"commit": self.commit.to_json(), "signature": to_hex(self.signature)})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = _object(frame, cls.TYPE, frozenset({"commit", "signature"}))
        return cls(HopCommit.from_json(data["commit"]), parse_hex(data["signature"], "signature", 65))


@dataclass(frozen=True)
class CancelMsg:
    """Client to nodes: stop the job. What was generated so far stays billed."""

    TYPE: ClassVar[FrameType] = FrameType.CANCEL
    job_id: bytes
    reason: str

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")
        _text(self.reason, MAX_TEXT, "reason")

    def to_frame(self) -> Frame:
        return _json_body(self.TYPE, {"job_id": to_hex(self.job_id), "reason": self.reason})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = _object(frame, cls.TYPE, frozenset({"job_id", "reason"}))
        return cls(parse_hex(data["job_id"], "job_id", 32), data["reason"])


@dataclass(frozen=True)
class ErrorMsg:
    """A failure, of one job or (job_id None) of the connection."""

    TYPE: ClassVar[FrameType] = FrameType.ERROR
    code: str
    message: str
    hint: str = ""
    job_id: bytes | None = None

    def __post_init__(self) -> None:
        _text(self.code, MAX_CODE, "code")
        _text(self.message, MAX_TEXT, "message")
        _text(self.hint, MAX_TEXT, "hint")
        if self.job_id is not None:
            as_h32(self.job_id, "job_id")

    @classmethod
    def of(cls, error: EfedError, job_id: bytes | None = None) -> Self:
        """`error` as a message, cut to the limits."""
        return cls(error.code[:MAX_CODE], error.message[:MAX_TEXT], error.hint[:MAX_TEXT], job_id)

    def to_error(self) -> ProtocolError:
        """The error to raise where the message arrived."""
        return ProtocolError(self.code, self.message, self.hint)

    def to_frame(self) -> Frame:
        return _json_body(
            self.TYPE,
            {
                "code": self.code,
                "message": self.message,
                "hint": self.hint,
                "job_id": None if self.job_id is None else to_hex(self.job_id),
            },
        )

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = _object(frame, cls.TYPE, frozenset({"code", "message", "hint", "job_id"}))
        job = data["job_id"]
        return cls(data["code"], data["message"], data["hint"], None if job is None else parse_hex(job, "job_id", 32))


AnyMessage = (
    HelloMsg
    | WelcomeMsg
    | OpenJobMsg
    | OpenedMsg
    | StartMsg
    | ActMsg
    | AckMsg
    | VoucherMsg
    | PayMsg
    | FinishMsg
    | CommitMsg
    | CancelMsg
    | ErrorMsg
)

_CLASSES: Final[dict[FrameType, type[AnyMessage]]] = {
    FrameType.HELLO: HelloMsg,
    FrameType.WELCOME: WelcomeMsg,
    FrameType.OPEN_JOB: OpenJobMsg,
    FrameType.OPENED: OpenedMsg,
    FrameType.START: StartMsg,
    FrameType.ACT: ActMsg,
    FrameType.ACK: AckMsg,
    FrameType.VOUCHER: VoucherMsg,
    FrameType.PAY: PayMsg,
    FrameType.FINISH: FinishMsg,
    FrameType.COMMIT: CommitMsg,
    FrameType.CANCEL: CancelMsg,
    FrameType.ERROR: ErrorMsg,
}


def parse(frame: Frame) -> AnyMessage:
    """The typed message in `frame`; ProtocolError "bad-frame", "bad-message", "bad-length" or "bad-dtype"."""
    return _CLASSES[frame.type].from_frame(frame)
