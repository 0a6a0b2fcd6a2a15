"""Calls, transactions and events of the contracts of one network over one RPC server, by the names in their ABIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eth_utils.address import to_checksum_address

from efedllm.chain.artifacts import artifact
from efedllm.chain.calls import BlockTag
from efedllm.chain.codec import Codec
from efedllm.chain.connection import Rpc, RpcError
from efedllm.chain.deployment import Deployment
from efedllm.chain.reverts import decode_revert
from efedllm.chain.sender import Receipt, Sender
from efedllm.chain.types import ChainEvent, ChainTime, TxResult, chain_time
from efedllm.errors import ChainError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

# eth_getLogs is refused by many servers beyond some ten thousand blocks.
LOG_CHUNK = 5000


class Transport:
    """Encodes calls and transactions, decodes results and logs. `account` and `sender` are None for reading only."""

    def __init__(self, rpc: Rpc, deployment: Deployment, account: LocalAccount | None, sender: Sender | None) -> None:
        self.rpc = rpc
        self.deployment = deployment
        self.account = account
        self._sender = sender
        self._codecs = {name: Codec(name, artifact(name).abi) for name in deployment.contracts}
        self._names = {to_checksum_address(item.address): name for name, item in deployment.contracts.items()}

    def address(self, name: str) -> str:
        """Checksum address of a contract."""
        return to_checksum_address(self.deployment.address(name))

    def _codec(self, contract: str) -> Codec:
        try:
            return self._codecs[contract]
        except KeyError as error:
            raise ChainError("no-contract", f"The deployment has no contract {contract}.") from error

    async def call(self, contract: str, fn: str, *args: Any, block: BlockTag = "latest") -> Any:
        """Result of a view: one value, a list of several, None for none; structs as named tuples with the ABI's names.

        Struct arguments are dataclasses, mappings or tuples. Raises RevertError or ChainError.
        """
        codec = self._codec(contract)
        data = codec.encode_call(fn, args)
        request = {"to": self.address(contract), "data": "0x" + data.hex()}
        if self.account is not None:
            request["from"] = str(self.account.address)
        tag = hex(block) if isinstance(block, int) else block
        try:
            answer = await self.rpc.request("eth_call", [request, tag])
        except RpcError as error:
            if not error.is_revert:
                raise
            raise decode_revert(error.data or b"", f"{contract}.{fn}") from error
        return codec.decode_result(fn, len(args), bytes.fromhex(answer[2:]))

    async def send(self, contract: str, fn: str, *args: Any) -> TxResult:
        """Send a transaction and wait until it is mined. Raises RevertError (nothing paid) or ChainError.

        After "rpc-down" or "tx-timeout" the same call may be repeated: see Sender.transact.
        """
        data = self._codec(contract).encode_call(fn, args)
        receipt = await self._sending().transact(self.address(contract), data, 0, f"{contract}.{fn}")
        return self._result(receipt)

    async def transfer_eth(self, to: str, value: int) -> TxResult:
        """Send ETH (wei), e.g. to fund gas."""
        return self._result(await self._sending().transact(to_checksum_address(to), b"", value, "ETH transfer"))

    def _sending(self) -> Sender:
        if self._sender is None:
            raise ChainError("no-account", "Sending needs an account.", "Pass --keystore and --password-file.")
        return self._sender

    def _result(self, receipt: Receipt) -> TxResult:
        return TxResult(
            hash=receipt["transactionHash"],
            gas_used=int(receipt["gasUsed"], 16),
            block=int(receipt["blockNumber"], 16),
            status=int(receipt["status"], 16),
            events=self.decode_logs(receipt["logs"]),
        )

    def decode_logs(self, logs: list[dict[str, Any]]) -> list[ChainEvent]:
        """The events of this network's contracts among raw logs, in order. Other logs are left out."""
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

        The default range is from the deployment to the latest block. `indexed` selects by the first indexed arguments
        (32 bytes each) of the named events.
        """
        codec = self._codec(contract)
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
        """Time of the latest block. Protocol decisions use this clock, never the machine's."""
        block = await self.rpc.request("eth_getBlockByNumber", ["latest", False])
        return chain_time(
            int(block["number"], 16),
            int(block["timestamp"], 16),
            self.deployment.genesis,
            self.deployment.epoch_length,
        )
