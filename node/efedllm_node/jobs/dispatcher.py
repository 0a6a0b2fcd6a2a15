"""Opens jobs, and hands every message of clients and other nodes to the job that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from efedllm.chain import Chain
from efedllm.commitments.messages import RouteHop, ids_bytes
from efedllm.errors import ChainError, EfedError, ProtocolError
from efedllm.logs import get_logger
from efedllm.wire import Identity
from efedllm.wire.messages import (
    AckMsg,
    ActMsg,
    AnyMessage,
    CancelMsg,
    CommitMsg,
    ErrorMsg,
    FinishMsg,
    OpenedMsg,
    OpenJobMsg,
    StartMsg,
    VoucherMsg,
)
from efedllm_node.jobs import job_events as events
from efedllm_node.jobs.admission import Load, check_open, check_own, check_route
from efedllm_node.jobs.embedding_hop import EmbeddingHop
from efedllm_node.jobs.generation_hop import GenerationHop
from efedllm_node.jobs.job_hop import JobHop
from efedllm_node.jobs.peers import Link, Neighbours
from efedllm_node.jobs.services import NodeServices
from efedllm_node.payments.rules import check_credit
from efedllm_node.payments.sessions import ServedSession
from efedllm_node.storage.records import OpenedJob, job_exists

TOKEN_BYTES = 4


class Dispatcher:
    """All jobs of the node; receives every message of clients and other nodes. Implements `peers.Handler`."""

    def __init__(self, services: NodeServices, chain: Chain, identity: Identity) -> None:
        self.services = services
        self.draining = False
        self._closing = False
        self.neighbours = Neighbours(identity, self, services.limits.connect_timeout, services.metrics.wire)
        self._chain = chain
        self._jobs: dict[bytes, JobHop] = {}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._opening: dict[bytes, bytes] = {}  # job -> session, while a job is being opened
        self._guests: set[Link] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._log = get_logger("dispatcher")

    @property
    def running(self) -> int:
        """Jobs open or being opened."""
        return len(self._jobs) + len(self._opening)

    @property
    def connections(self) -> int:
        """Links that others opened to us."""
        return len(self._guests)

    def welcome(self, link: Link) -> None:
        """Somebody connected and has proven who it is."""
        self._guests.add(link)
        if link.is_node:
            self.neighbours.adopt(link)

    def farewell(self, link: Link) -> None:
        """Its connection has ended."""
        self._guests.discard(link)

    # --- Handler ---

    async def handle(self, link: Link, message: AnyMessage) -> None:
        """One message of a link. Failures go back over the link; they never end it."""
        if self._closing:
            # Our jobs are gone. A sender must see that the link ends, not that its job is unknown.
            return
        try:
            if link.is_node and isinstance(message, CommitMsg) and message.commit.job_id not in self._jobs:
                await self._late_commit(link, message)
            elif link.is_node:
                self._from_node(link, message)
            else:
                await self._from_client(link, message)
        except (ProtocolError, ChainError) as error:
            job_id = message.job_spec.job_id if isinstance(message, OpenJobMsg) else getattr(message, "job_id", None)
            await link.refuse(error, job_id)

    def lost(self, link: Link) -> None:
        self.neighbours.forget(link)
        for job in list(self._jobs.values()):
            if job.uses(link):
                job.post(events.LinkLost(link))

    def _from_node(self, link: Link, message: AnyMessage) -> None:
        match message:
            case ActMsg():
                # Job ids can be guessed: a message of a stranger must not reach a job, because it would end it.
                job = self._neighbours_job(link, message.job_id, following=False)
                if job is None:
                    raise ProtocolError("unknown-job", f"There is no job 0x{message.job_id.hex()} of yours here.")
                job.post(events.RowsArrived(message, link))
            case AckMsg():
                # It may arrive after the end.
                job = self._neighbours_job(link, message.job_id)
                if job is not None:
                    job.post(events.AckArrived(message, link))
            case CommitMsg():
                job = self._neighbours_job(link, message.commit.job_id, following=False)
                if job is not None:
                    job.post(events.CommitArrived(message.signed))
            case FinishMsg():
                job = self._neighbours_job(link, message.job_id, following=False)
                if job is not None:
                    job.post(events.FinishArrived(message))
            case CancelMsg():
                job = self._neighbours_job(link, message.job_id, following=False)
                if job is not None:
                    job.post(events.StopAsked("last" if job.record.hop == 0 else "previous"))
            case ErrorMsg():
                self._error_from_node(link, message)
            case _:
                raise ProtocolError("unexpected", f"A node does not send {message.TYPE.name}.")

    async def _late_commit(self, link: Link, message: CommitMsg) -> None:
        """The job is over: a commitment can only contradict the one that we know."""
        kept = await self.services.store.previous(message.commit.job_id)
        if kept is not None and kept.node == link.remote.node:
            await self.services.equivocation_watch.compare(kept.node, kept.signed, message.signed)

    def _error_from_node(self, link: Link, message: ErrorMsg) -> None:
        if message.job_id is None:
            self._log.warning("neighbour reports", node=link.remote.node, code=message.code, reason=message.message)
            return
        job = self._neighbours_job(link, message.job_id) or self._neighbours_job(link, message.job_id, following=False)
        if job is not None:
            error = ProtocolError(message.code, f"Node {link.remote.node} gave up: {message.message}", message.hint)
            job.post(events.JobFailed(error, link))

    def _neighbours_job(self, link: Link, job_id: bytes, *, following: bool = True) -> JobHop | None:
        """The job, if the link's node is its next hop (or with following=False its previous one)."""
        job = self._jobs.get(job_id)
        if job is None:
            return None
        hop, hops = job.record.hop, job.record.hops
        other = job.record.route[(hop + (1 if following else -1)) % hops]
        return job if hops > 1 and link.is_hop(other) else None

    async def _from_client(self, link: Link, message: AnyMessage) -> None:
        match message:
            case OpenJobMsg():
                try:
                    await self._open(link, message)
                except EfedError as error:
                    self.services.metrics.refusals.labels(error.code).inc()
                    self._log.info("job refused", code=error.code, reason=error.message)
                    raise
            case StartMsg():
                self._clients_job(link, message.job_id).post(events.StartArrived())
            case VoucherMsg():
                await self._voucher(message)
            case CancelMsg():
                if message.job_id in self._jobs:
                    self._clients_job(link, message.job_id).post(events.StopAsked("client"))
            case AckMsg():
                if message.job_id in self._jobs:
                    self._clients_job(link, message.job_id).post(events.AckArrived(message, link))
            case ErrorMsg():
                self._log.info("client reports", code=message.code, reason=message.message)
            case _:
                raise ProtocolError("unexpected", f"A client does not send {message.TYPE.name}.")

    def _clients_job(self, link: Link, job_id: bytes) -> JobHop:
        job = self._jobs.get(job_id)
        if job is None or job.client is not link:
            raise ProtocolError("unknown-job", f"There is no job 0x{job_id.hex()} of yours here.", "Open it first.")
        return job

    # --- vouchers and jobs ---

    async def _voucher(self, message: VoucherMsg) -> None:
        session_id = message.voucher.session_id
        session = self.services.sessions.get(session_id)
        if session is None:
            raise ProtocolError(
                "wrong-session", "This is a voucher for a session this node does not serve.", "Open a job in it first."
            )
        await self.services.sessions.take(session, message.voucher, message.signature)
        for job_id in list(session.running):
            if job_id in self._jobs:
                self._jobs[job_id].post(events.VoucherTaken())

    async def _open(self, link: Link, msg: OpenJobMsg) -> None:
        """Open a job, or raise the ProtocolError or ChainError that refuses it; a refused job leaves nothing behind."""
        services, spec = self.services, msg.job_spec
        session_id = msg.session_key.session_id(*self._chain.escrow_domain)
        check_open(msg, session_id, services.facts, services.domain, services.clock.time, self._load(session_id))
        with self._opening_job(spec.job_id, session_id):
            if await services.store.has_job(spec.job_id):
                raise job_exists()
            session, route = await self._admit(msg)
            with session.reserve(spec.job_id, spec.prompt_tokens):
                job = await self._make_job(link, msg, session, route)
            self._run(job)
            await link.send(OpenedMsg(spec.job_id, msg.hop, True))

    @contextmanager
    def _opening_job(self, job_id: bytes, session_id: bytes) -> Iterator[None]:
        """Hold a job number while the job is being opened: another connection may ask for it meanwhile."""
        if job_id in self._jobs or job_id in self._opening:
            raise job_exists()
        self._opening[job_id] = session_id
        self._idle.clear()
        try:
            yield
        finally:
            del self._opening[job_id]
            self._check_idle()

    async def _admit(self, msg: OpenJobMsg) -> tuple[ServedSession, tuple[RouteHop, ...]]:
        """The session that pays for the job, and its route as the chain knows it.

        Nothing is waited for after the credit is checked, so that jobs opened at once get it once.
        """
        services = self.services
        # Our own registration, then the session, which costs money: only for that we ask about everybody else.
        (own,) = await services.sessions.route((services.facts.address,))
        check_own(own, services.signer.address, services.endpoint)
        session = await services.sessions.enter(msg.session_key, msg.hop, own.price_per_ktok)
        route = check_route(msg, await services.sessions.route(msg.session_key.nodes))
        if msg.voucher is not None and msg.voucher_signature is not None:
            await services.sessions.take(session, msg.voucher, msg.voucher_signature)
        check_credit(session.account(services.credit), session.record.deposit, msg.job_spec.prompt_tokens)
        return session, route

    async def _make_job(
        self, link: Link, msg: OpenJobMsg, session: ServedSession, route: tuple[RouteHop, ...]
    ) -> JobHop:
        """The job, once it is in the store and its next hop can be reached."""
        services, spec = self.services, msg.job_spec
        following = await self._following(route, msg.hop)
        record = OpenedJob(
            job_id=spec.job_id,
            session_id=session.record.session_id,
            hop=msg.hop,
            hops=len(route),
            spec=spec,
            spec_sig=msg.spec_signature,
            route=route,
            prompt=None if msg.prompt is None else ids_bytes(msg.prompt),
            in_row=TOKEN_BYTES if msg.hop == 0 else services.facts.hidden * (4 if spec.wire_dtype == 1 else 2),
        )
        await services.store.add_job(record)
        kind = EmbeddingHop if spec.embeds else GenerationHop
        return kind(services, session, record, link, following)

    def _run(self, job: JobHop) -> None:
        self._jobs[job.id] = job
        task = asyncio.create_task(job.run(), name=f"job {job.id.hex()[:16]}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda _done: self._ended(job.id))

    def _load(self, session_id: bytes) -> Load:
        mine = sum(other == session_id for other in self._opening.values())
        mine += sum(job.record.session_id == session_id for job in self._jobs.values())
        limits = self.services.limits
        return Load(self.running, mine, limits.max_jobs, limits.max_jobs_per_session, self.draining)

    async def _following(self, route: tuple[RouteHop, ...], hop: int) -> Link | None:
        """The link to the next hop; the last hop's next is hop 0."""
        return None if len(route) == 1 else await self.neighbours.reach(route[(hop + 1) % len(route)])

    def _ended(self, job_id: bytes) -> None:
        self._jobs.pop(job_id, None)
        self._tasks.pop(job_id, None)
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._jobs and not self._opening:
            self._idle.set()

    # --- the end of the node ---

    async def finish_jobs(self, deadline: float) -> int:
        """Refuse new jobs and wait for the running ones; those still there after `deadline` seconds are aborted.

        Returns how many were aborted.
        """
        self.draining = True
        try:
            async with asyncio.timeout(deadline):
                await self._idle.wait()
        except TimeoutError:
            left = list(self._jobs.values())
            for job in left:
                job.post(
                    events.JobFailed(ProtocolError("draining", "The node is shutting down.", "Choose another node."))
                )
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            return len(left)
        return 0

    async def close(self) -> None:
        """Stop every job where it is (the store will call it aborted at the next start) and all links."""
        self.draining = self._closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.peer.close() for link in list(self._guests)), self.neighbours.close())
