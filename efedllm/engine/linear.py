"""Linear modules as published: dense, two factors that are never multiplied out, or an integer base with factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from efedllm.kernels.matrix import Scratch, TiledLinear, TiledLinears, TiledMatrix
from efedllm.kernels.native import Library

FEW_TOKENS = 64
"""Up to so many tokens the native products are faster than expanding the weights for BLAS (`efedllm bench kernels`)."""

_EXPANDED_BYTES = 2 << 20
"""Weights that are expanded to float32 at a time: what stays in a core's cache until BLAS has read it."""


class Together:
    """What several modules compute of one input: all of it when the first of them is asked, each taking its part.

    An input is known again by identity, and nothing is kept once every part is taken.
    """

    def __init__(self, run: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """`run` gives one part for each module."""
        self._run = run
        self._given: Tensor | None = None
        self._parts: list[Tensor | None] = []

    def take(self, part: int, x: Tensor) -> Tensor:
        """Part number `part` of what belongs to `x`."""
        if self._given is not x or self._parts[part] is None:
            self._given, self._parts = x, list(self._run(x))
        taken, self._parts[part] = self._parts[part], None
        if all(one is None for one in self._parts):
            self._given = None
        assert taken is not None
        return taken


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

    rank * (out + in) multiplications per token instead of out * in. Modules that `share` a v multiply by it once.
    """

    def __init__(self, u: Tensor, v: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.u = nn.Buffer(u)
        self.v = nn.Buffer(v)
        self.bias = None if bias is None else nn.Buffer(bias)
        self._place: tuple[Together, int] | None = None

    @staticmethod
    def share(modules: Sequence[LowRankLinear]) -> None:
        """Modules with one v that read the same input."""
        first = modules[0]
        together = Together(lambda x: [linear(x, first.v)] * len(modules))
        for index, module in enumerate(modules):
            module._place = (together, index)

    def forward(self, x: Tensor) -> Tensor:
        if self._place is None:
            return linear(linear(x, self.v), self.u, self.bias)
        together, index = self._place
        return linear(together.take(index, x), self.u, self.bias)


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


class NativeMaps:
    """y = B x + U (V x) + b for maps of one input, over integers as published, without a float32 copy of them.

    A few tokens run on the native products, which convert weights in registers; for more, rows are expanded to float32
    piece by piece and multiplied by BLAS. The two differ by float32 rounding only. A v that several share is multiplied
    once.
    """

    def __init__(self, library: Library, published: Sequence[TiledLinear], scratch: Scratch) -> None:
        self.published = tuple(published)
        self._scratch = scratch
        self._few = TiledLinears(library, published, scratch=scratch, threads=torch.get_num_threads())

    def __call__(self, x: Tensor) -> list[Tensor]:
        """x float32 [..., in] -> [..., out] of every map."""
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) > FEW_TOKENS:
            outputs = self._many(flat)
        else:
            y = self._few.floats(flat)
            outputs = [y] if len(self.published) == 1 else list(torch.split(y, self._few.sizes, dim=1))
        return [y.view(*x.shape[:-1], y.shape[1]) for y in outputs]

    def _many(self, x: Tensor) -> list[Tensor]:
        inner: dict[int, Tensor] = {}
        outputs = []
        for one in self.published:
            y = None if one.base is None else self._product(one.base, x)
            if one.v is not None and one.u is not None:
                key = one.v.tiles.data_ptr()
                if key not in inner:
                    inner[key] = self._product(one.v, x)
                low = self._product(one.u, inner[key])
                y = low if y is None else y.add_(low)
            assert y is not None
            outputs.append(y if one.bias is None else y.add_(one.bias))
        return outputs

    def _product(self, matrix: TiledMatrix, x: Tensor) -> Tensor:
        y = torch.empty(len(x), matrix.rows)
        step = max(1, _EXPANDED_BYTES // (64 * matrix.columns))
        for first in range(0, matrix.panels, step):
            part = matrix.expand(first, min(first + step, matrix.panels), self._few.variant, self._scratch)
            y[:, 16 * first : 16 * first + len(part)] = x @ part.t()
        return y


class NativeLinear(nn.Module):
    """One of the maps that read the same input; one native call computes all of them."""

    def __init__(self, library: Library, published: TiledLinear, scratch: Scratch) -> None:
        super().__init__()
        self._library, self._published, self._scratch = library, published, scratch
        self._place = (Together(NativeMaps(library, [published], scratch)), 0)
        # For their bytes; the addresses that the native code knows are those of these tensors.
        for index, tensor in enumerate(published.held):
            self.register_buffer(f"held{index}", tensor)

    @staticmethod
    def join(modules: Sequence[NativeLinear]) -> None:
        """Modules of one engine that read the same input."""
        first = modules[0]
        together = Together(NativeMaps(first._library, [m._published for m in modules], first._scratch))
        for index, module in enumerate(modules):
            module._place = (together, index)

    def forward(self, x: Tensor) -> Tensor:
        together, index = self._place
        return together.take(index, x)
