"""Exact integer products of int16 activations and int8 weights, by four ways that give the same integers.

Every way computes sum_k q[t, k] * w[r, k] without any rounding, so the order of the additions, the instruction set and
the shape of the batch cannot change a bit. Which way is used is a question of speed only.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache

import torch
from torch import Tensor

from efedllm.errors import ModelError
from efedllm.kernels.matrix import TiledLinear, TiledLinears, TiledMatrix
from efedllm.kernels.native import Library, library

Q_MAX = 32639
"""Largest activation: 127 * 256 + 127, so that q = 256 * hi + lo with hi in -127..127 and lo in -128..127."""

MAX_COLUMNS = 1 << 16
"""Longest row. |hi * w|, |lo * w| <= 2^14, so an int32 holds sums of up to 2^17 - 1 of them."""

_FLOAT32_BLOCK = 1024
"""Columns of one float32 product: 2^14 * 1024 = 2^24, up to which float32 holds every integer."""

# With one column torch._int_mm mistakes the strides of a transposed matrix and reads beside it.
_FEWEST_INT8_COLUMNS = 8


class Kernel(StrEnum):
    """NATIVE: our own C. INT8: torch's int8 product. FLOAT32, FLOAT64: BLAS on integers small enough to
    be exact."""

    NATIVE = "native"
    INT8 = "int8"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


def check_columns(columns: int) -> None:
    """Raises ModelError "unsupported-model" for rows too long for their sums."""
    if columns > MAX_COLUMNS:
        raise ModelError(
            "unsupported-model",
            f"A matrix has {columns} columns; the exact profile takes up to {MAX_COLUMNS}.",
            "Serve this model in the float profile.",
        )


class IntMatrix:
    """An int8 matrix [rows, columns], held the way its kernel wants it."""

    def __init__(self, weight: Tensor, kernel: Kernel) -> None:
        check_columns(weight.shape[1])
        if kernel is Kernel.INT8 and weight.shape[1] < _FEWEST_INT8_COLUMNS:
            kernel = Kernel.FLOAT64
        self._kernel = kernel
        if kernel is Kernel.NATIVE:
            matrix = TiledMatrix(native_library(), weight, weight.shape[1])
            self._native = TiledLinears(native_library(), [TiledLinear(matrix, None, None)])
            self.held = matrix.tiles
            return
        self.held = {Kernel.INT8: weight, Kernel.FLOAT32: weight.float(), Kernel.FLOAT64: weight.double()}[kernel]

    def times(self, q: Tensor) -> Tensor:
        """q float64 [n, columns], integers of at most Q_MAX -> the exact integers q W^T, float64 [n, rows]."""
        if self._kernel is Kernel.NATIVE:
            return self._native.times(q.to(torch.int16))
        if self._kernel is Kernel.FLOAT64:
            # Every partial sum is an integer below 2^15 * 2^7 * 2^16 = 2^38.
            return q @ self.held.t()
        split = _split(q)
        if self._kernel is Kernel.INT8:
            sums = torch._int_mm(split, self.held.t())
        else:
            blocks = zip(
                torch.split(split.float(), _FLOAT32_BLOCK, dim=1),
                torch.split(self.held, _FLOAT32_BLOCK, dim=1),
                strict=True,
            )
            sums = torch.stack([(part @ weight.t()).double() for part, weight in blocks]).sum(0)
        high, low = sums.chunk(2)
        # Integers below 2^53: exact, with or without a fused multiply-add.
        return low.double().add_(high, alpha=256)


def _split(q: Tensor) -> Tensor:
    """int8 [2n, columns]: hi of every token, then lo of every token."""
    short = q.to(torch.int16)
    high = (short + 128) >> 8
    return torch.cat([high, short - (high << 8)]).to(torch.int8)


def native_library() -> Library:
    """Raises ModelError "no-native-kernels" when there is none."""
    found = library()
    if found is None:
        raise ModelError(
            "no-native-kernels",
            "This installation has no native kernels, or EFEDLLM_NATIVE=0 switches them off.",
            "Install again with a C compiler on the PATH, or choose another kernel.",
        )
    return found


def fastest_kernel() -> Kernel:
    """The first kernel that is exact on this machine."""
    return exact_kernels()[0]


@cache
def exact_kernels() -> tuple[Kernel, ...]:
    """The kernels that are exact on this machine, fastest first; FLOAT64 always is.

    oneDNN's int8 product is not exact everywhere: without VNNI instructions it adds pairs of products in saturating
    int16. Reduced-precision settings break float32 products. Both show at the extremes tried here.
    """
    present = [kernel for kernel in Kernel if kernel is not Kernel.NATIVE or library() is not None]
    return tuple(kernel for kernel in present if kernel is Kernel.FLOAT64 or _is_exact(kernel))


def _is_exact(kernel: Kernel) -> bool:
    """Whether `kernel` sums the extremes of its operands exactly, for shapes of decoding and of prefill."""
    for tokens in (1, 2, 8, 64):
        for rows, columns in ((1, 8), (96, 32), (256, 256), (48, 100), (64, 2048)):
            signs = torch.arange(rows * columns).view(rows, columns) % 3 - 1
            for weight in (torch.full((rows, columns), 127), torch.full((rows, columns), -128), signs * 127):
                matrix = IntMatrix(weight.to(torch.int8), kernel)
                for value in (Q_MAX, -Q_MAX, 127, -128):
                    got = matrix.times(torch.full((tokens, columns), value, dtype=torch.float64))
                    want = (weight.sum(1) * value).double().expand(tokens, rows)
                    if not torch.equal(got, want):
                        return False
    return True
