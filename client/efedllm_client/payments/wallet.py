"""The client's money: EFED in the wallet, in the escrow's balance, and locked in sessions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from efedllm.chain import Chain, format_amount
from efedllm.commitments.messages import SessionKey
from efedllm.errors import ConfigError
from efedllm_client.payments.store import CLOSED, ClientStore, StoredSession

OPEN_ON_CHAIN, CLOSING_ON_CHAIN, CLOSED_ON_CHAIN = 1, 2, 3
PERMIT_SECONDS = 3600  # validity of the signature that lets the escrow take the deposit


@dataclass(frozen=True)
class WalletBalances:
    """Amounts in wei."""

    address: str
    eth: int
    efed: int  # in the wallet
    escrow: int  # deposited, free to use or withdraw
    in_sessions: int  # locked in open and closing sessions, not yet settled
    promised: int  # part of `in_sessions` that signed vouchers give away


async def balances(chain: Chain, store: ClientStore) -> WalletBalances:
    """Where this wallet's money is now."""
    address = chain.account_address
    eth = await chain.rpc.integer("eth_getBalance", [address, "latest"])
    efed = await chain.token_balance(address)
    escrow = await chain.contracts.session_escrow.balance_of(address)
    locked = promised = 0
    for view in await session_views(chain, store):
        locked += view.remaining
        promised += min(max(view.promised - view.settled, 0), view.remaining)
    return WalletBalances(address, eth, efed, escrow, locked, promised)


@dataclass(frozen=True)
class SessionView:
    """A session: its state on chain joined with the client's record. Amounts in wei, times in chain seconds."""

    session_id: bytes
    status: str  # opening, open, closing, closed
    model_id: bytes
    nodes: tuple[str, ...]
    deposit: int
    settled: int
    promised: int  # last voucher
    tokens: int  # billed
    expiry: int
    closes_at: int

    @property
    def remaining(self) -> int:
        return self.deposit - self.settled if self.status in ("open", "closing") else 0

    def to_json(self) -> dict[str, Any]:
        out = asdict(self)
        return {**out, "session_id": "0x" + self.session_id.hex(), "model_id": "0x" + self.model_id.hex()}


_STATUS = {0: "opening", OPEN_ON_CHAIN: "open", CLOSING_ON_CHAIN: "closing", CLOSED_ON_CHAIN: "closed"}


async def session_views(chain: Chain, store: ClientStore, with_closed: bool = False) -> list[SessionView]:
    """This wallet's sessions on this network, newest first."""
    chain_id, escrow = chain.escrow_domain
    views = []
    for stored in await store.sessions(chain.account_address, escrow, chain_id):
        if stored.status != CLOSED or with_closed:
            views.append(await _view(chain, store, stored))
    return views


async def _view(chain: Chain, store: ClientStore, stored: StoredSession) -> SessionView:
    on_chain = await chain.session(stored.session_id)
    key = SessionKey.from_json(json.loads(stored.key_json))
    last = await store.last_voucher(stored.session_id)
    return SessionView(
        session_id=stored.session_id,
        status=_STATUS[on_chain.status],
        model_id=key.model_id,
        nodes=key.nodes,
        deposit=on_chain.deposit,
        settled=on_chain.settled,
        promised=last.voucher.cumulative if last else 0,
        tokens=stored.billed_tokens,
        expiry=key.expiry,
        closes_at=on_chain.closes_at,
    )


async def deposit(chain: Chain, amount: int) -> str:
    """Move EFED from the wallet to the escrow in one transaction (EIP-2612 permit). Returns the transaction hash.

    Raises ConfigError "insufficient-balance".
    """
    held = await chain.token_balance(chain.account_address)
    if held < amount:
        raise insufficient(amount, held, 0)
    escrow, address = chain.contracts.session_escrow, chain.address("SessionEscrow")
    if await chain.contracts.efed_token.allowance(chain.account_address, address) >= amount:
        return (await escrow.deposit(amount)).hash
    deadline = (await chain.now()).timestamp + PERMIT_SECONDS
    v, r, s = await _sign_permit(chain, address, amount, deadline)
    return (await escrow.deposit_with_permit(amount, deadline, v, r, s)).hash


async def _sign_permit(chain: Chain, spender: str, amount: int, deadline: int) -> tuple[int, bytes, bytes]:
    assert chain.account is not None
    name = await chain.contracts.efed_token.name()
    nonce = await chain.contracts.efed_token.nonces(chain.account_address)
    signed = chain.account.sign_typed_data(
        domain_data={
            "name": name,
            "version": "1",
            "chainId": chain.chain_id,
            "verifyingContract": chain.address("EfedToken"),
        },
        message_types={
            "Permit": [
                {"name": "owner", "type": "address"},
                {"name": "spender", "type": "address"},
                {"name": "value", "type": "uint256"},
                {"name": "nonce", "type": "uint256"},
                {"name": "deadline", "type": "uint256"},
            ]
        },
        message_data={
            "owner": chain.account_address,
            "spender": spender,
            "value": amount,
            "nonce": nonce,
            "deadline": deadline,
        },
    )
    return signed.v, signed.r.to_bytes(32, "big"), signed.s.to_bytes(32, "big")


async def fund_escrow(chain: Chain, least: int, wanted: int, exact: bool) -> int:
    """Make the escrow balance hold `wanted` wei, depositing from the wallet; returns what a session may now take.

    With less money than that, takes what there is as long as it is `least`, unless `exact`.
    Raises ConfigError "insufficient-balance".
    """
    escrow = await chain.contracts.session_escrow.balance_of(chain.account_address)
    if escrow >= wanted:
        return wanted
    held = await chain.token_balance(chain.account_address)
    amount = affordable(escrow, held, least, wanted, exact)
    if amount > escrow:
        await deposit(chain, amount - escrow)
    return amount


def affordable(escrow: int, held: int, least: int, wanted: int, exact: bool) -> int:
    """What to put into a session, given the escrow balance and the wallet's tokens. See `fund_escrow`."""
    amount = min(escrow + held, wanted)
    if amount < (wanted if exact else least):
        raise insufficient(wanted if exact else least, held, escrow)
    return amount


def insufficient(needed: int, held: int, escrow: int) -> ConfigError:
    where = f"the wallet holds {format_amount(held)}" + (f" and the escrow {format_amount(escrow)}" if escrow else "")
    return ConfigError(
        "insufficient-balance",
        f"This needs {format_amount(needed)}; {where}.",
        "Send EFED to the wallet (`efedllm wallet balance` shows its address), or ask for fewer tokens.",
    )
