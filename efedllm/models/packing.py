"""Integers of 2 to 6 bits in as many bits: the canonical bytes of a packed matrix. numpy only.

Row by row, least significant bit first, each row padded with zero bits to whole bytes. A value v of b bits is stored as
v + 2^(b-1), so 4 bits are two per byte, the even column in the low nibble.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

PACKED_BITS = {"int2": 2, "int3": 3, "int4": 4, "int5": 5, "int6": 6}
"""Bits of each packed dtype."""

# Bounds the memory of unpacking, which needs a byte per bit.
_BLOCK_BITS = 1 << 24

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]


def row_bytes(cols: int, bits: int) -> int:
    """Bytes of one packed row."""
    return (cols * bits + 7) // 8


def group_count(cols: int, group: int) -> int:
    """Groups (multipliers) per row; the last one may be shorter."""
    return (cols + group - 1) // group


def packed_bytes(rows: int, cols: int, rank: int, bits: int, group: int) -> int:
    """Published bytes of a packed matrix: integers, an int8 multiplier per group, a float32 scale per row and, with a
    rank, its int8 factors with one float32 scale per rank."""
    base = rows * (row_bytes(cols, bits) + group_count(cols, group) + 4)
    return base + rank * (rows + cols + 4)


def pack(values: Int8, bits: int) -> UInt8:
    """int8 [rows, cols] with -2^(bits-1) <= v < 2^(bits-1) -> uint8 [rows, row_bytes(cols, bits)].

    Raises ValueError for a value out of range.
    """
    half = 1 << (bits - 1)
    if values.size and (int(values.min()) < -half or int(values.max()) >= half):
        raise ValueError(f"a value does not fit {bits} bits")
    rows, cols = values.shape
    packed = np.empty((rows, row_bytes(cols, bits)), dtype=np.uint8)
    for part in _blocks(rows, cols * bits):
        unsigned = (values[part].astype(np.int16) + half).astype(np.uint8)
        one_bit_each = np.unpackbits(unsigned[:, :, None], axis=2, bitorder="little", count=bits)
        packed[part] = np.packbits(one_bit_each.reshape(len(unsigned), cols * bits), axis=1, bitorder="little")
    return packed


def unpack(packed: UInt8, cols: int, bits: int) -> Int8:
    """The inverse of `pack`: int8 [rows, cols]."""
    rows = len(packed)
    values = np.empty((rows, cols), dtype=np.int8)
    for part in _blocks(rows, cols * bits):
        one_bit_each = np.unpackbits(packed[part], axis=1, bitorder="little", count=cols * bits)
        unsigned = np.packbits(one_bit_each.reshape(-1, cols, bits), axis=2, bitorder="little")[:, :, 0]
        values[part] = unsigned.astype(np.int16) - (1 << (bits - 1))
    return values


def _blocks(rows: int, bits_per_row: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BITS // bits_per_row)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
