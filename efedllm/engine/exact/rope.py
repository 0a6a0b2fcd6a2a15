"""Rotary position embeddings from integer tables, made with Python integers and decimals: no libm, no torch.cos.

A table holds cos and sin as multiples of 2^-30. The angle of position p is split into p % 256 and p // 256, so that a
table for 2^18 positions has 1280 rows; the two rotations are multiplied in int64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efedllm.errors import ModelError
from efedllm.models.exact import EXACT_ROPES

FRACTION_BITS = 30
"""Bits of the published tables: 1.0 is 2^30."""

_LOW = 256
_WORK_BITS = 128
_DIGITS = Context(prec=60)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")

Int32Table = npt.NDArray[np.int32]


def frequencies(dim: int, rope: Mapping[str, Any]) -> list[Decimal]:
    """Radians per position of each of the dim / 2 pairs, from the rope_parameters of a transformers config.

    Raises ModelError "unsupported-model" for scalings other than "default", "linear" and "llama3".
    """
    kind = rope.get("rope_type", "default")
    if kind not in EXACT_ROPES:
        raise ModelError(
            "unsupported-model",
            f"The exact profile has no {kind} rotary embeddings.",
            "Serve this model in the float profile.",
        )
    with localcontext(_DIGITS):
        log_theta = Decimal(float(rope["rope_theta"])).ln()
        plain = [(log_theta * Decimal(-2 * i) / Decimal(dim)).exp() for i in range(dim // 2)]
        if kind == "linear":
            return [f / Decimal(float(rope["factor"])) for f in plain]
        if kind == "llama3":
            return [_llama3(f, rope) for f in plain]
        return plain


def _llama3(frequency: Decimal, rope: Mapping[str, Any]) -> Decimal:
    """Llama 3.1's scaling: long waves slower by `factor`, short ones as they are, a linear blend between."""
    factor = Decimal(float(rope["factor"]))
    low, high = Decimal(float(rope["low_freq_factor"])), Decimal(float(rope["high_freq_factor"]))
    turns = Decimal(int(rope["original_max_position_embeddings"])) * frequency / (2 * _PI)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    blend = (turns - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency


@dataclass(frozen=True, eq=False)
class RopeTables:
    """Multiples of 2^-30, each int32 [rows, dim / 2]: positions 0..255, and 0, 256, 512, ..."""

    low_cos: Int32Table
    low_sin: Int32Table
    high_cos: Int32Table
    high_sin: Int32Table

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in (self.low_cos, self.low_sin, self.high_cos, self.high_sin))

    def sha256(self) -> bytes:
        """Over the little-endian bytes of low_cos, low_sin, high_cos, high_sin."""
        digest = hashlib.sha256()
        for table in (self.low_cos, self.low_sin, self.high_cos, self.high_sin):
            digest.update(np.ascontiguousarray(table, dtype="<i4").tobytes())
        return digest.digest()


def make_tables(dim: int, max_positions: int, rope: Mapping[str, Any]) -> RopeTables:
    """Tables for heads of `dim` and positions below `max_positions`."""
    high_rows = -(-max_positions // _LOW)
    shape = (len(frequencies(dim, rope)), 2)
    low = np.empty((_LOW, *shape), dtype=np.int32)
    high = np.empty((high_rows, *shape), dtype=np.int32)
    for pair, frequency in enumerate(frequencies(dim, rope)):
        step = _unit(frequency)
        for row, value in zip(range(_LOW), _powers(step), strict=False):
            low[row, pair] = value
        for row, value in zip(range(high_rows), _powers(_repeated(step, _LOW)), strict=False):
            high[row, pair] = value
    return RopeTables(low[..., 0].copy(), low[..., 1].copy(), high[..., 0].copy(), high[..., 1].copy())


def _unit(angle: Decimal) -> tuple[int, int]:
    """(cos, sin) of `angle` radians as multiples of 2^-128, by their Taylor series in integers."""
    with localcontext(_DIGITS):
        x = int(angle * (1 << _WORK_BITS))
    term, cos, sin, k = 1 << _WORK_BITS, 0, 0, 0
    while term:
        sign = -1 if k & 2 else 1
        if k & 1:
            sin += sign * term
        else:
            cos += sign * term
        k += 1
        term = ((term * x) >> _WORK_BITS) // k
    return cos, sin


def _product(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return (a[0] * b[0] - a[1] * b[1]) >> _WORK_BITS, (a[0] * b[1] + a[1] * b[0]) >> _WORK_BITS


def _repeated(step: tuple[int, int], times: int) -> tuple[int, int]:
    value = (1 << _WORK_BITS, 0)
    for _ in range(times):
        value = _product(value, step)
    return value


def _powers(step: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """step^0, step^1, ... rounded to multiples of 2^-30, halves up."""
    value, shift = (1 << _WORK_BITS, 0), _WORK_BITS - FRACTION_BITS
    while True:
        yield tuple((part + (1 << (shift - 1))) >> shift for part in value)  # type: ignore[misc]
        value = _product(value, step)


class Rotation:
    """cos and sin at given positions, and the rotation of heads by them."""

    def __init__(self, tables: RopeTables, device: str = "cpu") -> None:
        low, high = (tables.low_cos, tables.low_sin), (tables.high_cos, tables.high_sin)
        self._low = [torch.from_numpy(t.astype(np.int64)).to(device) for t in low]
        self._high = [torch.from_numpy(t.astype(np.int64)).to(device) for t in high]

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin float64 [n, 1, dim / 2] of int64 positions [n]; multiples of 2^-30."""
        low_cos, low_sin = (table[positions % _LOW] for table in self._low)
        high_cos, high_sin = (table[positions // _LOW] for table in self._high)
        cos = low_cos * high_cos - low_sin * high_sin
        sin = low_cos * high_sin + low_sin * high_cos
        return _rounded(cos), _rounded(sin)


def _rounded(twice: Tensor) -> Tensor:
    """float64 of multiples of 2^-60, rounded to multiples of 2^-30, halves up."""
    whole = (twice + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS
    return whole.double().mul_(2.0**-FRACTION_BITS).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x float64 [n, heads, dim] with pairs (i, i + dim / 2), as in transformers' Llama."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
