"""Linear maps of the exact profile, as published: int8 rows, packed rows, int8 factors, or packed rows with factors.

Maps that read the same input share its quantisation and, by kind of matrix, one product; that changes no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.engine.exact.arithmetic import quantize
from efedllm.engine.exact.packed import PackedIntMatrix
from efedllm.engine.exact.products import IntMatrix, Kernel, check_columns, native_library
from efedllm.engine.tiled import scales_of, tiled_linear, values_of
from efedllm.kernels.matrix import Scratch, TiledLinears, TiledMatrix
from efedllm.models.linear import PublishedLinear, PublishedMatrix


class _Rows:
    """y = (integer sum * token scale) * row scale in float64, for matrices of one kind below each other."""

    def __init__(self, matrices: Sequence[PublishedMatrix], kernel: Kernel, device: str) -> None:
        if matrices[0].multipliers is not None:
            self._matrix: IntMatrix | PackedIntMatrix = PackedIntMatrix(matrices, kernel, device)
        else:
            values = [values_of(m) for m in matrices]
            self._matrix = IntMatrix(values[0] if len(values) == 1 else torch.cat(values), kernel, device)
        scales = [torch.ones(m.rows) if (own := scales_of(m)) is None else own for m in matrices]
        self._scales = torch.cat(scales).to(device).double()

    def __call__(self, q: Tensor, scale: Tensor) -> Tensor:
        return self._matrix.times(q).mul_(scale).mul_(self._scales)

    @property
    def held(self) -> list[Tensor]:
        return [self._matrix.held, self._scales]


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
        self, published: Sequence[PublishedLinear], kernel: Kernel, scratch: Scratch | None = None, device: str = "cpu"
    ) -> None:
        """`scratch`: memory to share with the other maps of an engine. `device`: where what is held lies, the CPU for
        the native kernel."""
        self._native = _native_linears(published, scratch) if kernel is Kernel.NATIVE else None
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
            return [t for one in self._native.maps for t in one.held]
        assert self._torch is not None
        return self._torch.held


def _native_linears(published: Sequence[PublishedLinear], scratch: Scratch | None) -> TiledLinears:
    """One native call for all maps, with as many threads as torch has in this thread."""
    for linear in published:
        for matrix in linear.matrices:
            check_columns(matrix.columns)
    native, shared = native_library(), dict[int, TiledMatrix]()
    maps = [tiled_linear(native, linear, shared) for linear in published]
    return TiledLinears(native, maps, scratch=scratch, threads=torch.get_num_threads())


class _TorchLinears:
    def __init__(self, published: Sequence[PublishedLinear], kernel: Kernel, device: str) -> None:
        int8: list[PublishedMatrix] = []
        packed: list[PublishedMatrix] = []
        places: dict[int, slice] = {}

        def place(matrix: PublishedMatrix) -> slice:
            # A v that several maps share is multiplied once.
            if matrix.address not in places:
                same = int8 if matrix.multipliers is None else packed
                start = sum(m.rows for m in same)
                same.append(matrix)
                places[matrix.address] = slice(start, start + matrix.rows)
            return places[matrix.address]

        maps: list[_Map] = []
        for p in published:
            base, v = (None if m is None else place(m) for m in (p.base, p.v))
            u = None if p.u is None else _Rows([p.u], kernel, device)
            maps.append(_Map(p.base is not None and p.base.multipliers is not None, base, v, u))
        self._int8 = _Rows(int8, kernel, device) if int8 else None
        self._packed = _Rows(packed, kernel, device) if packed else None
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


def _side_by_side(published: Sequence[PublishedLinear]) -> Tensor | None:
    """Biases float64 [sum of outs], zeros where a map has none; None without any."""
    if all(p.bias is None for p in published):
        return None
    parts = [torch.zeros(p.rows) if p.bias is None else torch.from_numpy(p.bias) for p in published]
    return torch.cat(parts).double()
