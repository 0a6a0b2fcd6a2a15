"""What clients and nodes sign for: OPEN_JOB, VOUCHER, PAY and COMMIT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from efedllm.commitments.eip712 import parse_hex, to_hex
from efedllm.commitments.hashing import as_h32, as_uint
from efedllm.commitments.messages import (
    MAX_HOPS,
    HopCommit,
    JobSpec,
    RouteHop,
    SessionKey,
    SignedCommit,
    Voucher,
    ids_bytes,
    signed_job_json,
)
from efedllm.errors import ProtocolError
from efedllm.wire.body import json_body, json_object, signature_bytes
from efedllm.wire.frames import Frame, FrameType

_OPEN_JOB_KEYS = frozenset(
    {"session_key", "job_spec", "spec_signature", "voucher", "voucher_signature", "hop", "route"}
)


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
        signature_bytes(self.spec_signature, "spec_signature")
        if (self.voucher is None) != (self.voucher_signature is None):
            raise ProtocolError("bad-message", "A voucher and its signature come together.")
        if self.voucher_signature is not None:
            signature_bytes(self.voucher_signature, "voucher_signature")
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
        return json_body(
            self.TYPE,
            {
                **signed_job_json(self.session_key, self.job_spec, self.spec_signature),
                "voucher": None if self.voucher is None else self.voucher.to_json(),
                "voucher_signature": None if self.voucher_signature is None else to_hex(self.voucher_signature),
                "hop": self.hop,
                "route": [hop.to_json() for hop in self.route],
            },
            b"" if self.prompt is None else ids_bytes(self.prompt),
        )

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = json_object(frame, cls.TYPE, _OPEN_JOB_KEYS)
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
class VoucherMsg:
    """Client to every node: a newer voucher for the session (`voucher.session_id`)."""

    TYPE: ClassVar[FrameType] = FrameType.VOUCHER
    voucher: Voucher
    signature: bytes

    def __post_init__(self) -> None:
        signature_bytes(self.signature)

    def to_frame(self) -> Frame:
        return json_body(self.TYPE, {"voucher": self.voucher.to_json(), "signature": to_hex(self.signature)})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = json_object(frame, cls.TYPE, frozenset({"voucher", "signature"}))
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
        return json_body(
            self.TYPE, {"job_id": to_hex(self.job_id), "due": self.due, "paid": self.paid, "tokens": self.tokens}
        )

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = json_object(frame, cls.TYPE, frozenset({"job_id", "due", "paid", "tokens"}))
        return cls(parse_hex(data["job_id"], "job_id", 32), data["due"], data["paid"], data["tokens"])


@dataclass(frozen=True)
class CommitMsg:
    """Hop i's signed commitment, to hop i+1 (which needs its digest) and to the client (its receipt)."""

    TYPE: ClassVar[FrameType] = FrameType.COMMIT
    commit: HopCommit
    signature: bytes

    def __post_init__(self) -> None:
        signature_bytes(self.signature)

    @property
    def signed(self) -> SignedCommit:
        """The pair as the link checks take it."""
        return SignedCommit(self.commit, self.signature)

    def to_frame(self) -> Frame:
        return json_body(self.TYPE, {"commit": self.commit.to_json(), "signature": to_hex(self.signature)})

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        data = json_object(frame, cls.TYPE, frozenset({"commit", "signature"}))
        return cls(HopCommit.from_json(data["commit"]), parse_hex(data["signature"], "signature", 65))
