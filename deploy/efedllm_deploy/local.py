"""A local chain (Ganache or Anvil) as a child process, with a block ticker."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from eth_account import Account
from eth_account.signers.local import LocalAccount

from efedllm.chain.connection import Rpc
from efedllm.errors import ChainError
from efedllm_deploy.chain_programs import Kind, program
from efedllm_deploy.devclock import tick
from efedllm_deploy.process import Child, ProcessError, spawn

CHAIN_ID = 1337
ACCOUNTS = 10
# The well-known development mnemonic. Its keys are public: the deployer refuses them on any chain that is not local.
MNEMONIC = "test test test test test test test test test test test junk"

_START_SECONDS = 60.0
_PORT_TRIES = 3


def dev_account(index: int = 0) -> LocalAccount:
    """An account that a local chain funds with ETH at its start."""
    Account.enable_unaudited_hdwallet_features()
    account: LocalAccount = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
    return account


def free_port() -> int:
    """A TCP port of the loopback interface that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def chain_command(kind: Kind, port: int, chain_id: int = CHAIN_ID, keep: Path | None = None) -> list[str]:
    """Command line of a local chain. Raises ConfigError "no-node-modules"."""
    return [*program(kind), *_arguments(kind, port, chain_id, keep)]


def _arguments(kind: Kind, port: int, chain_id: int, keep: Path | None) -> Sequence[str]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    if kind == "ganache":
        arguments = {
            "--server.host": "127.0.0.1",
            "--server.port": port,
            "--chain.chainId": chain_id,
            "--chain.networkId": chain_id,
            "--chain.hardfork": "shanghai",
            "--wallet.mnemonic": MNEMONIC,
            "--wallet.totalAccounts": ACCOUNTS,
            "--wallet.defaultBalance": 100_000,
        }
        words = [str(word) for pair in arguments.items() for word in pair]
        return words + (["--database.dbPath", str(keep)] if keep else [])
    arguments = {
        "--host": "127.0.0.1",
        "--port": port,
        "--chain-id": chain_id,
        "--hardfork": "shanghai",
        "--mnemonic": MNEMONIC,
        "--accounts": ACCOUNTS,
        "--balance": 100_000,
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    # Saved every second, and when it ends by SIGTERM.
    return words + (["--state", str(keep / "anvil.json"), "--state-interval", "1"] if keep else [])


class LocalChain:
    """One running local chain. Mines at once on every transaction, and a block each `period` seconds."""

    def __init__(self, kind: Kind, url: str, chain_id: int, child: Child, rpc: Rpc) -> None:
        self.kind = kind
        self.url = url
        self.chain_id = chain_id
        self.child = child
        self.rpc = rpc
        self._ticker: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        kind: Kind = "ganache",
        *,
        log: Path,
        keep: Path | None = None,
        port: int | None = None,
        chain_id: int = CHAIN_ID,
        period: float | None = 1.0,
    ) -> Self:
        """Start a chain whose program is installed (`ensure_program`).

        `keep`: folder for its database, so that the next start resumes. `period` None: no ticker.

        Raises ConfigError "no-node-modules", ProcessError "process-died" or "process-slow".
        """
        for attempt in range(_PORT_TRIES):
            chosen = port or free_port()
            child = await spawn(kind, chain_command(kind, chosen, chain_id, keep), log)
            rpc = Rpc(f"http://127.0.0.1:{chosen}", budget=2.0)
            chain = cls(kind, rpc.url, chain_id, child, rpc)
            try:
                await chain._wait_until_up()
                await chain._catch_up()
            except ProcessError:
                await chain.stop()
                # Another program may have taken the port in between.
                if port is not None or "in use" not in child.tail() or attempt + 1 == _PORT_TRIES:
                    raise
                continue
            except BaseException:
                await chain.stop()
                raise
            if period is not None:
                chain._ticker = asyncio.create_task(tick(rpc, period))
            return chain
        raise ProcessError("process-died", f"No free port was found for {kind}.")

    async def _wait_until_up(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        probe = Rpc(self.url, budget=0.3, attempt=2.0)
        try:
            while time.monotonic() < deadline:
                if not self.child.alive:
                    raise self.child.died("while starting")
                try:
                    await probe.integer("eth_chainId")
                    return
                except ChainError as error:
                    if error.code != "rpc-down":
                        raise
        finally:
            await probe.close()
        raise ProcessError(
            "process-slow", f"{self.kind} did not answer within {_START_SECONDS:.0f} s.", f"See {self.child.log}"
        )

    async def _catch_up(self) -> None:
        """A kept chain forgets how far its clock was moved, and would let time run backwards."""
        block = await self.rpc.request("eth_getBlockByNumber", ["latest", False])
        behind = int(block["timestamp"], 16) - int(time.time())
        if int(block["number"], 16) > 0 and behind > 0:
            await self.rpc.request("evm_increaseTime", [behind + 1])

    async def stop(self) -> None:
        """Stop the ticker and the process, and everything in its group."""
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
        await self.rpc.close()
        await self.child.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
