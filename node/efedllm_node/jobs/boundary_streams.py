"""The two ends of one boundary of a job: rows signed by the sender, signed again by the receiver, chained by digest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.evidence import EnvelopeRecord
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import Envelope
from efedllm.commitments.signing import Signer, check
from efedllm.errors import ProtocolError
from efedllm.wire.messages import AckMsg, ActMsg
from efedllm_node.jobs.admission import Expected, check_act


@dataclass(frozen=True)
class Lane:
    """What never changes of a boundary's traffic."""

    domain: Domain
    job_id: bytes
    boundary: int
    dtype: WireDtype
    dim: int
    other_signer: str  # of the party at the other end


class Outbound:
    """Signs the rows we send and checks the acknowledgements. `first`: position of the first row."""

    def __init__(self, lane: Lane, signer: Signer, first: int) -> None:
        self._lane = lane
        self._signer = signer
        self._position = first
        self._prev = ZERO32
        self._acked = 0
        self._records: list[EnvelopeRecord] = []

    def emit(self, payload: bytes, n: int, chunk: bytes) -> ActMsg:
        """The next `n` rows, whose leaves hash to `chunk`, as a signed message."""
        lane = self._lane
        envelope = Envelope(lane.job_id, lane.boundary, self._position, n, chunk, self._prev)
        digest = envelope.digest(lane.domain)
        signature = self._signer.sign(digest)
        self._records.append(EnvelopeRecord(envelope, signature, None))
        message = ActMsg(
            lane.job_id, lane.boundary, self._position, n, lane.dtype, lane.dim, self._prev, signature, payload
        )
        self._prev = digest
        self._position += n
        return message

    def acknowledged(self, ack: AckMsg) -> None:
        """Take the other side's signature. ProtocolError "out-of-order" or "bad-signature"."""
        if self._acked >= len(self._records):
            raise ProtocolError("out-of-order", "An acknowledgement for rows that were never sent.")
        record = self._records[self._acked]
        envelope = record.envelope
        if (ack.boundary, ack.from_pos, ack.n) != (envelope.boundary, envelope.from_pos, envelope.n):
            raise ProtocolError("out-of-order", f"An acknowledgement out of order at position {ack.from_pos}.")
        check(envelope.digest(self._lane.domain), ack.signature, self._lane.other_signer)
        self._records[self._acked] = EnvelopeRecord(envelope, record.sender_sig, ack.signature)
        self._acked += 1

    @property
    def all_acknowledged(self) -> bool:
        return self._acked == len(self._records)

    @property
    def records(self) -> tuple[EnvelopeRecord, ...]:
        return tuple(self._records)


class Inbound:
    """Checks the rows we receive and signs acknowledgements."""

    def __init__(self, lane: Lane, signer: Signer, first: int) -> None:
        self._lane = lane
        self._signer = signer
        self._position = first
        self._prev = ZERO32
        self._records: list[EnvelopeRecord] = []

    def expected(self, end: int, single_from: int) -> Expected:
        """The next rows, if positions stop before `end` and are single from `single_from` on."""
        lane = self._lane
        return Expected(lane.boundary, self._position, self._prev, lane.dtype, lane.dim, end, single_from)

    def accept(self, act: ActMsg, expected: Expected, hashed: Callable[[bytes], bytes]) -> AckMsg:
        """Check order, chain and signature of rows; the acknowledgement to send.

        `hashed` gives the chunk hash of the payload (and may keep its leaves); it is called once the order is right.
        """
        check_act(act, expected)
        envelope = act.envelope(hashed(act.payload))
        digest = envelope.digest(self._lane.domain)
        check(digest, act.signature, self._lane.other_signer)
        signature = self._signer.sign(digest)
        self._records.append(EnvelopeRecord(envelope, act.signature, signature))
        self._prev = digest
        self._position += act.n
        return AckMsg(act.job_id, act.boundary, act.from_pos, act.n, signature)

    @property
    def position(self) -> int:
        """Position of the next row."""
        return self._position

    @property
    def records(self) -> tuple[EnvelopeRecord, ...]:
        return tuple(self._records)
