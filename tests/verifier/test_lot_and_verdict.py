"""Which leaves are drawn, what they weigh, and how verdicts are packed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efedllm.commitments.hashing import keccak
from efedllm_verifier.lot import is_sampled
from efedllm_verifier.verdict import Verdict, leaf_units, pack_verdict, tally, withheld_units
from tests.verifier.epoch_kit import unpacked

verdicts = st.builds(Verdict, st.integers(0, 255), st.integers(0, 127), st.booleans())


@given(verdicts)
def test_a_verdict_survives_packing(verdict: Verdict) -> None:
    assert unpacked(pack_verdict(verdict)) == verdict


@given(st.integers(0, 0xFFFF))
def test_every_uint16_is_one_verdict(packed: int) -> None:
    assert pack_verdict(unpacked(packed)) == packed


def test_the_packed_layout_is_the_contracts() -> None:
    assert pack_verdict(Verdict(passed=3, failed=2, severe=True)) == 0x8000 | 2 << 8 | 3


@pytest.mark.parametrize(("passed", "failed"), [(-1, 0), (0, -1), (256, 0), (0, 128)])
def test_weights_beyond_the_packed_fields_are_no_verdict(passed: int, failed: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Verdict(passed, failed, severe=False)


@given(st.lists(st.tuples(st.integers(1, 10), st.booleans(), st.booleans()), max_size=80))
def test_a_tally_never_overflows_its_fields(leaves: list[tuple[int, bool, bool]]) -> None:
    verdict = tally(leaves)
    assert verdict.passed == min(255, sum(units for units, failed, _ in leaves if not failed))
    assert verdict.failed == min(127, sum(units for units, failed, _ in leaves if failed))
    assert verdict.severe == any(failed and severe for _, failed, severe in leaves)


@given(st.lists(st.tuples(st.integers(1, 10), st.booleans(), st.booleans()), max_size=80))
def test_a_severe_verdict_has_failed_units(leaves: list[tuple[int, bool, bool]]) -> None:
    verdict = tally(leaves)
    assert verdict.failed > 0 or not verdict.severe


@pytest.mark.parametrize(
    ("tokens", "units"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 5), (15, 9), (16, 10), (17, 10), (4096, 10)]
)
def test_short_jobs_weigh_less(tokens: int, units: int) -> None:
    assert leaf_units(tokens) == units


@pytest.mark.parametrize(
    ("count", "rate", "units"),
    [(1, 1_000_000, 10), (3, 1_000_000, 30), (100, 20_000, 20), (1, 20_000, 10), (9999, 10**6, 127)],
)
def test_a_withheld_batch_weighs_its_expected_audits(count: int, rate: int, units: int) -> None:
    assert withheld_units(count, rate) == units


def test_everything_is_sampled_at_full_rate_and_nothing_at_none() -> None:
    leaves = [keccak(bytes([i])) for i in range(200)]
    assert all(is_sampled(bytes(32), leaf, 1_000_000) for leaf in leaves)
    assert not any(is_sampled(bytes(32), leaf, 0) for leaf in leaves)


@pytest.mark.parametrize("rate", [20_000, 250_000, 500_000])
def test_the_sampled_share_is_the_rate(rate: int) -> None:
    seed = keccak(b"epoch")
    n = 4000
    hits = sum(is_sampled(seed, keccak(i.to_bytes(4, "big")), rate) for i in range(n))
    expected = n * rate / 1e6
    # Five standard deviations: the hashes are fixed, so this cannot flake.
    assert abs(hits - expected) < 5 * (expected * (1 - rate / 1e6)) ** 0.5


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_a_higher_rate_only_adds_leaves(seed: bytes, leaf: bytes, low: int, high: int) -> None:
    low, high = sorted((low, high))
    assert not is_sampled(seed, leaf, low) or is_sampled(seed, leaf, high)


def test_the_threshold_is_exact() -> None:
    seed, leaf = bytes(32), bytes(31) + b"\x07"
    draw = int.from_bytes(keccak(seed + leaf))
    smallest = next(rate for rate in range(draw * 10**6 >> 256, 10**6 + 1) if draw * 10**6 < rate << 256)
    assert is_sampled(seed, leaf, smallest)
    assert not is_sampled(seed, leaf, smallest - 1)


@pytest.mark.parametrize(("passed", "failed"), [(256, 0), (0, 128), (-1, 0)])
def test_out_of_range_verdicts_cannot_be_made(passed: int, failed: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Verdict(passed, failed, False)
