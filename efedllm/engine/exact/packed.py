"""Exact integer products with packed matrices: integers of 2 to 6 bits, each group of columns with a multiplier.

a = sum_k q_k * (w_k * m_k) is one sum of integers of at most 2^12 * 2^15 * 2^16 = 2^43, exact in float64 in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efedllm.engine.exact.products import IntMatrix, Kernel, check_columns
from efedllm.models.linear import PublishedMatrix


class PackedIntMatrix:
    """Packed matrices of one input, one below the other, held the way their kernel wants it."""

    def __init__(self, matrices: Sequence[PublishedMatrix], kernel: Kernel, device: str = "cpu") -> None:
        check_columns(matrices[0].columns)
        integers = torch.cat([torch.from_numpy(matrix.integers()) for matrix in matrices])
        self._split = kernel not in (Kernel.FLOAT32, Kernel.FLOAT64)
        if self._split:
            # 256 * high + low, high in -16..16: two int8 rows for each.
            high = (integers + 128) >> 8
            both = torch.cat([high, integers - (high << 8)]).to(torch.int8)
            self._matrix = IntMatrix(both, kernel, device)
            self.held = self._matrix.held
        else:
            # float32 could hold sums of 32 columns only.
            self.held = integers.to(device).double()

    def times(self, q: Tensor) -> Tensor:
        """q float64 [n, columns], integers of at most Q_MAX -> the exact integers a, float64 [n, rows]."""
        if not self._split:
            return q @ self.held.t()
        high, low = self._matrix.times(q).chunk(2, dim=1)
        return low.add_(high, alpha=256)
