"""Keeping an engine within its budget while sequences come, grow and go."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from efedllm.engine.memory.layer_streaming import TieredLayers
from efedllm.engine.memory.step_memory import Working

T = TypeVar("T")


class GrowingCache(Protocol):
    """A sequence's cache. The engine makes room before the caches grow, and drops layers for it when it must."""

    @property
    def length(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def growth(self, count: int) -> int:
        """Bytes that room for `count` more positions takes, at its peak."""


class Room(Generic[T]):
    """The layers of an engine with a budget, and the caches that share it. Thread-confined like the engine."""

    def __init__(self, layers: TieredLayers[T], working: Working) -> None:
        self._layers = layers
        self._working = working
        self._caches: weakref.WeakSet[GrowingCache] = weakref.WeakSet()

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return self._layers.nbytes

    def track(self, cache: GrowingCache) -> None:
        """Count `cache` for as long as somebody has it."""
        self._caches.add(cache)

    def for_step(self, caches: Sequence[GrowingCache], counts: Sequence[int]) -> None:
        """Make room for `counts[i]` more positions of `caches[i]`. Raises ModelError "ram-exceeded"."""
        members = list(zip(caches, counts, strict=True))
        grown = sum(cache.growth(count) for cache, count in members)
        longest = max(cache.length + count for cache, count in members)
        working = self._working.step(sum(counts), longest)
        if self._working.shape.hi == self._working.shape.layers:
            # So that the head, which comes next, takes no layer away that the next step would have to prepare again.
            working = max(working, self._working.logits(len(counts)))
        self._layers.make_room(self._cached() + grown + working)

    def for_logits(self, rows: int) -> None:
        """Make room for the head's result over `rows` tokens. Raises ModelError "ram-exceeded"."""
        self._layers.make_room(self._cached() + self._working.logits(rows))

    def each_layer(self, use: Callable[[int, T], None]) -> None:
        """See TieredLayers.run."""
        self._layers.run(use)

    def _cached(self) -> int:
        return sum(cache.nbytes for cache in self._caches)
