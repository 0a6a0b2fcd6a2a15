"""Linear maps of the exact profile: int8 rows as published, dense or as two factors, several sharing one input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.engine.exact.arithmetic import quantize
from efedllm.engine.exact.products import IntMatrix, Kernel


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """A published matrix: `values` int8 [rows, columns], `scales` float32 [rows]."""

    values: Tensor
    scales: Tensor


@dataclass(frozen=True, eq=False)
class Published:
    """A published linear: one matrix, or v then u of a low-rank one, and a bias [out] or None."""

    matrices: tuple[Int8Rows, ...]
    bias: Tensor | None

    @property
    def rows(self) -> int:
        return self.matrices[-1].values.shape[0]


class _Rows:
    """y = (integer sum * token scale) * row scale, in float64."""

    def __init__(self, matrices: Sequence[Int8Rows], kernel: Kernel) -> None:
        values = [m.values for m in matrices]
        self._matrix = IntMatrix(values[0] if len(values) == 1 else torch.cat(values), kernel)
        self._scales = torch.cat([m.scales for m in matrices]).double()

    def __call__(self, q: Tensor, scale: Tensor) -> Tensor:
        return self._matrix.times(q).mul_(scale).mul_(self._scales)

    @property
    def held(self) -> list[Tensor]:
        return [self._matrix.held, self._scales]


class Linears:
    """Linear maps of one input. Dense ones are multiplied together, which changes no row."""

    def __init__(self, published: Sequence[Published], kernel: Kernel) -> None:
        self._sizes = [p.rows for p in published]
        self._biases = [None if p.bias is None else p.bias.double() for p in published]
        dense = all(len(p.matrices) == 1 for p in published)
        chains = zip(*(p.matrices for p in published), strict=True) if dense else ()
        self._together = [_Rows(matrices, kernel) for matrices in chains]
        self._apart = [] if dense else [[_Rows([m], kernel) for m in p.matrices] for p in published]

    def __call__(self, x: Tensor) -> list[Tensor]:
        """x float64 [n, in] -> float64 [n, out] of each map. x is rounded to int16 once, per token."""
        q, scale = quantize(x)
        if self._together:
            outputs = list(torch.split(self._together[0](q, scale), self._sizes, dim=1))
        else:
            outputs = [_chain(chain, q, scale) for chain in self._apart]
        return [y if bias is None else y + bias for y, bias in zip(outputs, self._biases, strict=True)]

    @property
    def held(self) -> list[Tensor]:
        """Every tensor kept in memory."""
        rows = [*self._together, *(r for chain in self._apart for r in chain)]
        return [t for r in rows for t in r.held] + [b for b in self._biases if b is not None]


def _chain(chain: Sequence[_Rows], q: Tensor, scale: Tensor) -> Tensor:
    y = chain[0](q, scale)
    for rows in chain[1:]:
        y = rows(*quantize(y))
    return y
