"""The typed body of each frame type, to and from frames.

`to_frame()` and `from_frame()` of each class, or `parse(frame)` for whatever arrived. Everything malformed raises
ProtocolError: "bad-message" for the content, "bad-frame" for a body of the wrong kind.
"""

from __future__ import annotations

from typing import ClassVar, Final, Protocol

from efedllm.wire.activations import AckMsg, ActMsg
from efedllm.wire.body import MAX_CODE, MAX_TEXT
from efedllm.wire.control import (
    PROTOCOL_VERSION,
    CancelMsg,
    ErrorMsg,
    FinishMsg,
    FinishReason,
    HelloMsg,
    OpenedMsg,
    Role,
    StartMsg,
    WelcomeMsg,
)
from efedllm.wire.frames import Frame, FrameType
from efedllm.wire.signed import CommitMsg, OpenJobMsg, PayMsg, VoucherMsg

__all__ = [
    "MAX_CODE",
    "MAX_TEXT",
    "PROTOCOL_VERSION",
    "AckMsg",
    "ActMsg",
    "AnyMessage",
    "CancelMsg",
    "CommitMsg",
    "ErrorMsg",
    "FinishMsg",
    "FinishReason",
    "HelloMsg",
    "Message",
    "OpenJobMsg",
    "OpenedMsg",
    "PayMsg",
    "Role",
    "StartMsg",
    "VoucherMsg",
    "WelcomeMsg",
    "parse",
]


class Message(Protocol):
    """What every class of this module offers."""

    TYPE: ClassVar[FrameType]

    def to_frame(self) -> Frame: ...


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
