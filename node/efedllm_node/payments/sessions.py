"""The sessions that pay this node: their state on chain, their best vouchers, the tokens that their jobs used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from efedllm.chain import Chain
from efedllm.chain.types import NodeInfo, SessionInfo
from efedllm.commitments.messages import SessionKey, Voucher
from efedllm.commitments.signing import check
from efedllm.errors import ChainError, ProtocolError
from efedllm.logs import get_logger
from efedllm_node.facts import NodeFacts
from efedllm_node.payments.rules import (
    CLOSED,
    OPEN,
    SessionAccount,
    Standing,
    Unsettled,
    check_share,
    check_signer,
    check_voucher,
)
from efedllm_node.storage.records import SessionRecord
from efedllm_node.storage.store import NodeStore
from efedllm_node.storage.store_origin import session_too_old

T = TypeVar("T")

FRESH = 15.0  # seconds for which what the chain said of a session or node is used without asking again


@dataclass
class ServedSession:
    """One session in memory. `running`: tokens each of its running jobs has used, at least those of its prompt.
    `young`: known to have been opened after the store's origin; `too_old`: when it was last found not to have been.
    `settled_in`: the last epoch in which more of it was seen to be settled.
    """

    record: SessionRecord
    asked: float
    young: bool = False
    settled_in: int | None = None
    too_old: float = float("-inf")
    running: dict[bytes, int] = field(default_factory=dict)
    taking: asyncio.Lock = field(default_factory=asyncio.Lock)  # one voucher at a time

    def unsettled(self) -> Unsettled:
        """As the settler sees it."""
        r, busy = self.record, bool(self.running)
        return Unsettled(r.session_id, r.hop, r.cumulative, r.settled, r.status, r.key.expiry, busy, self.settled_in)

    @contextmanager
    def reserve(self, job_id: bytes, tokens: int) -> Iterator[None]:
        """Count `tokens` for a job while the block makes it. They stay counted unless the block raises."""
        self.running[job_id] = tokens
        try:
            yield
        except BaseException:
            self.running.pop(job_id, None)
            raise

    def account(self, credit: int, job_id: bytes | None = None) -> SessionAccount:
        """The session's account as seen by one of its jobs."""
        others = sum(used for other, used in self.running.items() if other != job_id)
        record = self.record
        return SessionAccount(record.price, record.cumulative, record.billed + others, credit)


class ServedSessions:
    """Sessions by id, backed by the store. The chain is asked when what is known is old; it may be down for a while.

    origin: block after which sessions must have been opened (`efedllm_node.storage.store_origin`).
    """

    def __init__(
        self,
        chain: Chain,
        store: NodeStore,
        facts: NodeFacts,
        patience: float,
        origin: int,
        *,
        contract_signers: bool = False,
    ) -> None:
        self._chain = chain
        self._contract_signers = contract_signers
        self._store = store
        self._facts = facts
        self._patience = patience
        self._origin = origin
        self._sessions: dict[bytes, ServedSession] = {}
        self._nodes: dict[str, tuple[float, NodeInfo]] = {}
        self._log = get_logger("sessions")

    async def load(self) -> None:
        """Read what an earlier process kept."""
        for record in await self._store.sessions():
            self._sessions[record.session_id] = ServedSession(record, asked=float("-inf"))

    def get(self, session_id: bytes) -> ServedSession | None:
        return self._sessions.get(session_id)

    def __len__(self) -> int:
        return len(self._sessions)

    async def enter(self, key: SessionKey, hop: int, own_price: int) -> ServedSession:
        """The session of `key`, which must be open on chain.

        Raises ProtocolError "session-not-open", "contract-signer", "session-too-old" or "price-too-low", and
        ChainError when the chain does not answer.
        """
        session_id = key.session_id(*self._chain.escrow_domain)
        session = self._sessions.get(session_id)
        if session is None:
            session = await self._first_seen(session_id, key, hop)
        else:
            await self.refresh(session)
        if session.record.status != OPEN:
            raise ProtocolError(
                "session-not-open", f"Session 0x{session_id.hex()} is not open on chain.", "Open a session first."
            )
        check_share(own_price, session.record.price, key.shares[hop], len(key.nodes))
        # Last: it may take several looks at the chain, which only what is paid for is worth.
        await self._check_age(session)
        return session

    async def _check_age(self, session: ServedSession) -> None:
        """ProtocolError "session-too-old" for a session that may have had jobs which the store does not know."""
        if session.young:
            return
        session_id, now = session.record.session_id, time.monotonic()
        # Not asked again at once: logs may lag behind, and strangers may insist.
        if now - session.too_old >= FRESH:
            session.young = await self._patiently(self._chain.opened_after(session_id, self._origin))
            session.too_old = now
        if not session.young:
            raise session_too_old(session_id)

    async def _first_seen(self, session_id: bytes, key: SessionKey, hop: int) -> ServedSession:
        info = await self._ask(session_id)
        if info.status == 0:
            raise ProtocolError(
                "session-not-open", f"Session 0x{session_id.hex()} does not exist on chain.", "Open a session first."
            )
        check_signer(info.contract_signer, allowed=self._contract_signers)
        call = self._chain.contracts.node_registry.check_route(key.model_id, list(key.nodes))
        price = await self._patiently(call)
        # A price raised after the session was opened does not bind its client.
        price = min(price, key.max_price_per_ktok)
        record = SessionRecord(session_id, key, hop, price, info.deposit, info.settled, info.status)
        # On disk before anybody finds it here: a voucher of a session that the disk lacks would be lost.
        await self._store.add_session(record)
        return self._sessions.setdefault(session_id, ServedSession(record, time.monotonic()))

    async def _ask(self, session_id: bytes) -> SessionInfo:
        return await self._patiently(self._chain.session(session_id))

    async def _patiently(self, reading: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(self._patience):
                return await reading
        except TimeoutError:
            raise ChainError("rpc-down", "The chain does not answer this node.", "Try again later.") from None

    async def refresh(self, session: ServedSession, *, max_age: float = FRESH) -> None:
        """Ask the chain again when the answer is old. While it is down, what is known goes on being used."""
        if time.monotonic() - session.asked < max_age:
            return
        try:
            info = await self._ask(session.record.session_id)
        except ChainError as error:
            self._log.warning("session not refreshed", session=session.record.session_id, reason=error.message)
            return
        await self.update(session, info)

    async def update(self, session: ServedSession, info: SessionInfo) -> None:
        """Keep what the chain says."""
        session.asked = time.monotonic()
        old = session.record
        if (old.deposit, old.settled, old.status) == (info.deposit, info.settled, info.status):
            return
        session.record = replace(old, deposit=info.deposit, settled=info.settled, status=info.status)
        await self._store.save_chain_state(old.session_id, info.deposit, info.settled, info.status)

    async def take(self, session: ServedSession, voucher: Voucher, signature: bytes) -> None:
        """Check a voucher and keep it; it is on disk when this returns. Raises ProtocolError."""
        async with session.taking:
            if voucher.session_id == session.record.session_id:
                # First, so that strangers cannot make us ask the chain.
                check(voucher.digest(*self._chain.escrow_domain), signature, session.record.key.signer)
                if voucher.cumulative > session.record.deposit:
                    await self.refresh(session, max_age=0.0)
            news = check_voucher(self._standing(session), voucher)
            if news and session.record.status == CLOSED:
                raise ProtocolError("session-not-open", "The session is closed: nothing more is paid from it.")
            if not news:
                return
            await self._store.save_voucher(voucher, signature)
            session.record = replace(
                session.record, cumulative=voucher.cumulative, voucher=voucher, voucher_sig=signature
            )

    def _standing(self, session: ServedSession) -> Standing:
        return Standing(session.record.session_id, session.record.deposit, session.record.cumulative)

    def bill(self, session: ServedSession, job_id: bytes, tokens: int) -> None:
        """A job ended; the store has counted it too."""
        session.running.pop(job_id, None)
        session.record = replace(session.record, billed=session.record.billed + tokens)

    def unsettled(self) -> list[ServedSession]:
        """Sessions with a voucher beyond what was settled."""
        records = ((session, session.record) for session in self._sessions.values())
        return [session for session, r in records if r.voucher is not None and r.cumulative > r.settled]

    async def route(self, addresses: tuple[str, ...]) -> list[NodeInfo]:
        """The registrations of a route's nodes. ChainError when one is unknown to us and the chain is down."""
        return list(await asyncio.gather(*(self._node(address) for address in addresses)))

    async def _node(self, address: str) -> NodeInfo:
        known = self._nodes.get(address)
        now = time.monotonic()
        if known is not None and now - known[0] < FRESH:
            return known[1]
        try:
            info = await self._patiently(self._chain.node(address))
        except ChainError:
            if known is not None:
                return known[1]
            raise
        self._nodes[address] = (now, info)
        return info

    def sweep(self, timestamp: int) -> None:
        """Drop sessions from memory that can neither be used nor settled any more."""
        for session_id, session in list(self._sessions.items()):
            record = session.record
            useless = record.status == CLOSED or record.cumulative <= record.settled
            if useless and record.key.expiry < timestamp and not session.running:
                del self._sessions[session_id]

    def forget_nodes(self) -> None:
        """Registrations changed, e.g. at the start of an epoch."""
        self._nodes.clear()
