"""One job on one route: open it at every node, stream its tokens, pay for them, collect the receipts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field

from efedllm.chain.amounts import format_amount
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import JobSpec, RouteHop, SignedCommit, ids_bytes
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
from efedllm_client.jobs.hop import Arrival, HopLink
from efedllm_client.payments.session import PaidSession
from efedllm_client.policy import Amount, Terms, accused_by, answer_demand, next_voucher

INBOX = 1024  # messages
MOST_OTHERS = 64  # contradicting commitments kept of a job
NOTICE_SECONDS = 0.5  # between a node's complaint and the end of its neighbour's connection


@dataclass(frozen=True)
class Patience:
    """How long the client waits, seconds."""

    opening: float = 30.0  # for every node to accept the job
    first_token: float = 120.0  # the nodes work through the whole prompt first
    token: float = 30.0  # for each further token
    receipts: float = 30.0  # for the commitments after the last token


class RouteFailure(Exception):  # noqa: N818  (a result the caller acts on: it tries another route)
    """The route stopped working. `dead` nodes lost the connection, `accused` ones broke the protocol or complained."""

    def __init__(self, error: EfedError, dead: Collection[str] = (), accused: Collection[str] = ()) -> None:
        super().__init__(str(error))
        self.error = error
        self.dead = frozenset(dead)
        self.accused = frozenset(accused)


@dataclass
class JobRecord:
    """What is known of a job so far; complete once `Job.run` has ended."""

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


class Job:
    """Runs once. `run` yields token ids; `record` holds everything else."""

    def __init__(
        self,
        session: PaidSession,
        spec: JobSpec,
        prompt: Sequence[int],
        route: Sequence[RouteHop],
        domain: Domain,
        terms: Terms,
        patience: Patience,
    ) -> None:
        self._session = session
        self._domain = domain
        self._terms = terms
        self._patience = patience
        # Bounded: a node that floods us stops being read, and its connection's own limits hold it.
        self._inbox: asyncio.Queue[Arrival] = asyncio.Queue(INBOX)
        self._links: list[HopLink] = []
        self._tree = BoundaryTree(spec.job_id, 0, WireDtype.I32, 1)
        self._tree.append(ids_bytes(prompt))
        self._prev = ZERO32
        self._demand: tuple[int, PayMsg] | None = None  # hop and what it asked for, while not met
        self._stopping = False
        self.record = JobRecord(
            spec=spec,
            spec_signature=session.sign_spec(spec),
            prompt=tuple(prompt),
            route=tuple(route),
            commits=[None] * len(route),
            open_ms=[0.0] * len(route),
        )

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
                    patience = self._patience.token if record.emitted else self._patience.first_token
                    await self._handle(await self._next(patience))
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
                    # Nothing more was to come but the word that it ended.
                    record.finish_reason = self._own_reason()
            if not self._complete():
                raise self._ended_early()
            await self._collect_receipts()
            finished = True
        finally:
            await self._leave(cancel=not finished)

    def stop(self) -> None:
        """End the job after the token just yielded. The nodes still commit to what they did, so receipts come."""
        self._stopping = not self._complete()

    # --- opening ---

    async def _connect(self) -> None:
        hops = self.record.route
        results = await asyncio.gather(
            *(HopLink.open(i, hop, self._domain) for i, hop in enumerate(hops)), return_exceptions=True
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
        deadline = sent + self._patience.opening
        while waiting:
            arrival = await self._next(max(deadline - time.perf_counter(), 0.001), "opening", waiting)
            if isinstance(arrival.message, OpenedMsg) and arrival.message.job_id == record.spec.job_id:
                waiting.discard(arrival.index)
                record.open_ms[arrival.index] = (arrival.at - sent) * 1000
            else:
                await self._handle(arrival)

    # --- running ---

    async def _next(self, seconds: float, stage: str = "token", waiting: Collection[int] = ()) -> Arrival:
        """The next message; the end of a connection, an ERROR and silence are a RouteFailure."""
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
        """Nodes whose connection ends in the next moment: a neighbour may complain before we notice ourselves."""
        dead = self._dead()
        try:
            async with asyncio.timeout(NOTICE_SECONDS):
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
                elif record.commits[arrival.index] != message.signed and len(record.others) < MOST_OTHERS:
                    record.others.append((arrival.index, message.signed))
        except ProtocolError as error:
            raise RouteFailure(error, accused=[self._node(arrival.index)]) from error

    async def _take(self, act: ActMsg, at: float) -> None:
        """Check, acknowledge and pay for new tokens. Raises ProtocolError when the last hop may not send them."""
        record, spec = self.record, self.record.spec
        if act.job_id != spec.job_id:
            return
        position = spec.prompt_tokens + len(record.emitted)
        if act.boundary != 0 or act.from_pos != position or act.prev != self._prev:
            raise ProtocolError("out-of-order", f"Expected the token at position {position}, got {act.from_pos}.")
        if len(record.emitted) + act.n > spec.max_new_tokens:
            raise ProtocolError("too-many-tokens", f"More than the {spec.max_new_tokens} tokens asked for.")
        tokens = [int.from_bytes(act.payload[i : i + 4], "little") for i in range(0, len(act.payload), 4)]
        if max(tokens) > 0x7FFFFFFF:
            raise ProtocolError("bad-message", "A token id must be in [0, 2**31).")
        digest = act.envelope(self._tree.append(act.payload)).digest(self._domain)
        check(digest, act.signature, record.route[-1].signer)
        self._prev = digest
        record.emitted += tokens
        record.first_token = record.first_token or at
        record.last_token = at
        last = len(self._links) - 1
        await self._send(last, AckMsg(spec.job_id, 0, act.from_pos, act.n, self._session.sign_digest(digest)))
        demand = self._demand
        amount = next_voucher(self._terms, self._session.signed, len(record.emitted))
        if demand is not None and amount is None:
            amount = answer_demand(self._terms, self._session.signed, len(record.emitted), demand[1].due)
        await self._promise(amount)

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

    def _complete(self) -> bool:
        if self._stopping:
            return True
        emitted, spec = self.record.emitted, self.record.spec
        return len(emitted) == spec.max_new_tokens or (bool(emitted) and emitted[-1] == spec.eos_token)

    def _own_reason(self) -> str:
        if len(self.record.emitted) == self.record.spec.max_new_tokens:
            return "length"
        return "cancelled" if self._stopping else "eos"

    def _ended_early(self) -> RouteFailure:
        error = ProtocolError("ended-early", f"The route ended the job after {len(self.record.emitted)} tokens.")
        return RouteFailure(error, accused=[self._node(len(self._links) - 1)])

    async def _collect_receipts(self) -> None:
        """Wait for every hop's commitment. A missing one is no failure of the job: the link check reports it."""
        record = self.record
        deadline = time.perf_counter() + self._patience.receipts
        while any(commit is None for commit in record.commits):
            missing = [i for i, commit in enumerate(record.commits) if commit is None]
            try:
                arrival = await self._next(max(deadline - time.perf_counter(), 0.001), "receipts", missing)
                await self._handle(arrival)
            except RouteFailure:
                # All tokens are here already; whoever is still there may yet send a receipt.
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
