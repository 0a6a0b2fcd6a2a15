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

# On a GPU torch._int_mm takes more than 16 rows, and rows and columns of a matrix in eights.
_GPU_UNIT = 8
_GPU_FEWEST_TOKENS = 32


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

    def __init__(self, weight: Tensor, kernel: Kernel, device: str = "cpu") -> None:
        """`device`: where it is held and multiplied, the CPU for the native kernel."""
        check_columns(weight.shape[1])
        on_cpu = torch.device(device).type == "cpu"
        if kernel is Kernel.INT8 and on_cpu and weight.shape[1] < _FEWEST_INT8_COLUMNS:
            kernel = Kernel.FLOAT64
        self._kernel = kernel
        self._rows = weight.shape[0]
        if kernel is Kernel.NATIVE:
            matrix = TiledMatrix(native_library(), weight, weight.shape[1])
            self._native = TiledLinears(native_library(), [TiledLinear(matrix, None, None)])
            self.held = matrix.tiles
            return
        weight = weight.to(device)
        if kernel is Kernel.INT8:
            self.held = weight if on_cpu else _in_eights(weight)
        else:
            self.held = weight.float() if kernel is Kernel.FLOAT32 else weight.double()

    def times(self, q: Tensor) -> Tensor:
        """q float64 [n, columns], integers of at most Q_MAX -> the exact integers q W^T, float64 [n, rows]."""
        if self._kernel is Kernel.NATIVE:
            return self._native.times(q.to(torch.int16))
        if self._kernel is Kernel.FLOAT64:
            # Every partial sum is an integer below 2^15 * 2^7 * 2^16 = 2^38.
            return q @ self.held.t()
        split = _split(q)
        if self._kernel is Kernel.INT8:
            sums = self._int8(split)
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

    def _int8(self, split: Tensor) -> Tensor:
        """int8 [n, columns] -> int32 [n, rows]."""
        if split.device.type == "cpu":
            return torch._int_mm(split, self.held.t())
        tokens, columns = split.shape
        padded = split.new_zeros(max(_GPU_FEWEST_TOKENS, _up(tokens)), self.held.shape[1])
        padded[:tokens, :columns] = split
        return torch._int_mm(padded, self.held.t())[:tokens, : self._rows]


def _in_eights(weight: Tensor) -> Tensor:
    """int8 [rows, columns] with as many zeros beside and below as a GPU's product wants; itself when it needs none."""
    rows, columns = weight.shape
    return torch.nn.functional.pad(weight, (0, _up(columns) - columns, 0, _up(rows) - rows)).contiguous()


def _up(count: int) -> int:
    return -(-count // _GPU_UNIT) * _GPU_UNIT


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


def fastest_kernel(device: str = "cpu") -> Kernel:
    """The first kernel that is exact on this machine's `device`. Raises ModelError "inexact-device" without any."""
    found = exact_kernels(device)
    if not found:
        raise inexact(device, "its integer products are not exact")
    return found[0]


def inexact(device: str, why: str) -> ModelError:
    """What to say of a device that rounds otherwise."""
    return ModelError(
        "inexact-device",
        f"The {device} device does not compute as the network does: {why}.",
        "Compute on the CPU; check the GPU's driver and what the environment says of TF32 and of emulated float64.",
    )


@cache
def exact_kernels(device: str = "cpu") -> tuple[Kernel, ...]:
    """The kernels that are exact on this machine's `device`, fastest first; on the CPU FLOAT64 always is.

    oneDNN's int8 product is not exact everywhere: without VNNI instructions it adds pairs of products in saturating
    int16. Reduced-precision settings break float32 products, and float64 products where a GPU emulates them. All show
    at the extremes tried here.
    """
    on_cpu = torch.device(device).type == "cpu"
    present = [k for k in Kernel if k is not Kernel.NATIVE or (on_cpu and library() is not None)]
    return tuple(k for k in present if (on_cpu and k is Kernel.FLOAT64) or _is_exact(k, device))


def _is_exact(kernel: Kernel, device: str) -> bool:
    """Whether `kernel` sums the extremes of its operands exactly, for shapes of decoding and of prefill."""
    for tokens in (1, 2, 8, 64):
        for rows, columns in ((1, 8), (96, 32), (256, 256), (48, 100), (64, 2048)):
            signs = torch.arange(rows * columns).view(rows, columns) % 3 - 1
            for weight in (torch.full((rows, columns), 127), torch.full((rows, columns), -128), signs * 127):
                matrix = IntMatrix(weight.to(torch.int8), kernel, device)
                for value in (Q_MAX, -Q_MAX, 127, -128):
                    got = matrix.times(torch.full((tokens, columns), value, dtype=torch.float64, device=device))
                    want = (weight.sum(1) * value).double().expand(tokens, rows)
                    if not torch.equal(got.cpu(), want):
                        return False
    return True
