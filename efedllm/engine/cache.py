"""The key/value cache of one sequence over the layers of one engine."""

from __future__ import annotations

import torch
from torch import Tensor

from efedllm.engine.positions import CachedPositions


class KVCache(CachedPositions):
    """Keys and values, float32 [layers, kv heads, capacity, head dim] each; grows by doubling, in blocks of 64
    positions.

    Layers append to it during a step; the new positions count only after `commit`, so a step that fails half-way
    leaves the sequence as it was.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, device: str = "cpu") -> None:
        super().__init__()
        self._keys = torch.empty(layers, kv_heads, 0, head_dim, dtype=torch.float32, device=device)
        self._values = torch.empty_like(self._keys)

    @property
    def nbytes(self) -> int:
        """Allocated bytes."""
        return self._keys.nbytes + self._values.nbytes

    def growth(self, count: int) -> int:
        """Bytes that `reserve(count)` adds at its peak: both arrays grow, one after the other."""
        layers, heads, old, dim = self._keys.shape
        new = self._capacity(count)
        return 0 if new == old else (2 * new - old) * layers * heads * dim * self._keys.itemsize

    def reserve(self, count: int) -> None:
        """Make room for `count` more positions."""
        capacity = self._capacity(count)
        if capacity == self._keys.shape[2]:
            return
        self._keys = self._grown(self._keys, capacity)
        self._values = self._grown(self._values, capacity)

    def _capacity(self, count: int) -> int:
        """Positions there is room for after `reserve(count)`."""
        return self._grown_capacity(count, self._keys.shape[2])

    def _grown(self, old: Tensor, capacity: int) -> Tensor:
        layers, heads, _, dim = old.shape
        new = torch.empty(layers, heads, capacity, dim, dtype=torch.float32, device=old.device)
        new[:, :, : self._length] = old[:, :, : self._length]
        return new

    def append(self, slot: int, key: Tensor, value: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Write key, value [kv heads, n, d] at `offset` after the committed positions of layer `slot`; returns all [kv
        heads, length + offset + n, d].

        `reserve` must have made room; what lies before `offset` must have been appended in the same step.
        """
        start = self._length + offset
        end = start + key.shape[1]
        self._keys[slot, :, start:end] = key
        self._values[slot, :, start:end] = value
        return self._keys[slot, :, :end], self._values[slot, :, :end]
