"""What the typed contracts are built on: reads and transactions of a contract by its name."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from efedllm.chain.types import TxResult

BlockTag = int | str
"""A block number, or a tag of the RPC such as "latest"."""


class Calls(Protocol):
    """Reads and transactions of the contracts of one network. `Chain` is the implementation in use."""

    async def call(self, contract: str, fn: str, *args: Any, block: BlockTag = "latest") -> Any:
        """Result of a view: one value, a list of several, None for none. Structs are tuples in ABI order."""
        ...

    async def send(self, contract: str, fn: str, *args: Any) -> TxResult:
        """Send a transaction and wait until it is mined."""
        ...


class Contract:
    """Base of the generated classes. Every method raises RevertError when the contract refuses, else ChainError."""

    NAME: ClassVar[str] = ""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def _read(self, fn: str, *args: Any, block: BlockTag) -> Any:
        return await self._calls.call(self.NAME, fn, *args, block=block)

    async def _send(self, fn: str, *args: Any) -> TxResult:
        return await self._calls.send(self.NAME, fn, *args)
