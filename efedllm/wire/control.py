"""Who is there and what happens to a job: HELLO, WELCOME, OPENED, START, FINISH, CANCEL and ERROR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Self, cast

from efedllm.commitments.eip712 import parse_hex, to_hex
from efedllm.commitments.hashing import as_address, as_h32, as_uint
from efedllm.errors import EfedError, ProtocolError
from efedllm.wire.body import MAX_CODE, MAX_TEXT, json_body, json_object, one_of, signature_bytes, text
from efedllm.wire.frames import Frame, FrameType

PROTOCOL_VERSION: Final = 1
Role = Literal["client", "node"]
FinishReason = Literal["eos", "length", "cancelled"]
_REASONS: Final = ("eos", "length", "cancelled")


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
        one_of(self.role, ("client", "node"), "role")
        as_h32(self.challenge, "challenge")
        if self.address is not None:
            object.__setattr__(self, "address", as_address(self.address))
        elif self.role == "node":
            raise ProtocolError("bad-message", "A node says which node it is.")

    def to_frame(self) -> Frame:
        return json_body(
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
        data = json_object(frame, cls.TYPE, frozenset({"protocol", "chain_id", "role", "address", "challenge"}))
        return cls(
            chain_id=data["chain_id"],
            role=cast(Role, one_of(data["role"], ("client", "node"), "role")),
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
        signature_bytes(self.signature)

    def to_frame(self) -> Frame:
        return json_body(
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
        data = json_object(frame, cls.TYPE, frozenset({"chain_id", "node", "signer", "signature"}))
        return cls(data["chain_id"], data["node"], data["signer"], parse_hex(data["signature"], "signature", 65))


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
        return json_body(self.TYPE, {"job_id": to_hex(self.job_id), "hop": self.hop, "next_ready": self.next_ready})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = json_object(frame, cls.TYPE, frozenset({"job_id", "hop", "next_ready"}))
        return cls(parse_hex(data["job_id"], "job_id", 32), data["hop"], data["next_ready"])


@dataclass(frozen=True)
class StartMsg:
    """Client to hop 0, once every hop has opened."""

    TYPE: ClassVar[FrameType] = FrameType.START
    job_id: bytes

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")

    def to_frame(self) -> Frame:
        return json_body(self.TYPE, {"job_id": to_hex(self.job_id)})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        return cls(parse_hex(json_object(frame, cls.TYPE, frozenset({"job_id"}))["job_id"], "job_id", 32))


@dataclass(frozen=True)
class FinishMsg:
    """Last hop to hop 0 and to the client: the job ended after `tokens` emitted tokens."""

    TYPE: ClassVar[FrameType] = FrameType.FINISH
    job_id: bytes
    reason: FinishReason
    tokens: int

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")
        one_of(self.reason, _REASONS, "reason")
        as_uint(self.tokens, 32, "tokens")

    def to_frame(self) -> Frame:
        return json_body(self.TYPE, {"job_id": to_hex(self.job_id), "reason": self.reason, "tokens": self.tokens})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = json_object(frame, cls.TYPE, frozenset({"job_id", "reason", "tokens"}))
        reason = cast(FinishReason, one_of(data["reason"], _REASONS, "reason"))
        return cls(parse_hex(data["job_id"], "job_id", 32), reason, data["tokens"])


@dataclass(frozen=True)
class CancelMsg:
    """Client to nodes: stop the job. What was generated so far stays billed."""

    TYPE: ClassVar[FrameType] = FrameType.CANCEL
    job_id: bytes
    reason: str

    def __post_init__(self) -> None:
        as_h32(self.job_id, "job_id")
        text(self.reason, MAX_TEXT, "reason")

    def to_frame(self) -> Frame:
        return json_body(self.TYPE, {"job_id": to_hex(self.job_id), "reason": self.reason})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = json_object(frame, cls.TYPE, frozenset({"job_id", "reason"}))
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
        text(self.code, MAX_CODE, "code")
        text(self.message, MAX_TEXT, "message")
        text(self.hint, MAX_TEXT, "hint")
        if self.job_id is not None:
            as_h32(self.job_id, "job_id")

    @classmethod
    def of(cls, error: EfedError, job_id: bytes | None = None) -> Self:
        """`error` as a message, cut to the limits."""
        code, message, hint = (
            part.encode(errors="replace").decode() for part in (error.code, error.message, error.hint)
        )
        return cls(code[:MAX_CODE], message[:MAX_TEXT], hint[:MAX_TEXT], job_id)

    def to_error(self) -> ProtocolError:
        """The error to raise where the message arrived."""
        return ProtocolError(self.code, self.message, self.hint)

    def to_frame(self) -> Frame:
        return json_body(
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
        data = json_object(frame, cls.TYPE, frozenset({"code", "message", "hint", "job_id"}))
        job = data["job_id"]
        return cls(data["code"], data["message"], data["hint"], None if job is None else parse_hex(job, "job_id", 32))
