"""The key/value cache of one sequence over the layers of one engine."""

from __future__ import annotations

import torch
from torch import Tensor

from efedllm.errors import ModelError

_BLOCK = 64


class KVCache:
    """Keys and values, float32 [layers, kv heads, capacity, head dim] each; grows by doubling, in blocks of 64
    positions.

    Layers append to it during a step; the new positions count only after `commit`, so a step that fails half-way
    leaves the sequence as it was.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int) -> None:
        self._keys = torch.empty(layers, kv_heads, 0, head_dim, dtype=torch.float32)
        self._values = torch.empty(layers, kv_heads, 0, head_dim, dtype=torch.float32)
        self._length = 0

    @property
    def length(self) -> int:
        """Committed positions."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Allocated bytes."""
        return self._keys.nbytes + self._values.nbytes

    def reserve(self, count: int) -> None:
        """Make room for `count` more positions."""
        needed = self._length + count
        capacity = self._keys.shape[2]
        if needed <= capacity:
            return
        capacity = -(-max(needed, 2 * capacity) // _BLOCK) * _BLOCK
        self._keys = self._grown(self._keys, capacity)
        self._values = self._grown(self._values, capacity)

    def _grown(self, old: Tensor, capacity: int) -> Tensor:
        layers, heads, _, dim = old.shape
        new = torch.empty(layers, heads, capacity, dim, dtype=torch.float32)
        new[:, :, : self._length] = old[:, :, : self._length]
        return new

    def append(self, slot: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write key, value [kv heads, n, d] after the committed positions of layer `slot`; returns all [kv heads,
        length + n, d].

        `reserve` must have made room.
        """
        end = self._length + key.shape[1]
        self._keys[slot, :, self._length : end] = key
        self._values[slot, :, self._length : end] = value
        return self._keys[slot, :, :end], self._values[slot, :, :end]

    def commit(self, count: int) -> None:
        """Count the `count` positions every layer has appended."""
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
