"""`Chain`: the one object through which every role talks to the contracts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from efedllm.chain.artifacts import artifact
from efedllm.chain.calls import BlockTag
from efedllm.chain.connection import Rpc
from efedllm.chain.deployment import Deployment
from efedllm.chain.readers import Readers
from efedllm.chain.sender import Sender
from efedllm.chain.transport import Transport
from efedllm.chain.types import ChainEvent, ChainTime, TxResult
from efedllm.errors import ChainError
from efedllm.logs import get_logger

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

    from efedllm.commitments.messages import Domain


class Chain(Readers):
    """A connection to one deployed network: typed `contracts`, combined reads, and the account that sends.

    Make one with `Chain.connect`, and close it. Every method raises ChainError, or RevertError when a contract refuses.
    """

    def __init__(self, transport: Transport, histories: Path | None = None) -> None:
        super().__init__(transport, histories)
        self.rpc = transport.rpc
        self.deployment = transport.deployment
        self.account = transport.account

    @classmethod
    async def connect(
        cls,
        rpc_url: str,
        deployment: Deployment,
        account: LocalAccount | None = None,
        *,
        budget: float = 30.0,
        journal: Path | None = None,
        tx_timeout: float = 180.0,
        histories: Path | None = None,
    ) -> Self:
        """Connect and check that this is the deployment's chain and that its contracts exist.

        `budget`: seconds for which every request is retried while the RPC server does not answer. `journal`: file in
        which unfinished transactions survive a restart. `tx_timeout`: seconds until a sent transaction must be mined.
        `histories`: folder in which the events that were read are kept for the next process.

        Raises ChainError "rpc-down", "wrong-chain", "no-contract" or "abi-mismatch".
        """
        rpc = Rpc(rpc_url, budget=budget)
        try:
            chain_id = await rpc.integer("eth_chainId")
            if chain_id != deployment.chain_id:
                raise ChainError(
                    "wrong-chain",
                    f"{rpc_url} is chain {chain_id}, but the contracts are on chain {deployment.chain_id}.",
                    "Pass the --rpc of that chain, or the --deployment file of this one.",
                )
            sender = (
                Sender(rpc, account, chain_id, journal=journal, timeout=tx_timeout) if account is not None else None
            )
            chain = cls(Transport(rpc, deployment, account, sender), histories)
            await chain._check_contracts()
        except BaseException:
            await rpc.close()
            raise
        return chain

    async def _check_contracts(self) -> None:
        contracts = self.deployment.contracts
        codes = await asyncio.gather(
            *(self.rpc.request("eth_getCode", [item.address, "latest"]) for item in contracts.values())
        )
        for (name, item), code in zip(contracts.items(), codes, strict=True):
            if code in ("0x", "0x0", None):
                raise ChainError(
                    "no-contract",
                    f"There is no {name} at {item.address} on chain {self.chain_id}.",
                    "Deploy with `efedllm deploy`, or pass the right --deployment file.",
                )
            if item.abi_sha256 != artifact(name).abi_sha256:
                raise ChainError(
                    "abi-mismatch",
                    f"The deployed {name} is of another version than this program.",
                    "Use the program version that deployed it, or deploy again.",
                )

    async def close(self) -> None:
        """Save the events that were read and close the connections."""
        try:
            await asyncio.to_thread(self.histories.save)
        except OSError as error:
            # The next process reads them again.
            get_logger("chain").warning("events not kept", reason=str(error))
        finally:
            await self.rpc.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def chain_id(self) -> int:
        """EIP-155 id."""
        return self.deployment.chain_id

    def address(self, name: str) -> str:
        """Checksum address of a contract."""
        return self.transport.address(name)

    @property
    def account_address(self) -> str:
        """Checksum address of the account that sends. Raises ChainError "no-account" for a read-only connection."""
        if self.account is None:
            raise ChainError("no-account", "This needs an account.", "Pass --keystore and --password-file.")
        return str(self.account.address)

    @property
    def efl_domain(self) -> Domain:
        """EIP-712 domain "EFL" of jobs, commits and envelopes (verifying contract: CommitmentLog)."""
        from efedllm.commitments.messages import Domain

        return Domain(self.chain_id, self.address("CommitmentLog"))

    @property
    def escrow_domain(self) -> tuple[int, str]:
        """(chain id, SessionEscrow): what session ids and vouchers are bound to."""
        return self.chain_id, self.address("SessionEscrow")

    async def call(self, contract: str, fn: str, *args: Any, block: BlockTag = "latest") -> Any:
        """Result of a view by names; see Transport.call. Prefer the typed `contracts`."""
        return await self.transport.call(contract, fn, *args, block=block)

    async def send(self, contract: str, fn: str, *args: Any) -> TxResult:
        """Send a transaction by names; see Transport.send. Prefer the typed `contracts`."""
        return await self.transport.send(contract, fn, *args)

    async def events(self, contract: str, *names: str) -> list[ChainEvent]:
        """Events since the deployment, read from the chain each time. `history` is the cheaper call."""
        return await self.transport.events(contract, *names)

    async def transfer_eth(self, to: str, value: int) -> TxResult:
        """Send ETH (wei), e.g. to fund gas."""
        return await self.transport.transfer_eth(to, value)

    async def ensure_allowance(self, spender_contract: str, amount: int) -> TxResult | None:
        """Let a contract take `amount` wei of EFED from this account, unless its allowance suffices already."""
        token, spender = self.contracts.efed_token, self.address(spender_contract)
        if await token.allowance(self.account_address, spender) >= amount:
            return None
        return await token.approve(spender, amount)

    async def block_number(self) -> int:
        """Number of the latest block."""
        return await self.transport.block_number()

    async def now(self) -> ChainTime:
        """Time of the latest block. Protocol decisions use this clock, never the machine's."""
        return await self.transport.now()
