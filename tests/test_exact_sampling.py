"""Integer sampling: equal to a second implementation in Python integers and fractions, token for token."""

from __future__ import annotations

import dataclasses
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.commitments.hashing import keccak
from efedllm.errors import ProtocolError
from efedllm.sampling import exact as exact_sampling
from efedllm.sampling.exact import WEIGHT_BITS, sample_exact, sample_exact_rows, sample_in_numpy, token_weights
from efedllm.sampling.float import SamplingSpec, sample

Row = npt.NDArray[np.float32]
OFF = 1_000_000
COEFFICIENTS = [
    Fraction(*float.fromhex(text).as_integer_ratio())
    for text in [
        "0x1p+0",
        "0x1.62e430p-1",
        "0x1.ebfbe0p-3",
        "0x1.c6b08ep-5",
        "0x1.3b2ab6p-7",
        "0x1.5d87fep-10",
        "0x1.430912p-13",
    ]
]
LOG2E = Fraction(*float.fromhex("0x1.71547652b82fep+0").as_integer_ratio())


def nearest(x: Fraction, digits: int, lowest: int) -> Fraction:
    """`x` to `digits` significant bits, ties to even; `lowest`: exponent of the smallest step."""
    if x == 0:
        return x
    exponent = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** max(exponent - digits + 1, lowest)
    return round(x / step) * step


def f32(x: Fraction) -> Fraction:
    return nearest(x, 24, -149)


def f64(x: Fraction) -> Fraction:
    return nearest(x, 53, -1074)


def reference_weight(logit: Fraction, highest: Fraction, temperature: int) -> int:
    z = f64(f64(f64(f64(logit - highest) * 1000) / temperature) * LOG2E)
    z = f32(max(z, Fraction(-120)))
    whole = round(z)
    fraction = f32(z - whole)
    value = f32(COEFFICIENTS[6] * fraction)
    for coefficient in COEFFICIENTS[5:0:-1]:
        value = f32(f32(value + coefficient) * fraction)
    value = f32(f32(value + COEFFICIENTS[0]) * Fraction(2) ** whole)
    return round(value * 2**30)


def reference(logits: Row, spec: SamplingSpec, position: int, weights: list[int] | None = None) -> int:
    """docs/exact.md, Sampling, in rational numbers. `weights`: those of the specification where they are known."""
    order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))
    if spec.temperature_milli == 0:
        return order[0]
    if weights is None:
        exact = [Fraction(*float(x).as_integer_ratio()) for x in logits]
        weights = [reference_weight(x, exact[order[0]], spec.temperature_milli) for x in exact]
    if spec.top_k:
        order = order[: spec.top_k]
    total, ahead, kept = sum(weights[i] for i in order), 0, []
    for i in order:
        if ahead * 1_000_000 < spec.top_p_ppm * total or spec.top_p_ppm == OFF:
            kept.append(i)
        ahead += weights[i]
    word = int.from_bytes(keccak(spec.seed + position.to_bytes(4, "big"))[:8], "big")
    target = word * sum(weights[i] for i in kept) // 2**64
    running = 0
    for i in sorted(kept):
        running += weights[i]
        if running > target:
            return i
    raise AssertionError("the weights do not cover the draw")


specs = st.builds(
    SamplingSpec,
    temperature_milli=st.sampled_from([0, 1, 100, 700, 1000, 2500, 100_000, 2**32 - 1]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 1000]),
    top_p_ppm=st.sampled_from([1, 300_000, 900_000, 999_999, OFF]),
    seed=st.binary(min_size=32, max_size=32),
)
any_logits = st.floats(width=32, allow_nan=False, allow_infinity=False)
close_logits = st.floats(-20, 20, width=32)
rows = st.one_of(
    st.lists(close_logits, min_size=1, max_size=40),
    st.lists(any_logits, min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, -0.0, 1.5, 2.0]), min_size=1, max_size=12),
).map(lambda values: np.array(values, dtype=np.float32))


@settings(max_examples=250, deadline=None)
@given(rows, specs, st.integers(0, 2**32 - 1))
def test_two_implementations_choose_the_same_token(logits: Row, spec: SamplingSpec, position: int) -> None:
    assert sample_exact(logits, spec, position) == reference(logits, spec, position)


@settings(max_examples=150, deadline=None)
@given(st.lists(close_logits, min_size=1, max_size=20), st.sampled_from([1, 700, 1000, 9000]))
def test_weights_are_those_of_the_specification(values: list[float], temperature: int) -> None:
    logits = np.array(values, dtype=np.float32)
    exact = [Fraction(*float(x).as_integer_ratio()) for x in logits]
    wanted = [reference_weight(x, max(exact), temperature) for x in exact]
    weights = token_weights(logits, temperature)
    assert weights.tolist() == wanted
    assert weights.max() == 1 << WEIGHT_BITS


@settings(max_examples=60, deadline=None)
@given(rows, specs, st.integers(0, 1000), st.integers(0, 3))
def test_memory_layout_does_not_matter(logits: Row, spec: SamplingSpec, position: int, pad: int) -> None:
    """Vector loops treat unaligned and strided rows apart; the token must not depend on it."""
    wide = np.zeros((len(logits) + pad, 3), dtype=np.float32)
    wide[pad:, 1] = logits
    assert sample_exact(wide[pad:, 1], spec, position) == sample_exact(logits, spec, position)


@settings(max_examples=200, deadline=None)
@given(st.lists(rows, min_size=1, max_size=4), specs, st.integers(0, 2**20))
def test_rows_together_give_the_tokens_of_rows_alone(several: list[Row], spec: SamplingSpec, first: int) -> None:
    vocab = min(len(row) for row in several)
    logits = np.stack([row[:vocab] for row in several])
    alone = [sample_exact(row, spec, first + i) for i, row in enumerate(logits)]
    assert sample_exact_rows(logits, spec, first).tolist() == alone


@pytest.mark.parametrize("top_p_ppm", [1, 500_000, 950_000, 999_999, OFF])
@pytest.mark.parametrize("top_k", [0, 50, 2999])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_large_vocabularies_are_sampled_by_the_definition(spread: float, top_k: int, top_p_ppm: int) -> None:
    """Rows in several groups, equal logits at every cut, shares that few tokens reach and that only most of them do."""
    spec = SamplingSpec(900, top_k, top_p_ppm, keccak(b"large"))
    logits = np.round(np.random.default_rng(2).normal(0, spread, (30, 3000)), 1).astype(np.float32)
    wanted = [reference(row, spec, 5 + i, token_weights(row, 900).tolist()) for i, row in enumerate(logits)]
    assert sample_exact_rows(logits, spec, 5).tolist() == wanted
    assert [sample_exact(row, spec, 5 + i) for i, row in enumerate(logits)] == wanted


@pytest.mark.parametrize("top_p_ppm", [1, 500_000, 999_999, OFF])
@pytest.mark.parametrize("top_k", [0, 1, 50, 700, 4999])
@pytest.mark.parametrize("rounded", [0, 1, 5])
def test_the_native_sampler_is_the_one_in_numpy(rounded: int, top_k: int, top_p_ppm: int) -> None:
    """Ties at every cut, tokens of no weight, rows in falling and rising order."""
    spec = SamplingSpec(800, top_k, top_p_ppm, keccak(b"native"))
    logits = np.round(np.random.default_rng(7).normal(0, 6, (12, 5000)), rounded).astype(np.float32)
    logits[1], logits[2], logits[3] = np.sort(logits[1]), -np.sort(logits[2]), 2.5
    logits[4, ::3] = -0.0
    assert sample_exact_rows(logits, spec, 9).tolist() == sample_in_numpy(logits, spec, 9).tolist()


@settings(max_examples=150, deadline=None)
@given(rows, specs.filter(lambda spec: not spec.greedy), st.integers(0, 2**32 - 1))
def test_both_samplers_on_small_rows(logits: Row, spec: SamplingSpec, position: int) -> None:
    assert sample_exact(logits, spec, position) == int(sample_in_numpy(logits[None], spec, position)[0])


def test_a_draw_follows_the_distribution() -> None:
    logits = np.array([1.0, 0.0, 2.0, -1.0], dtype=np.float32)
    spec = SamplingSpec(1000, 0, OFF, keccak(b"distribution"))
    counts = np.bincount([sample_exact(logits, spec, position) for position in range(8000)], minlength=4)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum()
    assert np.abs(counts / 8000 - shares).max() < 0.02


def test_it_is_the_float_sampler_but_for_rounding() -> None:
    rng = np.random.default_rng(3)
    spec = SamplingSpec(800, 20, 950_000, keccak(b"agreement"))
    same = 0
    for position in range(400):
        logits = rng.normal(0, 3, 500).astype(np.float32)
        same += sample_exact(logits, spec, position) == sample(logits, spec, position)
    assert same >= 398


def golden_logits(vocab: int) -> Row:
    """Multiples of 2^-20 in [-8, 8) from keccak counters."""
    words = b"".join(keccak(b"logits" + block.to_bytes(4, "big")) for block in range(-(-vocab // 8)))
    values = np.frombuffer(words, dtype="<u4")[:vocab] >> 8
    return (values.astype(np.float32) - np.float32(1 << 23)) * np.float32(2.0**-20)


GOLDEN = {
    (0, 0, OFF): [3349, 3349, 3349, 3349, 3349, 3349, 3349, 3349],
    (1000, 0, OFF): [3376, 1775, 3700, 247, 3174, 1405, 1326, 63],
    (700, 40, OFF): [3428, 1973, 3577, 117, 3361, 1284, 964, 13],
    (1300, 0, 900_000): [3376, 1771, 3710, 247, 3170, 1405, 1319, 63],
    (2000, 300, 500_000): [3376, 1772, 3687, 183, 3150, 1398, 1284, 48],
}


@pytest.mark.parametrize(("sampling", "tokens"), GOLDEN.items())
def test_the_tokens_stay_the_same(sampling: tuple[int, int, int], tokens: list[int]) -> None:
    spec = SamplingSpec(*sampling, keccak(b"golden"))
    assert [sample_exact(golden_logits(4096), spec, position) for position in range(8)] == tokens
    assert sample_exact_rows(np.stack([golden_logits(4096)] * 8), spec, 0).tolist() == tokens


def test_its_constants_are_those_of_the_engine() -> None:
    from efedllm.engine.exact.arithmetic import constants

    coefficients = [float(c) for c in exact_sampling.EXP2_COEFFICIENTS]
    assert struct.pack("<d7f", float(exact_sampling.LOG2_E), *coefficients) == constants()[: 8 + 4 * 7]


def test_unusable_logits_are_refused() -> None:
    spec = SamplingSpec(1000, 0, OFF, bytes(32))
    rows: list[tuple[npt.NDArray[Any], str]] = [
        (np.array([1.0, np.nan], np.float32), "nonfinite"),
        (np.array([1.0, np.inf], np.float32), "nonfinite"),
        (np.array([[1.0]], np.float32), "bad-shape"),
        (np.array([], np.float32), "bad-shape"),
        (np.array([1.0], np.float64), "bad-shape"),
    ]
    for row, code in rows:
        with pytest.raises(ProtocolError) as caught:
            sample_exact(row, spec, 0)
        assert caught.value.code == code
        with pytest.raises(ProtocolError):
            sample_exact(row, dataclasses.replace(spec, temperature_milli=0), 0)
        with pytest.raises(ProtocolError) as caught:
            sample_exact_rows(row[None], spec, 0)
        assert caught.value.code == code
    assert sample_exact_rows(np.zeros((0, 4), np.float32), spec, 0).tolist() == []
