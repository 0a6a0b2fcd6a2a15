"""What can happen to a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from efedllm.commitments.messages import SignedCommit
from efedllm.errors import EfedError
from efedllm.wire.messages import AckMsg, ActMsg, FinishMsg
from efedllm_node.compute.engine_step import Output
from efedllm_node.jobs.peers import Link


@dataclass(frozen=True)
class StartArrived:
    """The client has opened the job on every hop."""


@dataclass(frozen=True)
class RowsArrived:
    """Rows of a boundary arrived."""

    act: ActMsg
    link: Link


@dataclass(frozen=True)
class AckArrived:
    """The other side signed for rows we sent."""

    ack: AckMsg
    link: Link


@dataclass(frozen=True)
class Computed:
    """The engine is done with some positions, or failed."""

    result: Output | EfedError


@dataclass(frozen=True)
class VoucherTaken:
    """The session has a better voucher."""


@dataclass(frozen=True)
class StopAsked:
    """Cancel. From the client or the last hop: a request to hop 0. From the previous hop: no rows follow."""

    source: Literal["client", "previous", "last"]


@dataclass(frozen=True)
class FinishArrived:
    """The last hop says that generation is over."""

    message: FinishMsg


@dataclass(frozen=True)
class CommitArrived:
    """The previous hop's commitment."""

    signed: SignedCommit


@dataclass(frozen=True)
class LinkLost:
    """A link ended."""

    link: Link


@dataclass(frozen=True)
class JobFailed:
    """Another hop gave the job up, or this node has to. `source`: who must not be told again."""

    error: EfedError
    source: Link | None = None


Event = (
    StartArrived
    | RowsArrived
    | AckArrived
    | Computed
    | VoucherTaken
    | StopAsked
    | FinishArrived
    | CommitArrived
    | LinkLost
    | JobFailed
)
