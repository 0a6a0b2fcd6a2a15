"""The key/value cache of one sequence in the exact profile: int16 integers and one scale per position and head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from efedllm.engine.positions import CachedPositions


class CachedLayer(NamedTuple):
    """Views of one layer's first positions: keys, values int16 [kv heads, positions, dim], scales float64 without
    dim."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor
    value_scales: Tensor


class ExactCache(CachedPositions):
    """Half the memory of the float cache. Layers write during a step; positions count only after `commit`, so a step
    that fails half-way leaves the sequence as it was.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, device: str = "cpu") -> None:
        super().__init__()
        numbers = (layers, kv_heads, 0, head_dim)
        self._arrays = (
            torch.empty(numbers, dtype=torch.int16, device=device),
            torch.empty(numbers, dtype=torch.int16, device=device),
            torch.empty(numbers[:3], dtype=torch.float64, device=device),
            torch.empty(numbers[:3], dtype=torch.float64, device=device),
        )

    @property
    def nbytes(self) -> int:
        """Allocated bytes."""
        return sum(array.nbytes for array in self._arrays)

    def growth(self, count: int) -> int:
        """Bytes that `reserve(count)` adds at its peak: all arrays are copied before the old ones go."""
        old, new = self._arrays[0].shape[2], self._capacity(count)
        layers, heads, _, dim = self._arrays[0].shape
        per_position = layers * heads * sum(a.itemsize * (dim if a.ndim == 4 else 1) for a in self._arrays)
        return 0 if new == old else new * per_position

    def reserve(self, count: int) -> None:
        """Make room for `count` more positions."""
        capacity = self._capacity(count)
        if capacity == self._arrays[0].shape[2]:
            return
        k, v, ks, vs = (self._grown(old, capacity) for old in self._arrays)
        self._arrays = (k, v, ks, vs)

    def _capacity(self, count: int) -> int:
        """Positions there is room for after `reserve(count)`."""
        return self._grown_capacity(count, self._arrays[0].shape[2])

    def _grown(self, old: Tensor, capacity: int) -> Tensor:
        new = torch.empty((*old.shape[:2], capacity, *old.shape[3:]), dtype=old.dtype, device=old.device)
        new[:, :, : self._length] = old[:, :, : self._length]
        return new

    def append(
        self, slot: int, offset: int, keys: Tensor, values: Tensor, key_scales: Tensor, value_scales: Tensor
    ) -> CachedLayer:
        """Write integers [kv heads, n, dim] and scales [kv heads, n] at `offset` after the committed positions of layer
        `slot`.

        Returns all positions of the layer up to these. `reserve` must have made room; what lies before `offset` must
        have been appended in the same step.
        """
        start = self._length + offset
        end = start + keys.shape[1]
        for array, part in zip(self._arrays, (keys, values, key_scales, value_scales), strict=True):
            array[slot, :, start:end] = part
        return CachedLayer(*(array[slot, :, :end] for array in self._arrays))
