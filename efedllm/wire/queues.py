"""A queue bounded by frames and by bytes, for both directions of a connection."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """FIFO whose `put` waits for room. One item always fits, however large, so that the byte bound cannot deadlock.

    After `close()` puts are refused, what is queued can still be taken, then `get` returns None.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def bytes(self) -> int:
        """Bytes queued now."""
        return self._bytes

    def _has_room(self, size: int) -> bool:
        return not self._items or (len(self._items) < self._max_items and self._bytes + size <= self._max_bytes)

    async def put(self, item: T, size: int) -> bool:
        """Append `item` once there is room; False when the queue is or becomes closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._has_room(size))
            if self._closed:
                return False
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify_all()
            return True

    async def peek(self) -> T | None:
        """The oldest item, left in place; None once closed and empty."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or bool(self._items))
            return self._items[0][0] if self._items else None

    async def get(self) -> T | None:
        """The oldest item; None once closed and empty."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or bool(self._items))
            if not self._items:
                return None
            item, size = self._items.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return item

    async def close(self, *, discard: bool = False) -> None:
        """Refuse further items; with `discard` drop what is queued."""
        async with self._changed:
            self._closed = True
            if discard:
                self._items.clear()
                self._bytes = 0
            self._changed.notify_all()
