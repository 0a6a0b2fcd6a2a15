"""One paid job on one route: open it at every node, take its results, pay for them, collect the receipts."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field

from efedllm.chain.amounts import format_amount
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import JobSpec, RouteHop, SignedCommit
from efedllm.commitments.signing import check
from efedllm.errors import EfedError, ProtocolError
from efedllm.wire.messages import (
    AckMsg,
    ActMsg,
    CancelMsg,
    CommitMsg,
    ErrorMsg,
    FinishMsg,
    Message,
    OpenedMsg,
    OpenJobMsg,
    PayMsg,
    StartMsg,
)
from efedllm_client.config import ClientConfig
from efedllm_client.jobs.hop import Arrival, HopLink
from efedllm_client.jobs.retry import accused_by
from efedllm_client.payments.rules import Amount, PaymentTerms, answer_demand, next_voucher
from efedllm_client.payments.session import PaidSession


class RouteFailure(Exception):  # noqa: N818  (a result that the caller acts on: it tries another route)
    """The route stopped working. `dead` nodes lost the connection, `accused` ones broke the protocol or complained."""

    def __init__(self, error: EfedError, dead: Collection[str] = (), accused: Collection[str] = ()) -> None:
        super().__init__(str(error))
        self.error = error
        self.dead = frozenset(dead)
        self.accused = frozenset(accused)


@dataclass(frozen=True)
class JobOrder:
    """Everything about a job that is fixed before it starts."""

    session: PaidSession
    spec: JobSpec
    prompt: tuple[int, ...]  # token ids
    route: tuple[RouteHop, ...]
    domain: Domain
    terms: PaymentTerms
    config: ClientConfig


@dataclass
class PaidJobRecord:
    """What is known of a job so far. It is complete once `PaidJob.run` has ended."""

    spec: JobSpec
    spec_signature: bytes
    prompt: tuple[int, ...]
    route: tuple[RouteHop, ...]
    emitted: list[int] = field(default_factory=list)
    commits: list[SignedCommit | None] = field(default_factory=list)  # the first of each hop
    finish_reason: str | None = None
    started: float = 0.0  # time.perf_counter, all below
    first_token: float | None = None
    last_token: float | None = None
    connect_ms: list[float] = field(default_factory=list)  # per hop: connecting and proving who it is
    open_ms: list[float] = field(default_factory=list)  # per hop: from OPEN_JOB to OPENED
    bytes_in: int = 0
    bytes_out: int = 0
    others: list[tuple[int, SignedCommit]] = field(default_factory=list)  # hop and what it sent besides


class PaidJob(ABC):
    """Runs once. `run` yields token ids, `record` holds everything else. Subclasses take the results."""

    def __init__(self, order: JobOrder) -> None:
        self._session = order.session
        self._domain = order.domain
        self._terms = order.terms
        self._config = order.config
        # Bounded: the client stops reading from a node that floods it, and the connection's own limits hold the rest.
        self._inbox: asyncio.Queue[Arrival] = asyncio.Queue(order.config.inbox_messages)
        self._links: list[HopLink] = []
        self._prev = ZERO32  # digest of the last envelope
        self._demand: tuple[int, PayMsg] | None = None  # hop and the payment it waits for
        self._stopping = False
        self.record = PaidJobRecord(
            spec=order.spec,
            spec_signature=order.session.sign_spec(order.spec),
            prompt=order.prompt,
            route=order.route,
            commits=[None] * len(order.route),
            open_ms=[0.0] * len(order.route),
        )

    @abstractmethod
    async def _take(self, act: ActMsg, at: float) -> None:
        """Check, acknowledge and pay for results of the last hop; `at`: time.perf_counter of their arrival.

        Raises ProtocolError when the last hop may not send them.
        """

    @abstractmethod
    def _complete(self) -> bool:
        """Whether all results are here."""

    @abstractmethod
    def _own_reason(self) -> str:
        """Finish reason of a complete job whose last hop did not send one."""

    async def run(self) -> AsyncGenerator[int]:
        """Token ids in order. Raises RouteFailure; stopping early cancels the job at the nodes.

        Every token in `record.emitted` has been yielded when RouteFailure is raised.
        """
        record = self.record
        record.started = time.perf_counter()
        finished = False
        shown = 0
        try:
            await self._connect()
            await self._open()
            await self._send(0, StartMsg(record.spec.job_id))
            while record.finish_reason is None:
                failure: RouteFailure | None = None
                try:
                    seconds = self._config.token_seconds if record.emitted else self._config.first_token_seconds
                    await self._handle(await self._next(seconds))
                except RouteFailure as error:
                    failure = error
                while shown < len(record.emitted) and not self._stopping:
                    shown += 1
                    yield record.emitted[shown - 1]
                    if self._stopping:
                        await self._send(0, CancelMsg(record.spec.job_id, "the client has enough"))
                if failure is not None:
                    if not self._complete():
                        raise failure
                    # Only the message that it ended is missing.
                    record.finish_reason = self._own_reason()
            if not self._complete():
                raise self._ended_early()
            await self._collect_receipts()
            finished = True
        finally:
            await self._leave(cancel=not finished)

    def stop(self) -> None:
        """End the job after the token just yielded. The nodes still commit to what they did, and send receipts."""
        self._stopping = not self._complete()

    # --- opening ---

    async def _connect(self) -> None:
        hops = self.record.route
        results = await asyncio.gather(
            *(HopLink.open(i, hop, self._domain, self._config.connect_seconds) for i, hop in enumerate(hops)),
            return_exceptions=True,
        )
        self._links = [link for link in results if isinstance(link, HopLink)]
        failures = {i: error for i, error in enumerate(results) if isinstance(error, EfedError)}
        for error in results:
            if isinstance(error, BaseException) and not isinstance(error, EfedError):
                raise error
        if failures:
            dead = [
                hops[i].node for i, e in failures.items() if e.code in ("unreachable", "timeout", "connection-lost")
            ]
            accused = [hops[i].node for i in failures if hops[i].node not in dead]
            raise RouteFailure(next(iter(failures.values())), dead, accused)
        self.record.connect_ms = [link.connect_ms for link in self._links]
        for link in self._links:
            link.deliver_to(self._inbox)

    async def _open(self) -> None:
        record, session = self.record, self._session
        opening = next_voucher(self._terms, session.signed, 0) or session.signed
        voucher = await session.sign(opening)
        sent = time.perf_counter()
        for i in range(len(self._links)):
            message = OpenJobMsg(
                session_key=session.key,
                job_spec=record.spec,
                spec_signature=record.spec_signature,
                voucher=voucher.voucher,
                voucher_signature=voucher.signature,
                hop=i,
                route=record.route,
                prompt=record.prompt if i == 0 else None,
            )
            await self._send(i, message)
        waiting = set(range(len(self._links)))
        deadline = sent + self._config.opening_seconds
        while waiting:
            arrival = await self._next(max(deadline - time.perf_counter(), 0.001), "opening", waiting)
            if isinstance(arrival.message, OpenedMsg) and arrival.message.job_id == record.spec.job_id:
                waiting.discard(arrival.index)
                record.open_ms[arrival.index] = (arrival.at - sent) * 1000
            else:
                await self._handle(arrival)

    # --- running ---

    async def _next(self, seconds: float, stage: str = "token", waiting: Collection[int] = ()) -> Arrival:
        """The next message. Raises RouteFailure for the end of a connection, an ERROR and silence."""
        try:
            async with asyncio.timeout(seconds):
                arrival = await self._inbox.get()
        except TimeoutError:
            raise self._silence(seconds, stage, waiting) from None
        if arrival.error is not None:
            raise self._lost(arrival)
        if isinstance(arrival.message, ErrorMsg):
            error = arrival.message.to_error()
            nodes = [hop.node for hop in self.record.route]
            raise RouteFailure(
                error, await self._who_died(), accused_by(error.message, self._node(arrival.index), nodes)
            )
        return arrival

    async def _who_died(self) -> list[str]:
        """Nodes whose connection ends in the next moment: a neighbour may complain before the client notices."""
        dead = self._dead()
        try:
            async with asyncio.timeout(self._config.notice_seconds):
                while not dead:
                    arrival = await self._inbox.get()
                    dead = [self._node(arrival.index)] if arrival.error is not None else []
        except TimeoutError:
            return []
        return dead + self._dead()

    def _silence(self, seconds: float, stage: str, waiting: Collection[int]) -> RouteFailure:
        if self._demand is not None:
            hop, demand = self._demand
            signed = self._session.signed.cumulative
            error = ProtocolError(
                "overcharge",
                f"{self._node(hop)} waits for {format_amount(demand.due)}, of which {format_amount(signed)} are due.",
                "Leave the node out with --avoid.",
            )
            return RouteFailure(error, accused=[self._node(hop)])
        silent = [self._node(i) for i in waiting]
        what = {"opening": "accept the job", "token": "send a token", "receipts": "send a receipt"}[stage]
        who = ", ".join(silent) or "The route"
        return RouteFailure(ProtocolError("stalled", f"{who} did not {what} for {seconds:.0f} s."), accused=silent)

    def _lost(self, arrival: Arrival) -> RouteFailure:
        assert arrival.error is not None
        return RouteFailure(arrival.error, [self._node(arrival.index), *self._dead()])

    def _dead(self) -> list[str]:
        """Nodes whose connection ended according to messages that wait in the inbox."""
        dead = []
        while not self._inbox.empty():
            arrival = self._inbox.get_nowait()
            if arrival.error is not None:
                dead.append(self._node(arrival.index))
        return dead

    async def _handle(self, arrival: Arrival) -> None:
        """React to one message. Raises RouteFailure when it breaks the protocol."""
        message, record = arrival.message, self.record
        last = len(self._links) - 1
        try:
            if isinstance(message, ActMsg) and arrival.index == last:
                await self._take(message, arrival.at)
            elif isinstance(message, PayMsg) and message.job_id == record.spec.job_id:
                await self._pay(arrival.index, message)
            elif isinstance(message, FinishMsg) and arrival.index == last and message.job_id == record.spec.job_id:
                record.finish_reason = message.reason
                if message.tokens != len(record.emitted):
                    raise ProtocolError(
                        "wrong-count", f"The last node counts {message.tokens} tokens, {len(record.emitted)} arrived."
                    )
            elif isinstance(message, CommitMsg) and message.commit.job_id == record.spec.job_id:
                if record.commits[arrival.index] is None:
                    record.commits[arrival.index] = message.signed
                elif (
                    record.commits[arrival.index] != message.signed
                    and len(record.others) < self._config.max_contradictions
                ):
                    record.others.append((arrival.index, message.signed))
        except ProtocolError as error:
            raise RouteFailure(error, accused=[self._node(arrival.index)]) from error

    def _check_envelope(self, act: ActMsg, chunk: bytes, at: float) -> bytes:
        """The digest of the envelope of `act`, whose payload has the root `chunk`. Raises ProtocolError when the last
        hop did not sign it."""
        record = self.record
        digest = act.envelope(chunk).digest(self._domain)
        check(digest, act.signature, record.route[-1].signer)
        self._prev = digest
        record.first_token = record.first_token or at
        record.last_token = at
        return digest

    async def _acknowledge(self, act: ActMsg, digest: bytes) -> None:
        ack = AckMsg(act.job_id, act.boundary, act.from_pos, act.n, self._session.sign_digest(digest))
        await self._send(len(self._links) - 1, ack)

    async def _pay(self, hop: int, demand: PayMsg) -> None:
        """Answer a node that waits for money, as far as it is due. Raises ProtocolError "overcharge"."""
        amount = answer_demand(self._terms, self._session.signed, len(self.record.emitted), demand.due)
        self._demand = (hop, demand)
        if amount is None and self._session.signed.cumulative >= demand.due:
            # It may have missed the last voucher.
            amount = self._session.signed
        await self._promise(amount)

    async def _promise(self, amount: Amount | None) -> None:
        """Sign a voucher (kept on disk first) and send it to every node."""
        if amount is None:
            return
        voucher = await self._session.sign(amount)
        for i in range(len(self._links)):
            await self._send(i, voucher)
        if self._demand is not None and amount.cumulative >= self._demand[1].due:
            self._demand = None

    # --- ending ---

    def _ended_early(self) -> RouteFailure:
        error = ProtocolError("ended-early", f"The route ended the job after {len(self.record.emitted)} tokens.")
        return RouteFailure(error, accused=[self._node(len(self._links) - 1)])

    async def _collect_receipts(self) -> None:
        """Wait for every hop's commitment. A missing one does not fail the job: `find_faults` reports it."""
        record = self.record
        deadline = time.perf_counter() + self._config.receipts_seconds
        while any(commit is None for commit in record.commits):
            missing = [i for i, commit in enumerate(record.commits) if commit is None]
            try:
                arrival = await self._next(max(deadline - time.perf_counter(), 0.001), "receipts", missing)
                await self._handle(arrival)
            except RouteFailure:
                # All tokens are here already, and the hops still connected may send a receipt.
                if time.perf_counter() >= deadline or not any(not self._links[i].closed for i in missing):
                    return

    async def _leave(self, cancel: bool) -> None:
        for link in self._links:
            if cancel and not link.closed:
                await link.farewell(CancelMsg(self.record.spec.job_id, "the client stopped"))
        self.record.bytes_in = sum(link.bytes_in for link in self._links)
        self.record.bytes_out = sum(link.bytes_out for link in self._links)
        await asyncio.gather(*(link.close() for link in self._links))

    async def _send(self, index: int, message: Message) -> None:
        link = self._links[index]
        try:
            await link.send(message)
        except ProtocolError as error:
            raise RouteFailure(error, [link.hop.node, *self._dead()]) from error

    def _node(self, index: int) -> str:
        return self.record.route[index].node
