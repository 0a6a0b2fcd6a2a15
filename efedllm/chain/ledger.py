"""Where every EFED is: recomputed from the Transfer events, and compared to the wei with what the contracts say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from efedllm.chain.readers import Readers
from efedllm.chain.types import ChainEvent

_NOBODY = "0x" + "00" * 20


@dataclass(frozen=True)
class TokenBalances:
    """Sum of the Transfer events: what was made, what was destroyed, who holds the rest. Wei."""

    minted: int
    burned: int
    holders: dict[str, int]


def replay(transfers: Iterable[ChainEvent]) -> TokenBalances:
    """Balances after these Transfer events, which must start at the token's creation."""
    minted = burned = 0
    holders: dict[str, int] = {}
    for event in transfers:
        source, target, value = event.args["from"], event.args["to"], event.args["value"]
        if source == _NOBODY:
            minted += value
        else:
            holders[source] = holders.get(source, 0) - value
        if target == _NOBODY:
            burned += value
        else:
            holders[target] = holders.get(target, 0) + value
    return TokenBalances(minted, burned, {address: value for address, value in holders.items() if value})


@dataclass(frozen=True)
class Ledger:
    """All EFED at one block, in wei. `problems` is empty when every equality holds.

    minted - burned == supply == wallets + vault + escrow;
    vault == staked + unbonding; escrow == client_balances + sessions + owed + protocol_fees.
    """

    block: int
    minted: int
    burned: int
    supply: int
    wallets: dict[str, int]
    vault: int
    staked: int
    unbonding: int
    escrow: int
    client_balances: int
    sessions: int
    owed: int
    protocol_fees: int
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every equality holds to the wei."""
        return not self.problems

    @property
    def in_wallets(self) -> int:
        """Sum over all holders other than the vault and the escrow."""
        return sum(self.wallets.values())


def _compare(problems: list[str], name: str, left: int, right: int) -> None:
    if left != right:
        problems.append(f"{name}: {left} != {right} (difference {left - right} wei)")


async def read_ledger(chain: Readers) -> Ledger:
    """The ledger at the latest block. All reads are as of that block. Raises ChainError."""
    contracts = chain.contracts
    block = await chain.transport.block_number()
    transfers, deposited, opened, registered = (
        [event for event in events if event.block <= block]
        for events in await asyncio.gather(
            chain.history("EfedToken", "Transfer"),
            chain.history("SessionEscrow", "Deposited", "SessionOpened"),
            chain.history("SessionEscrow", "SessionOpened"),
            chain.history("NodeRegistry", "NodeRegistered"),
        )
    )
    balances = replay(transfers)
    clients = sorted({event.args["client"] for event in deposited})
    nodes = sorted({event.args["node"] for event in registered})
    supply, totals, fees = await asyncio.gather(
        contracts.efed_token.total_supply(block=block),
        contracts.stake_vault.totals(block=block),
        contracts.session_escrow.protocol_fees(block=block),
    )
    client_balances, owed, sessions, actual = await asyncio.gather(
        asyncio.gather(*(contracts.session_escrow.balance_of(client, block=block) for client in clients)),
        asyncio.gather(*(contracts.session_escrow.owed_of(node, block=block) for node in nodes)),
        asyncio.gather(*(chain.session_at(event.args["sessionId"], block) for event in opened)),
        asyncio.gather(*(chain.token_balance(holder, block) for holder in balances.holders)),
    )
    wallets = dict(balances.holders)
    vault = wallets.pop(chain.transport.address("StakeVault"), 0)
    escrow = wallets.pop(chain.transport.address("SessionEscrow"), 0)
    locked = sum(session.remaining for session in sessions)

    problems: list[str] = []
    for (holder, value), told in zip(balances.holders.items(), actual, strict=True):
        _compare(problems, f"balance of {holder} by events and by the token", value, told)
    _compare(problems, "minted - burned and total supply", balances.minted - balances.burned, supply)
    _compare(problems, "supply and wallets + vault + escrow", supply, sum(wallets.values()) + vault + escrow)
    _compare(problems, "vault and staked + unbonding", vault, totals.active + totals.unbonding)
    _compare(
        problems,
        "escrow and client balances + sessions + owed + protocol fees",
        escrow,
        sum(client_balances) + locked + sum(owed) + fees,
    )
    return Ledger(
        block=block,
        minted=balances.minted,
        burned=balances.burned,
        supply=supply,
        wallets=wallets,
        vault=vault,
        staked=totals.active,
        unbonding=totals.unbonding,
        escrow=escrow,
        client_balances=sum(client_balances),
        sessions=locked,
        owed=sum(owed),
        protocol_fees=fees,
        problems=problems,
    )
