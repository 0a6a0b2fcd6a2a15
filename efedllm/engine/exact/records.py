"""Published matrices and linear maps as the exact profile reads them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from efedllm.engine.exact.packed import PackedRows


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """`values` int8 [rows, columns], `scales` float32 [rows]."""

    values: Tensor
    scales: Tensor

    @property
    def rows(self) -> int:
        return self.values.shape[0]


@dataclass(frozen=True, eq=False)
class Factors:
    """u v: v is applied first, its result rounded to int16 per token."""

    u: Int8Rows
    v: Int8Rows


@dataclass(frozen=True, eq=False)
class Published:
    """A published linear: a matrix, factors, or the sum of both; and a bias float32 [out] or None."""

    base: Int8Rows | PackedRows | None
    factors: Factors | None
    bias: Tensor | None

    @property
    def rows(self) -> int:
        if self.base is not None:
            return self.base.rows
        assert self.factors is not None
        return self.factors.u.rows
