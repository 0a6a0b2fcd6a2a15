"""Linear maps of the exact profile, as published: int8 rows, packed rows, int8 factors, or packed rows with factors.

Maps that read the same input share its quantisation and, by kind of matrix, one product; that changes no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.engine.exact.arithmetic import quantize
from efedllm.engine.exact.native_linears import held, native_linears
from efedllm.engine.exact.packed import PackedIntMatrix, PackedRows
from efedllm.engine.exact.products import IntMatrix, Kernel
from efedllm.engine.exact.records import Factors, Int8Rows, Published
from efedllm.kernels.matrix import Scratch

__all__ = ["Factors", "Int8Rows", "Linears", "Published"]


class _Rows:
    """y = (integer sum * token scale) * row scale in float64, for matrices of one kind below each other."""

    def __init__(self, matrix: IntMatrix | PackedIntMatrix, scales: Sequence[Tensor], device: str) -> None:
        self._matrix = matrix
        self._scales = torch.cat(list(scales)).to(device).double()

    def __call__(self, q: Tensor, scale: Tensor) -> Tensor:
        return self._matrix.times(q).mul_(scale).mul_(self._scales)

    @property
    def held(self) -> list[Tensor]:
        return [self._matrix.held, self._scales]


def _int8_rows(matrices: Sequence[Int8Rows], kernel: Kernel, device: str) -> _Rows | None:
    if not matrices:
        return None
    values = [m.values for m in matrices]
    matrix = IntMatrix(values[0] if len(values) == 1 else torch.cat(values), kernel, device)
    return _Rows(matrix, [m.scales for m in matrices], device)


def _packed_rows(matrices: Sequence[PackedRows], kernel: Kernel, device: str) -> _Rows | None:
    if not matrices:
        return None
    return _Rows(PackedIntMatrix(matrices, kernel, device), [m.scales for m in matrices], device)


@dataclass(frozen=True, eq=False)
class _Map:
    """Where the rows of one map are: of its matrix in the product of its kind, and of its v among the int8 rows."""

    packed: bool
    base: slice | None
    v: slice | None
    u: _Rows | None


class Linears:
    """Linear maps of one input; their outputs lie side by side."""

    def __init__(
        self, published: Sequence[Published], kernel: Kernel, scratch: Scratch | None = None, device: str = "cpu"
    ) -> None:
        """`scratch`: memory to share with the other maps of an engine. `device`: where what is held lies, the CPU for
        the native kernel."""
        self._native = native_linears(published, scratch) if kernel is Kernel.NATIVE else None
        self._torch = _TorchLinears(published, kernel, device) if self._native is None else None

    def __call__(self, x: Tensor) -> Tensor:
        """x float64 [n, in] -> float64 [n, sum of outs]. x is rounded to int16 once, per token."""
        if self._native is not None:
            return self._native.exact(x)
        assert self._torch is not None
        return self._torch(x)

    @property
    def held(self) -> list[Tensor]:
        """Every tensor kept in memory."""
        if self._native is not None:
            return held(self._native)
        assert self._torch is not None
        return self._torch.held


class _TorchLinears:
    def __init__(self, published: Sequence[Published], kernel: Kernel, device: str) -> None:
        int8: list[Int8Rows] = []
        packed: list[PackedRows] = []
        places: dict[int, slice] = {}

        def place(matrix: Int8Rows) -> slice:
            # A v that several maps share is multiplied once.
            key = matrix.values.data_ptr()
            if key not in places:
                start = sum(m.rows for m in int8)
                int8.append(matrix)
                places[key] = slice(start, start + matrix.rows)
            return places[key]

        maps: list[_Map] = []
        for p in published:
            base = v = u = None
            if isinstance(p.base, PackedRows):
                start = sum(m.rows for m in packed)
                packed.append(p.base)
                base = slice(start, start + p.base.rows)
            elif p.base is not None:
                base = place(p.base)
            if p.factors is not None:
                v, u = place(p.factors.v), _int8_rows([p.factors.u], kernel, device)
            maps.append(_Map(isinstance(p.base, PackedRows), base, v, u))
        self._int8 = _int8_rows(int8, kernel, device)
        self._packed = _packed_rows(packed, kernel, device)
        # Only one product, whose rows are the outputs in their order.
        self._direct = all(m.u is None for m in maps) and (self._int8 is None or self._packed is None)
        self._maps = maps
        bias = _side_by_side(published)
        self._bias = None if bias is None else bias.to(device)

    def __call__(self, x: Tensor) -> Tensor:
        q, scale = quantize(x)
        int8 = None if self._int8 is None else self._int8(q, scale)
        packed = None if self._packed is None else self._packed(q, scale)
        if self._direct:
            y = int8 if int8 is not None else packed
            assert y is not None
        else:
            y = self._assembled(int8, packed)
        return y if self._bias is None else y.add_(self._bias)

    def _assembled(self, int8: Tensor | None, packed: Tensor | None) -> Tensor:
        inner: dict[int, tuple[Tensor, Tensor]] = {}
        outputs: list[Tensor] = []
        for m in self._maps:
            rows = packed if m.packed else int8
            y = None if m.base is None or rows is None else rows[:, m.base]
            if m.v is not None and m.u is not None and int8 is not None:
                if m.v.start not in inner:
                    inner[m.v.start] = quantize(int8[:, m.v])
                low = m.u(*inner[m.v.start])
                y = low if y is None else y + low
            assert y is not None
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    @property
    def held(self) -> list[Tensor]:
        rows = [self._int8, self._packed, *(m.u for m in self._maps)]
        held = [t for r in rows if r is not None for t in r.held]
        return held if self._bias is None else [*held, self._bias]


def _side_by_side(published: Sequence[Published]) -> Tensor | None:
    """Biases float64 [sum of outs], zeros where a map has none; None without any."""
    if all(p.bias is None for p in published):
        return None
    parts = [torch.zeros(p.rows) if p.bias is None else p.bias for p in published]
    return torch.cat(parts).double()
