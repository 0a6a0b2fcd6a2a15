"""`Chain`: the one object through which every role talks to the contracts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from efedllm.chain.artifacts import artifact
from efedllm.chain.calls import BlockTag
from efedllm.chain.codec import Codec
from efedllm.chain.connection import Rpc, RpcError
from efedllm.chain.contracts import Contracts
from efedllm.chain.deployment import Deployment
from efedllm.chain.eventfile import EventFile
from efedllm.chain.readers import LOG_CHUNK, Readers
from efedllm.chain.reverts import decode_revert
from efedllm.chain.sender import Receipt, Sender
from efedllm.chain.types import ChainEvent, ChainTime, TxResult, chain_time
from efedllm.errors import ChainError
from efedllm.logs import get_logger

if TYPE_CHECKING:
    from efedllm.commitments.messages import Domain


class Chain(Readers):
    """Calls, transactions, events and typed readers on one deployed network. Make one with `Chain.connect`."""

    def __init__(
        self,
        rpc: Rpc,
        deployment: Deployment,
        sender: Sender | None,
        account: LocalAccount | None,
        histories: Path | None = None,
    ) -> None:
        super().__init__()
        self._histories = histories
        self.rpc = rpc
        self.deployment = deployment
        self.account = account
        self.contracts = Contracts(self)
        self._sender = sender
        self._codecs = {name: Codec(name, artifact(name).abi) for name in deployment.contracts}
        self._names = {to_checksum_address(item.address): name for name, item in deployment.contracts.items()}

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

        `budget`: seconds that an outage of the RPC server is waited out, for every later request too. `journal`: file
        in which unfinished transactions survive a restart; `histories`: folder in which the events that were read are
        kept for the next process. Raises ChainError "rpc-down", "wrong-chain", "no-contract" or "abi-mismatch".
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
            chain = cls(rpc, deployment, sender, account, histories)
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
        """Keep the events that were read, close the connections."""
        try:
            await asyncio.to_thread(self.save_histories)
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
        return to_checksum_address(self.deployment.address(name))

    @property
    def account_address(self) -> str:
        """Checksum address that sends. Raises ChainError "no-account" for a read-only connection."""
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

    def codec(self, contract: str) -> Codec:
        """ABI codec of a deployed contract. Raises ChainError "no-contract" for an unknown name."""
        try:
            return self._codecs[contract]
        except KeyError as error:
            raise ChainError("no-contract", f"The deployment has no contract {contract}.") from error

    def event_file(self, contract: str) -> EventFile | None:
        """Where a contract's events are kept; None when they are not."""
        if self._histories is None:
            return None
        item = self.deployment.contracts[contract]
        identity = {"chain_id": self.chain_id, "first_block": self.deployment.block, "abi_sha256": item.abi_sha256}
        address = self.address(contract)
        return EventFile(self._histories / f"{self.chain_id}-{address}.json", contract, address, identity)

    async def call(self, contract: str, fn: str, *args: Any, block: BlockTag = "latest") -> Any:
        """Result of a view: one value, a list of several, structs as named tuples with Solidity's field names.

        Struct arguments may be dataclasses, mappings or tuples. Raises RevertError or ChainError.
        """
        codec = self.codec(contract)
        data = codec.encode_call(fn, args)
        request = {"to": self.address(contract), "data": "0x" + data.hex()}
        if self.account is not None:
            request["from"] = self.account_address
        tag = hex(block) if isinstance(block, int) else block
        try:
            answer = await self.rpc.request("eth_call", [request, tag])
        except RpcError as error:
            if not error.is_revert:
                raise
            raise decode_revert(error.data or b"", f"{contract}.{fn}") from error
        return codec.decode_result(fn, len(args), bytes.fromhex(answer[2:]))

    async def send(self, contract: str, fn: str, *args: Any, value: int = 0) -> TxResult:
        """Send a transaction and wait until it is mined. Raises RevertError (nothing paid) or ChainError.

        After "rpc-down" or "tx-timeout" the same call may simply be made again: see Sender.transact.
        """
        data = self.codec(contract).encode_call(fn, args)
        receipt = await self._sending().transact(self.address(contract), data, value, f"{contract}.{fn}")
        return self._result(receipt)

    async def transfer_eth(self, to: str, value: int) -> TxResult:
        """Send ETH (wei), e.g. to fund gas."""
        return self._result(await self._sending().transact(to_checksum_address(to), b"", value, "ETH transfer"))

    async def ensure_allowance(self, spender_contract: str, amount: int) -> TxResult | None:
        """Let a contract take `amount` wei of EFED from this account, unless it may already."""
        spender = self.address(spender_contract)
        if await self.call("EfedToken", "allowance", self.account_address, spender) >= amount:
            return None
        return await self.send("EfedToken", "approve", spender, amount)

    def _sending(self) -> Sender:
        if self._sender is None:
            raise ChainError("no-account", "Sending needs an account.", "Pass --keystore and --password-file.")
        return self._sender

    def _result(self, receipt: Receipt) -> TxResult:
        created = receipt.get("contractAddress")
        return TxResult(
            hash=receipt["transactionHash"],
            gas_used=int(receipt["gasUsed"], 16),
            block=int(receipt["blockNumber"], 16),
            status=int(receipt["status"], 16),
            events=self.decode_logs(receipt["logs"]),
            contract_address=to_checksum_address(created) if created else None,
        )

    def decode_logs(self, logs: list[dict[str, Any]]) -> list[ChainEvent]:
        """Our contracts' events among raw logs, in order; logs of other contracts are left out."""
        events = []
        for log in logs:
            address = to_checksum_address(log["address"])
            name = self._names.get(address)
            if name is None:
                continue
            decoded = self._codecs[name].decode_log(
                [bytes.fromhex(topic[2:]) for topic in log["topics"]], bytes.fromhex(log["data"][2:])
            )
            if decoded is not None:
                events.append(
                    ChainEvent(
                        contract=name,
                        name=decoded[0],
                        args=decoded[1],
                        address=address,
                        block=int(log["blockNumber"], 16),
                        tx_hash=log["transactionHash"],
                        log_index=int(log["logIndex"], 16),
                    )
                )
        return events

    async def block_number(self) -> int:
        """Number of the latest block."""
        return await self.rpc.integer("eth_blockNumber")

    async def block_hash(self, number: int) -> bytes | None:
        """Hash of a block; None when the chain has no block of that number."""
        block = await self.rpc.request("eth_getBlockByNumber", [hex(number), False])
        return None if block is None else bytes.fromhex(block["hash"][2:])

    async def events(
        self,
        contract: str,
        *names: str,
        from_block: int | None = None,
        to_block: int | None = None,
        indexed: Sequence[bytes] = (),
    ) -> list[ChainEvent]:
        """Events of a contract (all, or those called `names`) in a block range, both ends included.

        By default from the deployment to the latest block. indexed: first indexed values (32 bytes) of the named ones.
        """
        codec = self.codec(contract)
        start = self.deployment.block if from_block is None else from_block
        end = await self.block_number() if to_block is None else to_block
        request: dict[str, Any] = {"address": self.address(contract)}
        if names:
            topics = [["0x" + codec.topic(name).hex() for name in names]]
            request["topics"] = topics + [["0x" + value.hex()] for value in indexed]
        found: list[ChainEvent] = []
        while start <= end:
            stop = min(end, start + LOG_CHUNK - 1)
            logs = await self.rpc.request("eth_getLogs", [{**request, "fromBlock": hex(start), "toBlock": hex(stop)}])
            found.extend(self.decode_logs(logs))
            start = stop + 1
        return found

    async def now(self) -> ChainTime:
        """Time by the latest block. All duties follow this clock, never the machine's."""
        block = await self.rpc.request("eth_getBlockByNumber", ["latest", False])
        return chain_time(
            int(block["number"], 16),
            int(block["timestamp"], 16),
            self.deployment.genesis,
            self.deployment.epoch_length,
        )
