"""Published matrices as the native kernels hold them, and linear maps of them. Tensors in, tensors out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from efedllm.kernels.native import CLinear, CMatrix, Library, Variant

_PANEL = 16
# TOKENS and MANY of products.h: calls of more than _FEW tokens take more memory, until _MANY are computed together.
_FEW, _MANY = 16, 256
_INT8 = 8


class TiledMatrix:
    """value[r, c] = (q[r, c] * mult[r, c // group]) * scale[r], in panels of 16 rows (see products/tiles.c).

    Takes the bytes of its published form, rounded up to whole panels and, per group, to whole tiles.
    """

    def __init__(
        self,
        library: Library,
        rows: Tensor,
        columns: int,
        *,
        bits: int = _INT8,
        group: int | None = None,
        mult: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """rows: int8 [rows, columns], or uint8 [rows, row_bytes] of `bits` bits as `models.packing` lays them out;
        mult int8 [rows, ceil(columns / group)] with its `group`, of 8 bits a multiple of 4 where there are several;
        scale float32 [rows]. Copies what it needs.

        Raises ValueError for other shapes and types.
        """
        count = rows.shape[0]
        width = -(-columns * bits // 8)
        span = group or columns
        groups = -(-columns // span)
        fits = rows.dtype == (torch.int8 if bits == _INT8 else torch.uint8) and rows.shape == (count, width)
        scaled = scale is None or (scale.dtype == torch.float32 and scale.shape == (count,))
        multiplied = mult is None or (mult.dtype == torch.int8 and mult.shape == (count, groups))
        if not (fits and scaled and multiplied and bits in (2, 3, 4, 5, 6, _INT8) and count > 0 and columns > 0):
            raise ValueError(f"no matrix of {bits} bits: {rows.dtype}{list(rows.shape)} for {columns} columns")
        if mult is None and group is not None:
            raise ValueError("a group without multipliers")
        if bits == _INT8 and groups > 1 and span % 4:
            raise ValueError("multipliers of groups that are no whole tiles")
        self.rows, self.columns = count, columns
        self._library = library
        self.scale = None if scale is None else scale.contiguous().clone()
        self.mult = None if mult is None else _panels(mult)
        self.c = CMatrix(None, _address(self.mult), _address(self.scale), count, columns, span, bits)
        self.tiles = torch.empty(library.tile_bytes(ctypes.byref(self.c)), dtype=torch.uint8)
        published = rows.contiguous()
        library.tile(ctypes.byref(self.c), published.data_ptr(), width, self.tiles.data_ptr())
        self.c.tiles = self.tiles.data_ptr()

    @property
    def panels(self) -> int:
        """Panels of 16 rows, the last of which may be short."""
        return -(-self.rows // _PANEL)

    @property
    def held(self) -> list[Tensor]:
        """Every tensor kept in memory."""
        return [t for t in (self.tiles, self.mult, self.scale) if t is not None]

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows `ids` int64 [n] as float32 [n, columns]."""
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.rows:
            raise ValueError(f"row ids must lie in 0..{self.rows - 1}")
        wanted = ids.contiguous()
        out = torch.empty(len(ids), self.columns)
        self._library.rows(ctypes.byref(self.c), wanted.data_ptr(), len(ids), out.data_ptr())
        return out

    def expand(self, first: int, last: int, variant: Variant, scratch: Scratch) -> Tensor:
        """Rows [16 * first, min(16 * last, rows)) as float32, in `scratch`: gone when that is used again."""
        if not 0 <= first < last <= self.panels:
            raise ValueError(f"no panels {first}..{last}")
        rows = min(last * _PANEL, self.rows) - first * _PANEL
        out = scratch.floats(rows * self.columns)
        self._library.expand(ctypes.byref(self.c), first, last, out.data_ptr(), variant)
        return out.view(rows, self.columns)


class Scratch:
    """Memory that is used again and again: touching fresh pages costs more than filling them. For one thread."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.uint8)
        self._at = 0

    def address(self, size: int) -> int:
        """Where `size` bytes of any content are."""
        if len(self._held) < size:
            self._held = torch.empty(size, dtype=torch.uint8)
            self._at = self._held.data_ptr()
        return self._at

    def floats(self, count: int) -> Tensor:
        """float32 [count], of any content."""
        self.address(4 * count)
        return self._held[: 4 * count].view(torch.float32)


def _panels(mult: Tensor) -> Tensor:
    """[rows, groups] -> [panels, groups, 16], filled up with zeros."""
    rows, groups = mult.shape
    panels = -(-rows // _PANEL)
    padded = torch.zeros(panels * _PANEL, groups, dtype=mult.dtype)
    padded[:rows] = mult
    return padded.view(panels, _PANEL, groups).transpose(1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class TiledLinear:
    """y = base x + u (v x) + bias; base or the factors may be absent. bias float32 [out]."""

    base: TiledMatrix | None
    v: TiledMatrix | None
    u: TiledMatrix | None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        first = self.base or self.v
        if first is None or (self.u is None) != (self.v is None):
            raise ValueError("a linear map needs a base or both factors")
        if self.u is not None and self.v is not None and self.u.columns != self.v.rows:
            raise ValueError("the factors do not fit together")
        if self.base and self.v and (self.base.rows, self.base.columns) != (self.rows_of_factors, self.v.columns):
            raise ValueError("base and factors are of different shapes")
        if self.bias is not None and (self.bias.dtype != torch.float32 or self.bias.shape != (self.rows,)):
            raise ValueError("a bias is float32, one per output")

    @property
    def rows(self) -> int:
        return self.base.rows if self.base else self.rows_of_factors

    @property
    def rows_of_factors(self) -> int:
        assert self.u is not None
        return self.u.rows

    @property
    def columns(self) -> int:
        first = self.base or self.v
        assert first is not None
        return first.columns

    @property
    def held(self) -> list[Tensor]:
        """Every tensor kept in memory."""
        matrices = [m for m in (self.base, self.v, self.u) if m is not None]
        return [t for m in matrices for t in m.held] + ([] if self.bias is None else [self.bias])


class TiledLinears:
    """Linear maps of one input in one native call. Not for two threads at once."""

    def __init__(
        self,
        library: Library,
        maps: Sequence[TiledLinear],
        *,
        scratch: Scratch | None = None,
        variant: Variant | None = None,
        threads: int = 1,
    ) -> None:
        """`scratch` may be that of all maps of a thread.

        Raises ValueError when the maps have inputs of different widths or the variant is not this machine's.
        """
        self.columns, self.sizes = maps[0].columns, [m.rows for m in maps]
        self.variant = library.variants[0] if variant is None else variant
        if any(m.columns != self.columns for m in maps) or self.variant not in library.variants:
            raise ValueError("maps of different inputs, or a variant that this machine does not run")
        self.maps = tuple(maps)
        self._library = library
        self._threads = threads
        self._rows = sum(self.sizes)
        self._c = (CLinear * len(maps))(*(_linear(m) for m in maps))
        self._at = ctypes.addressof(self._c)
        self._scratch = scratch or Scratch()
        self._workspaces = tuple(library.workspace(self._at, len(maps), self.columns, n) for n in (_FEW, _MANY))

    def exact(self, x: Tensor) -> Tensor:
        """x float64 [n, columns] -> float64 [n, sum of sizes], the maps' outputs side by side (docs/exact.md).

        A token with NaN or infinity gives NaN. Raises ValueError for other inputs.
        """
        return self._run(x, torch.float64, self._library.exact)

    def floats(self, x: Tensor) -> Tensor:
        """x float32 [n, columns] -> float32 [n, sum of sizes]. Raises ValueError for other inputs."""
        return self._run(x, torch.float32, self._library.floats)

    def point_base_at(self, tiles: Tensor, number: int = 0) -> None:
        """Let the base of map `number` be these tiles, uint8 of as many bytes, which the caller keeps: for measuring
        cold weights. Raises ValueError for another size.
        """
        base = self.maps[number].base
        if base is None or tiles.dtype != torch.uint8 or tiles.shape != base.tiles.shape or not tiles.is_contiguous():
            raise ValueError("not as many tiles")
        self._c[number].base.tiles = tiles.data_ptr()

    def times(self, q: Tensor) -> Tensor:
        """Of the first map's base alone, without scales: q int16 [n, columns], at most 32639 in magnitude -> the exact
        sums, float64 [n, rows]. Raises ValueError for other inputs.
        """
        if q.dtype != torch.int16 or q.ndim != 2 or q.shape[1] != self.columns or self.maps[0].base is None:
            raise ValueError(f"expected int16 [n, {self.columns}] and a base, not {q.dtype}{list(q.shape)}")
        q = q.contiguous()
        y = torch.empty((len(q), self.sizes[0]), dtype=torch.float64)
        if not len(q):
            return y
        self._library.times(
            self._at,
            q.data_ptr(),
            len(q),
            y.data_ptr(),
            self._scratch.address(self._workspaces[len(q) > _FEW]),
            self.variant,
            self._threads,
        )
        return y

    def _run(self, x: Tensor, dtype: torch.dtype, function: object) -> Tensor:
        if x.dtype != dtype or x.ndim != 2 or x.shape[1] != self.columns:
            raise ValueError(f"expected {dtype} [n, {self.columns}], not {x.dtype}{list(x.shape)}")
        x = x.contiguous()
        n = x.shape[0]
        y = x.new_empty((n, self._rows))
        if n == 0:
            return y
        function(  # type: ignore[operator]
            self._at,
            len(self.sizes),
            x.data_ptr(),
            self.columns,
            n,
            y.data_ptr(),
            self._rows,
            self._scratch.address(self._workspaces[n > _FEW and dtype == torch.float64]),
            self.variant,
            self._threads,
        )
        return y


def _linear(m: TiledLinear) -> CLinear:
    empty = CMatrix()
    parts = [empty if matrix is None else matrix.c for matrix in (m.base, m.v, m.u)]
    return CLinear(*parts, _address(m.bias))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
