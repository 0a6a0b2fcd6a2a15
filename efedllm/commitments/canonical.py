"""Canonical bytes of the tensors that cross a hop boundary.

Rows are little-endian and row-major. Exactly one byte string stands for one array: NaN and infinity are refused and
negative zero is written as positive zero, so equal values always hash equally.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.errors import ProtocolError

Array = npt.NDArray[Any]


class WireDtype(IntEnum):
    """Element type of a boundary. The value is the `u8 dtype` of leaves and frames."""

    F32 = 1
    BF16 = 2
    I32 = 3


_ITEMSIZE = {WireDtype.F32: 4, WireDtype.BF16: 2, WireDtype.I32: 4}
_BF16_EXPONENT = np.uint16(0x7F80)
_BF16_NEGATIVE_ZERO = np.uint16(0x8000)
_F32_EXPONENT = np.uint32(0x7F800000)
_F32_NEGATIVE_ZERO = np.uint32(0x80000000)


def itemsize(dtype: WireDtype) -> int:
    """Bytes per element."""
    return _ITEMSIZE[dtype]


def as_dtype(value: int) -> WireDtype:
    """The WireDtype with this code; ProtocolError("bad-dtype") for any other number."""
    try:
        return WireDtype(value)
    except ValueError:
        raise ProtocolError("bad-dtype", f"Unknown wire dtype {value}.") from None


def _nonfinite() -> ProtocolError:
    return ProtocolError("nonfinite", "The tensor holds NaN or infinity, which have no canonical bytes.")


def encode(array: Array, dtype: WireDtype) -> bytes:
    """Canonical bytes of `array`.

    F32 and BF16 take float32 [n, d]; I32 takes int32 [n, 1]. BF16 rounds to nearest, ties to even. Raises
    ProtocolError "bad-shape" for another shape or element type and "nonfinite" for NaN, infinity or a value that
    rounds to infinity.
    """
    if array.ndim != 2:
        raise ProtocolError("bad-shape", f"A boundary tensor has two dimensions, not {array.ndim}.")
    if dtype is WireDtype.I32:
        if array.dtype != np.int32 or array.shape[1] != 1:
            raise ProtocolError("bad-shape", "Token ids must be int32 of shape [n, 1].")
        return np.ascontiguousarray(array, dtype="<i4").tobytes()
    if array.dtype != np.float32:
        raise ProtocolError("bad-shape", f"Hidden states must be float32, not {array.dtype}.")
    bits = np.ascontiguousarray(array, dtype="<f4").view(np.uint32)
    if ((bits & _F32_EXPONENT) == _F32_EXPONENT).any():
        raise _nonfinite()
    if dtype is WireDtype.F32:
        return np.where(bits == _F32_NEGATIVE_ZERO, np.uint32(0), bits).astype("<u4", copy=False).tobytes()
    # Adding 0x7FFF plus the lowest kept bit carries exactly when round-to-nearest-even rounds up.
    half = ((bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)
    if ((half & _BF16_EXPONENT) == _BF16_EXPONENT).any():
        raise _nonfinite()
    # After rounding: a tiny negative number may only now have become -0.
    return np.where(half == _BF16_NEGATIVE_ZERO, np.uint16(0), half).astype("<u2", copy=False).tobytes()


def decode(data: bytes, dtype: WireDtype, dim: int) -> Array:
    """The array behind canonical bytes: float32 [n, dim], or int32 [n, 1] for I32 (maybe read-only).

    Raises ProtocolError "bad-length" when `data` is not whole rows, "nonfinite" on NaN or infinity and
    "non-canonical" on -0.
    """
    if dim < 1 or (dtype is WireDtype.I32 and dim != 1):
        raise ProtocolError("bad-shape", f"A row of {dtype.name} cannot have {dim} elements.")
    if len(data) % (dim * _ITEMSIZE[dtype]):
        raise ProtocolError("bad-length", f"{len(data)} bytes are not whole rows of {dim} {dtype.name}.")
    if dtype is WireDtype.I32:
        return np.frombuffer(data, dtype="<i4").astype(np.int32, copy=False).reshape(-1, 1)
    if dtype is WireDtype.BF16:
        half = np.frombuffer(data, dtype="<u2")
        if ((half & _BF16_EXPONENT) == _BF16_EXPONENT).any():
            raise _nonfinite()
        if (half == _BF16_NEGATIVE_ZERO).any():
            raise ProtocolError("non-canonical", "The tensor holds a negative zero.")
        return (half.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(-1, dim)
    bits = np.frombuffer(data, dtype="<u4")
    if ((bits & _F32_EXPONENT) == _F32_EXPONENT).any():
        raise _nonfinite()
    if (bits == _F32_NEGATIVE_ZERO).any():
        raise ProtocolError("non-canonical", "The tensor holds a negative zero.")
    return bits.view("<f4").astype(np.float32, copy=False).reshape(-1, dim)
