"""Canonical bytes: one byte string for one array."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efedllm.commitments.canonical import WireDtype, as_dtype, decode, encode, itemsize
from efedllm.errors import ProtocolError

BF16_MAX = 3.3895313892515355e38
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def bits_of(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def reference_bf16(value: float) -> int:
    """Round to nearest, ties to even, from the exact distances to both neighbours; 16-bit pattern."""
    bits = bits_of(value)
    sign, magnitude = bits & 0x80000000, bits & 0x7FFFFFFF
    low = magnitude >> 16
    remainder = magnitude & 0xFFFF
    if remainder > 0x8000 or (remainder == 0x8000 and low % 2 == 1):
        low += 1
    return (sign >> 16) | low


def column(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32).reshape(-1, 1)


@given(st.lists(finite32, min_size=1, max_size=64))
def test_f32_survives_with_negative_zero_made_positive(values: list[float]) -> None:
    array = column(values)
    data = encode(array, WireDtype.F32)
    back = decode(data, WireDtype.F32, 1)
    assert np.array_equal(back, array)
    assert not np.signbit(back[back == 0]).any()
    assert encode(back, WireDtype.F32) == data


@given(st.lists(finite32.filter(lambda x: abs(x) <= BF16_MAX), min_size=1, max_size=64))
def test_bf16_rounds_to_nearest_even(values: list[float]) -> None:
    expected = [reference_bf16(v) for v in values]
    expected = [0 if pattern == 0x8000 else pattern for pattern in expected]
    assert encode(column(values), WireDtype.BF16) == struct.pack(f"<{len(values)}H", *expected)


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        (1.0, 0x3F80),
        (1.00390625, 0x3F80),  # halfway between 0x3F80 and 0x3F81: to the even one, down
        (1.01171875, 0x3F82),  # halfway between 0x3F81 and 0x3F82: to the even one, up
        (1.0039063692092896, 0x3F81),  # one float32 step above halfway
        (-1.0, 0xBF80),
        (-0.0, 0x0000),
        (-1e-45, 0x0000),  # rounds to -0, which is not canonical
        (1e-40, 0x0001),  # denormals stay
        (BF16_MAX, 0x7F7F),
    ],
)
def test_bf16_known_patterns(value: float, pattern: int) -> None:
    assert encode(column([value]), WireDtype.BF16) == struct.pack("<H", pattern)


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=64))
def test_bf16_bytes_either_survive_or_are_refused(patterns: list[int]) -> None:
    data = struct.pack(f"<{len(patterns)}H", *patterns)
    if any(p & 0x7F80 == 0x7F80 for p in patterns):
        with pytest.raises(ProtocolError) as caught:
            decode(data, WireDtype.BF16, 1)
        assert caught.value.code == "nonfinite"
    elif 0x8000 in patterns:
        with pytest.raises(ProtocolError) as caught:
            decode(data, WireDtype.BF16, 1)
        assert caught.value.code == "non-canonical"
    else:
        assert encode(decode(data, WireDtype.BF16, 1), WireDtype.BF16) == data


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=64))
def test_i32_survives(ids: list[int]) -> None:
    array = np.array(ids, dtype=np.int32).reshape(-1, 1)
    assert encode(array, WireDtype.I32) == struct.pack(f"<{len(ids)}i", *ids)
    assert np.array_equal(decode(encode(array, WireDtype.I32), WireDtype.I32, 1), array)


def test_rows_are_row_major_and_little_endian_whatever_the_memory_layout() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = struct.pack("<6f", *range(6))
    assert encode(array, WireDtype.F32) == expected
    assert encode(np.asfortranarray(array), WireDtype.F32) == expected
    wide = np.zeros((2, 6), dtype=np.float32)
    wide[:, ::2] = array
    assert encode(wide[:, ::2], WireDtype.F32) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [WireDtype.F32, WireDtype.BF16])
def test_nonfinite_values_have_no_bytes(bad: float, dtype: WireDtype) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(column([1.0, bad]), dtype)
    assert caught.value.code == "nonfinite"


def test_a_value_that_rounds_to_infinity_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(column([float(np.finfo(np.float32).max)]), WireDtype.BF16)
    assert caught.value.code == "nonfinite"


@pytest.mark.parametrize(
    ("value", "code"), [(math.nan, "nonfinite"), (-math.inf, "nonfinite"), (-0.0, "non-canonical")]
)
def test_f32_bytes_nobody_may_send(value: float, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(struct.pack("<2f", 1.0, value), WireDtype.F32, 2)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("size", "dtype", "dim"), [(7, WireDtype.F32, 2), (6, WireDtype.BF16, 2), (5, WireDtype.I32, 1)]
)
def test_partial_rows_are_refused(size: int, dtype: WireDtype, dim: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(bytes(size), dtype, dim)
    assert caught.value.code == "bad-length"


@pytest.mark.parametrize(("dtype", "dim"), [(WireDtype.F32, 0), (WireDtype.I32, 2), (WireDtype.BF16, -1)])
def test_impossible_widths_are_refused(dtype: WireDtype, dim: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(bytes(8), dtype, dim)
    assert caught.value.code == "bad-shape"


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros(3, np.float32), WireDtype.F32),
        (np.zeros((1, 3), np.float64), WireDtype.BF16),
        (np.zeros((1, 2), np.int32), WireDtype.I32),
        (np.zeros((1, 1), np.int64), WireDtype.I32),
    ],
)
def test_arrays_of_another_kind_are_refused(array: np.ndarray, dtype: WireDtype) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(array, dtype)
    assert caught.value.code == "bad-shape"


def test_codes_of_dtypes() -> None:
    assert [(d.value, itemsize(d)) for d in WireDtype] == [(1, 4), (2, 2), (3, 4)]
    assert as_dtype(2) is WireDtype.BF16
    with pytest.raises(ProtocolError) as caught:
        as_dtype(4)
    assert caught.value.code == "bad-dtype"
