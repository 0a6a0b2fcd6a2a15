"""Linear modules as published: dense, two factors that are never multiplied out, or an integer base with factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from efedllm.kernels.matrix import Scratch, TiledLinear, TiledLinears, TiledMatrix
from efedllm.kernels.native import Library

FEW_TOKENS = 64
"""Up to so many tokens the native products are faster than expanding the weights for BLAS (`efedllm bench kernels`)."""

_EXPANDED_BYTES = 2 << 20
"""Weights that are expanded to float32 at a time: what stays in a core's cache until BLAS has read it."""


class DenseLinear(nn.Module):
    """y = W x + b. weight float32 [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LowRankLinear(nn.Module):
    """y = U (V x) + b with u float32 [out, rank], v [rank, in].

    rank * (out + in) multiplications per token instead of out * in.
    """

    def __init__(self, u: Tensor, v: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.u = nn.Buffer(u)
        self.v = nn.Buffer(v)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.v), self.u, self.bias)


class PackedLinear(nn.Module):
    """y = B x + U (V x) + b with the base B float32 [out, in], u float32 [out, rank], v [rank, in] with its scales.

    The published base has 2 to 6 bits per weight; without the native products it is unpacked to float32 when loaded, so
    that it takes the memory of a dense matrix there. The factors stay factors.
    """

    def __init__(self, base: Tensor, u: Tensor, v: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.base = nn.Buffer(base)
        self.u = nn.Buffer(u)
        self.v = nn.Buffer(v)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.base, self.bias) + linear(linear(x, self.v), self.u)


class Table(nn.Module):
    """Embeddings: `values` of any dtype [rows, hidden], with `scales` float32 [rows] when they are int8."""

    def __init__(self, values: Tensor, scales: Tensor | None = None) -> None:
        super().__init__()
        self.values = nn.Buffer(values)
        self.scales = None if scales is None else nn.Buffer(scales)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [n] -> float32 [n, hidden]."""
        rows = self.values[ids].float()
        return rows if self.scales is None else rows.mul_(self.scales[ids].unsqueeze(1))


class NativeTable(nn.Module):
    """Embeddings that are rows of the native form of a matrix, which the head multiplies by."""

    def __init__(self, matrix: TiledMatrix) -> None:
        super().__init__()
        self._matrix = matrix
        self.tiles = nn.Buffer(matrix.tiles)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [n] -> float32 [n, hidden]."""
        return self._matrix.lookup(ids)


class NativeLinear(nn.Module):
    """y = B x + U (V x) + b over integers as published, without a float32 copy of them.

    A few tokens run on the native products, which convert weights in registers; for more, rows are expanded to float32
    piece by piece and multiplied by BLAS. The two differ by float32 rounding only.
    """

    def __init__(self, library: Library, published: TiledLinear, scratch: Scratch) -> None:
        super().__init__()
        self._map = published
        self._scratch = scratch
        self._few = TiledLinears(library, [published], scratch=scratch, threads=torch.get_num_threads())
        # For their bytes; the addresses that the native code knows are those of these tensors.
        for index, tensor in enumerate(published.held):
            self.register_buffer(f"held{index}", tensor)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = self._few.floats(flat) if len(flat) <= FEW_TOKENS else self._many(flat)
        return y.view(*x.shape[:-1], y.shape[1])

    def _many(self, x: Tensor) -> Tensor:
        published = self._map
        y = None if published.base is None else self._product(published.base, x)
        if published.v is not None and published.u is not None:
            low = self._product(published.u, self._product(published.v, x))
            y = low if y is None else y.add_(low)
        assert y is not None
        return y if published.bias is None else y.add_(published.bias)

    def _product(self, matrix: TiledMatrix, x: Tensor) -> Tensor:
        y = torch.empty(len(x), matrix.rows)
        step = max(1, _EXPANDED_BYTES // (64 * matrix.columns))
        for first in range(0, matrix.panels, step):
            part = matrix.expand(first, min(first + step, matrix.panels), self._few.variant, self._scratch)
            y[:, 16 * first : 16 * first + len(part)] = x @ part.t()
        return y
