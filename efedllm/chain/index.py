"""Events of one contract kept in memory and brought up to date by reading only the blocks that are new."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from efedllm.chain.types import ChainEvent

# Blocks that are read again each time, so that a short reorganisation cannot leave a stale event behind.
REORG_MARGIN = 8

Fetch = Callable[[int, int], Awaitable[list[ChainEvent]]]
Head = Callable[[], Awaitable[int]]


class EventIndex:
    """All events between `first_block` and the head, in chain order."""

    def __init__(self, fetch: Fetch, head: Head, first_block: int) -> None:
        self._fetch = fetch
        self._head = head
        self._first = first_block
        self._next = first_block
        self._events: list[ChainEvent] = []
        self._lock = asyncio.Lock()

    async def events(self) -> list[ChainEvent]:
        """Every event up to the current head. Do not modify the list."""
        async with self._lock:
            head = await self._head()
            start = max(self._first, min(self._next, head + 1) - REORG_MARGIN)
            fresh = await self._fetch(start, head)
            self._events = [event for event in self._events if event.block < start] + fresh
            self._next = head + 1
            return self._events
