"""Events of one contract kept in memory and brought up to date by reading only the blocks that are new."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from efedllm.chain.eventfile import Snapshot
from efedllm.chain.types import ChainEvent

# Blocks that are read again each time: a server may know the newest blocks and miss their latest logs.
LOG_MARGIN = 8
# Heads remembered to find where a reorganised or rolled-back chain left the one that was read; else all is read again.
_ANCHORS = 32

Fetch = Callable[[int, int], Awaitable[list[ChainEvent]]]
Head = Callable[[], Awaitable[int]]
BlockHash = Callable[[int], Awaitable[bytes | None]]


class EventIndex:
    """All events between `first_block` and the head, in chain order.

    block_hash: hash of a block by number, None when there is none. What was read of blocks that the chain no longer
    has is dropped and read again; that holds for what was `kept` by an earlier process, too.
    """

    def __init__(
        self, fetch: Fetch, head: Head, block_hash: BlockHash, first_block: int, kept: Snapshot | None = None
    ) -> None:
        kept = kept or Snapshot()
        self._fetch = fetch
        self._head = head
        self._block_hash = block_hash
        self._first = first_block
        self._anchors = list(kept.anchors)
        self._events = list(kept.events)
        self._lock = asyncio.Lock()

    @property
    def snapshot(self) -> Snapshot:
        """What was read so far, to be kept."""
        return Snapshot(tuple(self._anchors), tuple(self._events))

    async def events(self) -> list[ChainEvent]:
        """Every event up to the current head. Do not modify the list."""
        async with self._lock:
            head = await self._head()
            known = await self._known(head)
            start = max(self._first, known + 1 - LOG_MARGIN)
            # The hash before the logs: if the head is replaced in between, the next call reads it again.
            tip = await self._block_hash(head) if head != known else None
            fresh = await self._fetch(start, head)
            self._events = [event for event in self._events if event.block < start] + fresh
            if tip is not None:
                self._anchors = [*self._anchors[1 - _ANCHORS :], (head, tip)]
            return self._events

    async def _known(self, head: int) -> int:
        """The last block read that the chain still has; forgets newer ones."""
        while self._anchors:
            number, seen = self._anchors[-1]
            if number <= head and await self._block_hash(number) == seen:
                return number
            self._anchors.pop()
        return self._first - 1
