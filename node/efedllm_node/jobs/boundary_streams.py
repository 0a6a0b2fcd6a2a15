"""The two ends of one boundary of a job: rows signed by the sender, signed again by the receiver, chained by digest."""

from __future__ import annotations

from dataclasses import dataclass

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.evidence import EnvelopeRecord
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import Envelope
from efedllm.commitments.signing import Signer, check
from efedllm.errors import ProtocolError
from efedllm.wire.messages import AckMsg, ActMsg


@dataclass(frozen=True)
class Lane:
    """The constants of one boundary: every row has `dim` values of `dtype`."""

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

    def check(self, act: ActMsg, end: int, single_from: int) -> None:
        """Whether `act` holds the next rows; its signature is left to `accept`.

        `end`: first position that must not come; `single_from`: from here on rows come one at a time. Raises
        ProtocolError "out-of-order", "broken-chain", "bad-shape" or "too-long".
        """
        lane = self._lane
        if act.boundary != lane.boundary or act.from_pos != self._position:
            raise ProtocolError(
                "out-of-order",
                f"Expected boundary {lane.boundary} from position {self._position}, "
                f"got boundary {act.boundary} from {act.from_pos}.",
            )
        if act.prev != self._prev:
            raise ProtocolError(
                "broken-chain", f"The envelope at position {act.from_pos} does not follow the one before."
            )
        if act.dtype is not lane.dtype or act.dim != lane.dim:
            raise ProtocolError("bad-shape", f"Expected rows of {lane.dim} {lane.dtype.name}.")
        last = act.from_pos + act.n
        if last > end:
            raise ProtocolError("too-long", f"Position {last - 1} is beyond what this job may have at this point.")
        if last > single_from and act.n > 1:
            raise ProtocolError("too-long", "Generated positions come one at a time.")

    def accept(self, act: ActMsg, chunk: bytes) -> AckMsg:
        """Take rows that `check` passed, whose leaves hash to `chunk`; returns the acknowledgement to send.

        Raises ProtocolError "bad-signature".
        """
        envelope = act.envelope(chunk)
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
