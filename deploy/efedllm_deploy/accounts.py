"""Disposable accounts of a local network, and their initial balances."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path

from efedllm.chain import Chain, keystore
from efedllm.chain.amounts import WEI

# What each account starts with.
GAS_MONEY = 10 * WEI


@dataclass(frozen=True)
class Purse:
    """A keystore with its password file, and the initial balance of EFED."""

    name: str
    path: Path
    password_file: Path
    address: str
    tokens: int


class Keys:
    """The folder of a network's keystores. All share one random password, in a file that only the owner can read."""

    def __init__(self, folder: Path, *, light: bool) -> None:
        self._folder = folder
        self._light = light
        self.password_file = folder / "password"

    def _password(self) -> str:
        if not self.password_file.exists():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.password_file.touch(mode=0o600)
            self.password_file.write_text(secrets.token_urlsafe(24) + "\n")
        return keystore.read_password(self.password_file)

    def purse(self, name: str, tokens: int) -> Purse:
        """The account called `name`. It is created when it does not exist."""
        path = self._folder / f"{name}.json"
        password = self._password()
        address = keystore.address_of(path) if path.exists() else keystore.create(path, password, light=self._light)
        return Purse(name, path, self.password_file, address, tokens)


async def fund(chain: Chain, purses: list[Purse]) -> None:
    """Give each account gas money and its EFED from the connected account.

    An account that holds gas money counts as funded: it was paid by an earlier start.
    """
    balances = await asyncio.gather(
        *(chain.rpc.integer("eth_getBalance", [purse.address, "latest"]) for purse in purses)
    )
    tasks = []
    for purse, balance in zip(purses, balances, strict=True):
        if balance > 0:
            continue
        # Tokens first: an interrupted start leaves no account with gas money but without tokens.
        tasks.append(_fund_one(chain, purse))
    await asyncio.gather(*tasks)


async def replace_slashed(chain: Chain, purses: list[Purse]) -> list[str]:
    """Replace the EFED that slashes took from the accounts, staked or not. Returns the names of the accounts paid."""
    lacking: list[tuple[Purse, int]] = []
    for purse in purses:
        stake = await chain.contracts.stake_vault.stake_of(purse.address)
        has = stake.active + await chain.token_balance(purse.address)
        if has < purse.tokens:
            lacking.append((purse, purse.tokens - has))
    for purse, amount in lacking:
        await chain.contracts.efed_token.transfer(purse.address, amount)
    return [purse.name for purse, _ in lacking]


async def _fund_one(chain: Chain, purse: Purse) -> None:
    missing = purse.tokens - await chain.token_balance(purse.address)
    if missing > 0:
        await chain.contracts.efed_token.transfer(purse.address, missing)
    await chain.transfer_eth(purse.address, GAS_MONEY)
