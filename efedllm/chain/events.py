"""Following the chain's events: every event once in order, from a stored cursor, across outages and restarts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from efedllm.chain.connection import LOCAL_CHAIN_IDS
from efedllm.chain.deployment import write_json
from efedllm.chain.types import ChainEvent
from efedllm.errors import ChainError

if TYPE_CHECKING:
    from efedllm.chain.client import Chain


class CursorStore(Protocol):
    """Remembers the next block to read."""

    def load(self) -> int | None:
        """The next block, None at first."""
        ...

    def save(self, block: int) -> None:
        """Everything before `block` has been handled."""
        ...


class MemoryCursor:
    """A cursor that lasts as long as the process."""

    def __init__(self, block: int | None = None) -> None:
        self._block = block

    def load(self) -> int | None:
        """The next block, None at first."""
        return self._block

    def save(self, block: int) -> None:
        """Everything before `block` has been handled."""
        self._block = block


class FileCursor:
    """A cursor in a small JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> int | None:
        """The next block; None when there is no readable file."""
        try:
            return int(json.loads(self._path.read_text())["next_block"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, block: int) -> None:
        """Everything before `block` has been handled."""
        write_json(self._path, {"next_block": block})


class EventFollower:
    """Async iterator over events of several contracts in chain order.

    `wanted` maps a contract to the event names of interest (none: all). The cursor moves past a chunk only after the
    consumer asked for the event after its last one, so a crash repeats events but never skips one. `confirmations`:
    blocks an event must be deep before it is reported; 0 reports at once, and is right for chains that do not
    reorganise. An RPC outage longer than the connection's budget is waited out and does not end the iteration;
    other ChainErrors do.
    """

    def __init__(
        self,
        chain: Chain,
        wanted: Mapping[str, tuple[str, ...]],
        *,
        from_block: int | None = None,
        cursor_store: CursorStore | None = None,
        confirmations: int = 0,
        chunk: int = 2000,
        poll: float | None = None,
    ) -> None:
        self._chain = chain
        self._wanted = wanted
        self._cursor = cursor_store or MemoryCursor()
        stored = self._cursor.load()
        first = chain.deployment.block if from_block is None else from_block
        self._next = first if stored is None else stored
        self._confirmations = confirmations
        self._chunk = chunk
        self._poll = poll if poll is not None else (0.2 if chain.chain_id in LOCAL_CHAIN_IDS else 3.0)

    @property
    def next_block(self) -> int:
        """First block that has not been read yet."""
        return self._next

    async def __aiter__(self) -> AsyncIterator[ChainEvent]:
        while True:
            events = await self.poll()
            if events is None:
                await asyncio.sleep(self._poll)
                continue
            for event in events:
                yield event
            self._cursor.save(self._next)

    async def poll(self) -> list[ChainEvent] | None:
        """The next chunk's events, None when there is no new block or the chain is unreachable for now."""
        try:
            head = await self._chain.block_number() - self._confirmations
            if head < self._next:
                return None
            end = min(head, self._next + self._chunk - 1)
            found: list[ChainEvent] = []
            for contract, names in self._wanted.items():
                found.extend(await self._chain.events(contract, *names, from_block=self._next, to_block=end))
        except ChainError as error:
            if error.code != "rpc-down":
                raise
            return None
        self._next = end + 1
        return sorted(found, key=lambda event: (event.block, event.log_index))
