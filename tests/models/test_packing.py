"""Few-bit integers come back as they went in, in bytes anybody can read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.models import packing
from efedllm.models.packing import pack, packed_bytes, row_bytes, unpack


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(2, 6), rows=st.integers(1, 9), cols=st.integers(1, 41), seed=st.integers(0, 1 << 32))
def test_what_is_packed_comes_back(bits: int, rows: int, cols: int, seed: int) -> None:
    half = 1 << (bits - 1)
    values = np.random.default_rng(seed).integers(-half, half, (rows, cols)).astype(np.int8)
    packed = pack(values, bits)
    assert packed.shape == (rows, row_bytes(cols, bits))
    np.testing.assert_array_equal(unpack(packed, cols, bits), values)


def test_four_bits_are_two_per_byte_low_nibble_first() -> None:
    packed = pack(np.array([[-8, 7, 0]], dtype=np.int8), 4)
    assert packed.tolist() == [[0xF0, 0x08]]


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(-4, 4, (23, 17)).astype(np.int8)
    whole = pack(values, 3)
    monkeypatch.setattr(packing, "_BLOCK_BITS", 100)
    np.testing.assert_array_equal(pack(values, 3), whole)
    np.testing.assert_array_equal(unpack(whole, 17, 3), values)


@pytest.mark.parametrize("value", [-5, 4])
def test_a_value_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="3 bits"):
        pack(np.array([[value]], dtype=np.int8), 3)


def test_four_bits_with_a_rank_save_what_the_formula_says() -> None:
    """4 bits, a byte per 64, four per row, and rank 8 in int8: 4.17 bits and 8 (m + n) bytes."""
    assert packed_bytes(256, 704, 8, 4, 64) == 256 * 352 + 256 * 11 + 256 * 4 + 8 * (256 + 704) + 8 * 4
