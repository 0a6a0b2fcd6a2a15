"""How many positions of a sequence a cache holds, and how it grows. The same for float and exact caches."""

from __future__ import annotations

from efedllm.errors import ModelError

_BLOCK = 64


class CachedPositions:
    """Positions that layers have appended count only after `commit`, so that a step that fails half-way leaves the
    sequence as it was.
    """

    def __init__(self) -> None:
        self._length = 0

    @property
    def length(self) -> int:
        """Committed positions."""
        return self._length

    def commit(self, count: int) -> None:
        """Count the `count` positions that every layer has appended."""
        self._length += count

    def truncate(self, length: int) -> None:
        """Keep the first `length` positions. Raises ModelError "bad-position" unless 0 <= length <= self.length."""
        if not 0 <= length <= self._length:
            raise ModelError(
                "bad-position",
                f"Cannot go back to position {length} of a sequence of {self._length}.",
                "Replay the sequence from its beginning.",
            )
        self._length = length

    def _grown_capacity(self, count: int, capacity: int) -> int:
        """Positions to make room for, so that `count` more fit: `capacity`, or at least twice that in blocks of 64."""
        needed = self._length + count
        return capacity if needed <= capacity else -(-max(needed, 2 * capacity) // _BLOCK) * _BLOCK
