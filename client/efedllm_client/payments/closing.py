"""Getting deposits back: close sessions, wait for the end of the grace period, withdraw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from efedllm.chain import Chain, format_amount
from efedllm.commitments.messages import SessionKey
from efedllm.errors import ConfigError
from efedllm_client.payments.store import CLOSED, ClientStore, session_lock
from efedllm_client.payments.wallet import CLOSED_ON_CHAIN, SessionView, session_views

CloseStep = Literal["close", "finalize", "forget", "wait", "keep"]


def next_step(view: SessionView, now: int, grace: int, close_open: bool) -> CloseStep:
    """What to do with a session at chain time `now` (seconds).

    An expired session may be finalised `grace` seconds after its expiry without asking first.
    """
    if view.status == "closing":
        return "finalize" if now >= view.closes_at else "wait"
    if view.status == "open":
        if now >= view.expiry + grace:
            return "finalize"
        return "close" if close_open else "keep"
    if view.status == "opening":
        # Not on chain (yet): once expired it can never be opened.
        return "forget" if now >= view.expiry else "keep"
    return "forget"


@dataclass(frozen=True)
class Closed:
    """What happened to one session."""

    session_id: bytes
    outcome: Literal["closed", "closing", "busy", "kept"]
    refund: int  # wei, into the escrow balance when closed, expected when closing
    closes_at: int  # chain time from which it can be finalised, 0 unless closing


async def close_sessions(chain: Chain, store: ClientStore, directory: Path, close_open: bool = True) -> list[Closed]:
    """Take every session of this wallet one step closer to closed. Skips sessions in use."""
    grace = await chain.contracts.session_escrow.grace()
    done = []
    for view in await session_views(chain, store):
        with session_lock(directory, view.session_id) as free:
            if free:
                done.append(await _advance(chain, store, view, grace, close_open))
            else:
                done.append(Closed(view.session_id, "busy", 0, 0))
    return done


async def _advance(chain: Chain, store: ClientStore, view: SessionView, grace: int, close_open: bool) -> Closed:
    escrow = chain.contracts.session_escrow
    step = next_step(view, (await chain.now()).timestamp, grace, close_open)
    key = SessionKey.from_json(json.loads((await store.session(view.session_id)).key_json))
    if step == "forget":
        await store.set_session(view.session_id, CLOSED)
        return Closed(view.session_id, "closed", 0, 0)
    if step == "wait":
        return Closed(view.session_id, "closing", view.remaining, view.closes_at)
    if step == "keep":
        return Closed(view.session_id, "kept", 0, 0)
    if step == "finalize":
        result = await escrow.finalize_close(key)
        await store.set_session(view.session_id, CLOSED)
        return Closed(view.session_id, "closed", int(result.event("SessionClosed").args["refund"]), 0)
    last = await store.last_voucher(view.session_id)
    if last is None or last.voucher.cumulative <= view.settled:
        await escrow.request_close(key)
    else:
        await escrow.settle_and_close(key, last.voucher, last.signature)
    after = await chain.session(view.session_id)
    if after.status == CLOSED_ON_CHAIN:
        await store.set_session(view.session_id, CLOSED)
        return Closed(view.session_id, "closed", 0, 0)
    return Closed(view.session_id, "closing", after.remaining, after.closes_at)


@dataclass(frozen=True)
class Withdrawal:
    """Result of `withdraw`."""

    amount: int  # wei moved to the wallet
    left: int  # wei still in the escrow balance
    sessions: list[Closed]

    @property
    def waiting(self) -> list[Closed]:
        """Sessions whose grace period still runs."""
        return [item for item in self.sessions if item.outcome == "closing"]


async def withdraw(chain: Chain, store: ClientStore, directory: Path, amount: int | None) -> Withdrawal:
    """Move `amount` wei (None: everything that is free) from the escrow to the wallet.

    Finished sessions are finalised first. When that is not enough, the open ones are closed too, whose refunds come
    after the grace period. Raises ConfigError "not-yet" when `amount` is not free now.
    """
    sessions = await close_sessions(chain, store, directory, close_open=False)
    free = await _free(chain)
    if amount is None or free < amount:
        known = {item.session_id: item for item in sessions}
        known |= {item.session_id: item for item in await close_sessions(chain, store, directory)}
        sessions = list(known.values())
        free = await _free(chain)
    wanted = free if amount is None else amount
    if free < wanted:
        raise not_yet(wanted, free, [item for item in sessions if item.outcome == "closing"], await _now(chain))
    if wanted:
        await chain.contracts.session_escrow.withdraw(wanted)
    return Withdrawal(wanted, free - wanted, sessions)


def not_yet(wanted: int, free: int, waiting: list[Closed], now: int) -> ConfigError:
    """The error for money that cannot be withdrawn now: how much can, how much follows, and when."""
    if not waiting:
        return ConfigError(
            "insufficient-balance",
            f"{format_amount(free)} can be withdrawn, {format_amount(wanted)} was asked for.",
            "`efedllm wallet balance` shows what there is.",
        )
    refund = sum(item.refund for item in waiting)
    seconds = max(max(item.closes_at for item in waiting) - now, 0)
    return ConfigError(
        "not-yet",
        f"{format_amount(free)} can be withdrawn now; {format_amount(refund)} follows from {len(waiting)} closing "
        f"session(s) in {seconds} s, when their grace period ends.",
        "Run `efedllm wallet withdraw` again then.",
    )


async def _free(chain: Chain) -> int:
    return await chain.contracts.session_escrow.balance_of(chain.account_address)


async def _now(chain: Chain) -> int:
    return (await chain.now()).timestamp
