"""What can happen to a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from efedllm.commitments.messages import SignedCommit
from efedllm.errors import EfedError
from efedllm.wire.messages import AckMsg, ActMsg, FinishMsg
from efedllm_node.compute.batcher import Output
from efedllm_node.jobs.peers import Link


@dataclass(frozen=True)
class Started:
    """The client has opened the job on every hop."""


@dataclass(frozen=True)
class Rows:
    """Rows of a boundary arrived."""

    act: ActMsg
    link: Link


@dataclass(frozen=True)
class Acknowledged:
    """The other side signed for rows we sent."""

    ack: AckMsg
    link: Link


@dataclass(frozen=True)
class Computed:
    """The engine is done with some positions, or failed."""

    result: Output | EfedError


@dataclass(frozen=True)
class Paid:
    """The session has a better voucher."""


@dataclass(frozen=True)
class Stop:
    """Cancel. From the client or the last hop: a request to hop 0. From the previous hop: no rows follow."""

    source: Literal["client", "previous", "last"]


@dataclass(frozen=True)
class Finished:
    """The last hop says that generation is over."""

    message: FinishMsg


@dataclass(frozen=True)
class Committed:
    """The previous hop's commitment."""

    signed: SignedCommit


@dataclass(frozen=True)
class Gone:
    """A link ended."""

    link: Link


@dataclass(frozen=True)
class Failed:
    """Another hop gave the job up, or this node has to. `source`: who must not be told again."""

    error: EfedError
    source: Link | None = None


Event = Started | Rows | Acknowledged | Computed | Paid | Stop | Finished | Committed | Gone | Failed
