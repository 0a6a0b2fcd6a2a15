"""The sessions that pay this node: what they promised on chain, their best vouchers, what their jobs have used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from efedllm.chain import Chain
from efedllm.chain.types import NodeInfo, SessionInfo
from efedllm.commitments.messages import SessionKey, Voucher
from efedllm.commitments.signing import check
from efedllm.errors import ChainError, ProtocolError
from efedllm.logs import get_logger
from efedllm_node.jobs.admission import NodeFacts
from efedllm_node.payments.rules import (
    CLOSED,
    OPEN,
    Account,
    Standing,
    Unsettled,
    check_share,
    check_signer,
    check_voucher,
)
from efedllm_node.storage.records import SessionRecord
from efedllm_node.storage.store import Store
from efedllm_node.storage.store_origin import session_too_old

T = TypeVar("T")

FRESH = 15.0  # seconds for which what the chain said of a session or node is used without asking again


@dataclass
class Entry:
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

    def account(self, credit: int, job_id: bytes | None = None) -> Account:
        """The session's account as seen by one of its jobs."""
        others = sum(used for other, used in self.running.items() if other != job_id)
        record = self.record
        return Account(record.price, record.cumulative, record.billed + others, credit)


class Book:
    """Sessions by id, backed by the store. The chain is asked when what is known is old; it may be down for a while.

    origin: block after which sessions must have been opened (`efedllm_node.storage.store_origin`).
    """

    def __init__(
        self,
        chain: Chain,
        store: Store,
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
        self._entries: dict[bytes, Entry] = {}
        self._nodes: dict[str, tuple[float, NodeInfo]] = {}
        self._log = get_logger("sessions")

    async def load(self) -> None:
        """Read what an earlier process kept."""
        for record in await self._store.sessions():
            self._entries[record.session_id] = Entry(record, asked=float("-inf"))

    def get(self, session_id: bytes) -> Entry | None:
        return self._entries.get(session_id)

    def __len__(self) -> int:
        return len(self._entries)

    async def enter(self, key: SessionKey, hop: int, own_price: int) -> Entry:
        """The entry of a session that is open on chain now. ProtocolError "session-not-open", "contract-signer",
        "session-too-old", "price-too-low", or the ChainError that kept us from finding out.
        """
        session_id = key.session_id(*self._chain.escrow_domain)
        entry = self._entries.get(session_id)
        if entry is None:
            entry = await self._first_seen(session_id, key, hop)
        else:
            await self.refresh(entry)
        if entry.record.status != OPEN:
            raise ProtocolError(
                "session-not-open", f"Session 0x{session_id.hex()} is not open on chain.", "Open a session first."
            )
        check_share(own_price, entry.record.price, key.shares[hop], len(key.nodes))
        # Last: it may take several looks at the chain, which only what is paid for is worth.
        await self._check_age(entry)
        return entry

    async def _check_age(self, entry: Entry) -> None:
        """ProtocolError "session-too-old" for a session that may have had jobs which the store does not know."""
        if entry.young:
            return
        session_id, now = entry.record.session_id, time.monotonic()
        # Not asked again at once: logs may lag behind, and strangers may insist.
        if now - entry.too_old >= FRESH:
            entry.young = await self._patiently(self._chain.opened_after(session_id, self._origin))
            entry.too_old = now
        if not entry.young:
            raise session_too_old(session_id)

    async def _first_seen(self, session_id: bytes, key: SessionKey, hop: int) -> Entry:
        info = await self._ask(session_id)
        if info.status == 0:
            raise ProtocolError(
                "session-not-open", f"Session 0x{session_id.hex()} does not exist on chain.", "Open a session first."
            )
        check_signer(info.contract_signer, allowed=self._contract_signers)
        call = self._chain.call("NodeRegistry", "checkRoute", key.model_id, list(key.nodes))
        price = int(await self._patiently(call))
        # A price raised after the session was opened does not bind its client.
        price = min(price, key.max_price_per_ktok)
        record = SessionRecord(session_id, key, hop, price, info.deposit, info.settled, info.status)
        # On disk before anybody finds it here: a voucher of a session that the disk lacks would be lost.
        await self._store.add_session(record)
        return self._entries.setdefault(session_id, Entry(record, time.monotonic()))

    async def _ask(self, session_id: bytes) -> SessionInfo:
        return await self._patiently(self._chain.session(session_id))

    async def _patiently(self, reading: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(self._patience):
                return await reading
        except TimeoutError:
            raise ChainError("rpc-down", "The chain does not answer this node.", "Try again later.") from None

    async def refresh(self, entry: Entry, *, max_age: float = FRESH) -> None:
        """Ask the chain again when the answer is old. While it is down, what is known goes on being used."""
        if time.monotonic() - entry.asked < max_age:
            return
        try:
            info = await self._ask(entry.record.session_id)
        except ChainError as error:
            self._log.warning("session not refreshed", session=entry.record.session_id, reason=error.message)
            return
        await self.update(entry, info)

    async def update(self, entry: Entry, info: SessionInfo) -> None:
        """Keep what the chain says."""
        entry.asked = time.monotonic()
        old = entry.record
        if (old.deposit, old.settled, old.status) == (info.deposit, info.settled, info.status):
            return
        entry.record = replace(old, deposit=info.deposit, settled=info.settled, status=info.status)
        await self._store.save_chain_state(old.session_id, info.deposit, info.settled, info.status)

    async def take(self, entry: Entry, voucher: Voucher, signature: bytes) -> None:
        """Check a voucher and keep it; it is on disk when this returns. Raises ProtocolError."""
        async with entry.taking:
            if voucher.session_id == entry.record.session_id:
                # First, so that strangers cannot make us ask the chain.
                check(voucher.digest(*self._chain.escrow_domain), signature, entry.record.key.signer)
                if voucher.cumulative > entry.record.deposit:
                    await self.refresh(entry, max_age=0.0)
            news = check_voucher(self._standing(entry), voucher)
            if news and entry.record.status == CLOSED:
                raise ProtocolError("session-not-open", "The session is closed: nothing more is paid from it.")
            if not news:
                return
            await self._store.save_voucher(voucher, signature)
            entry.record = replace(entry.record, cumulative=voucher.cumulative, voucher=voucher, voucher_sig=signature)

    def _standing(self, entry: Entry) -> Standing:
        return Standing(entry.record.session_id, entry.record.deposit, entry.record.cumulative)

    def bill(self, entry: Entry, job_id: bytes, tokens: int) -> None:
        """A job ended; the store has counted it too."""
        entry.running.pop(job_id, None)
        entry.record = replace(entry.record, billed=entry.record.billed + tokens)

    def unsettled(self) -> list[Entry]:
        """Sessions with a voucher beyond what was settled."""
        records = ((entry, entry.record) for entry in self._entries.values())
        return [entry for entry, r in records if r.voucher is not None and r.cumulative > r.settled]

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
        for session_id, entry in list(self._entries.items()):
            record = entry.record
            useless = record.status == CLOSED or record.cumulative <= record.settled
            if useless and record.key.expiry < timestamp and not entry.running:
                del self._entries[session_id]

    def forget_nodes(self) -> None:
        """Registrations changed, e.g. at the start of an epoch."""
        self._nodes.clear()
