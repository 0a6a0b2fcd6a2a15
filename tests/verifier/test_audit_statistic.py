"""Honest spread stays far below the tolerance; every cheat stands far above it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from efedllm.commitments.canonical import WireDtype, decode
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm_verifier.statistic import (
    MISMATCH_FLOOR,
    SEVERE_AT,
    SPREAD_MARGIN,
    BackendError,
    DeviationLimits,
    HopStatistic,
    Outcome,
    bf16_half_step,
    chunk_mismatch,
    compare,
    grade,
    per_position,
)
from tests.verifier.audit_lab import (
    PROMPT,
    RANGES,
    Bits,
    as_bfloat16,
    as_int8,
    decode_route,
    load,
    noisy,
    skipping,
    tamper,
    truncated,
)

NEW = 48
F32, BF16 = WireDtype.F32, WireDtype.BF16


def decode_hop(engine: ShardEngine, inputs: Bits, prompt: int = len(PROMPT)) -> Bits:
    """A node's way: the prompt at once, then one position at a time."""
    sequence = engine.new_sequence()
    parts = [engine.step([StepItem(sequence, inputs[:prompt])])[0]]
    parts += [engine.step([StepItem(sequence, inputs[at : at + 1])])[0] for at in range(prompt, len(inputs))]
    return np.concatenate(parts)


def prefill_hop(engine: ShardEngine, inputs: Bits) -> Bits:
    """The verifier's way: everything at once."""
    return engine.step([StepItem(engine.new_sequence(), inputs)])[0]


@pytest.fixture(scope="module")
def hidden_inputs(published: Path) -> list[Bits]:
    """What each hop reads in one honest job: ids, then hidden states."""
    engines = [load(published, *layers) for layers in RANGES]
    trace = decode_route(engines, PROMPT, NEW)
    ids = decode(trace.boundaries[0], WireDtype.I32, 1)[:, 0]
    return [ids, *(decode(trace.boundaries[b], F32, engines[0].hidden) for b in (1, 2))]


def residual(engine: ShardEngine, inputs: Bits) -> Bits:
    return engine.embed(inputs) if engine.has_embedding else inputs


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("hop", range(len(RANGES)))
def test_decode_and_prefill_agree(published: Path, hidden_inputs: list[Bits], hop: int, threads: int) -> None:
    inputs = hidden_inputs[hop]
    node = load(published, *RANGES[hop], threads=threads)
    y = decode_hop(node, inputs)
    ours = prefill_hop(load(published, *RANGES[hop]), inputs)
    found = compare(y, ours, residual(node, inputs), F32)
    assert found.outcome is Outcome.PASS
    assert found.worst < 0.25


@pytest.mark.parametrize("hop", range(len(RANGES)))
def test_honest_bf16_wire_agrees(published: Path, hidden_inputs: list[Bits], hop: int) -> None:
    inputs = hidden_inputs[hop]
    node = load(published, *RANGES[hop], threads=2)
    y = as_wire(decode_hop(node, inputs))
    ours = prefill_hop(load(published, *RANGES[hop]), inputs)
    found = compare(y, ours, residual(node, inputs), BF16)
    assert found.outcome is Outcome.PASS
    assert found.worst < 0.25
    assert found.mismatch < 0.01


CHEATS: dict[str, Callable[[ShardEngine], ShardEngine]] = {
    "weights x (1 + 1e-3 noise)": lambda engine: tamper(engine, noisy(1e-3)),
    "bf16 weights": lambda engine: tamper(engine, as_bfloat16),
    "int8 weights": lambda engine: tamper(engine, as_int8),
    "98 % of the rank": lambda engine: truncated(engine, 0.98),
    "half the rank": lambda engine: truncated(engine, 0.5),
    "a layer left out": lambda engine: skipping(engine, 1),
}


@pytest.mark.parametrize("wire", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("hop", range(len(RANGES)))
@pytest.mark.parametrize("cheat", CHEATS, ids=str)
def test_cheap_weights_are_severe(
    published: Path, hidden_inputs: list[Bits], cheat: str, hop: int, wire: WireDtype
) -> None:
    inputs = hidden_inputs[hop]
    honest = load(published, *RANGES[hop])
    y = decode_hop(CHEATS[cheat](load(published, *RANGES[hop])), inputs)
    if wire is BF16:
        y = as_wire(y)
    found = compare(y, prefill_hop(honest, inputs), residual(honest, inputs), wire)
    assert found.outcome is Outcome.SEVERE
    assert found.worst > 30


def test_weights_with_the_weakest_noise_still_fail(published: Path, hidden_inputs: list[Bits]) -> None:
    y = decode_hop(tamper(load(published, *RANGES[1]), noisy(1e-4)), hidden_inputs[1])
    found = compare(y, prefill_hop(load(published, *RANGES[1]), hidden_inputs[1]), hidden_inputs[1], F32)
    assert found.outcome >= Outcome.FAIL


def test_one_replaced_input_position_is_severe_only_from_there_on(published: Path, hidden_inputs: list[Bits]) -> None:
    at = 17
    inputs = hidden_inputs[1]
    swapped = inputs.copy()
    swapped[at] = inputs[at - 1]
    engine = load(published, *RANGES[1])
    y, ours = decode_hop(engine, swapped), prefill_hop(engine, inputs)
    assert compare(y, ours, inputs, F32).outcome is Outcome.SEVERE
    stats = per_position(y, ours, inputs, F32)
    assert stats[:at].max() < 0.25
    assert stats[at] > 10


def test_another_shard_is_severe(published: Path, hidden_inputs: list[Bits]) -> None:
    y = decode_hop(load(published, 2, 5), hidden_inputs[1])
    ours = prefill_hop(load(published, *RANGES[1]), hidden_inputs[1])
    assert compare(y, ours, hidden_inputs[1], F32).outcome is Outcome.SEVERE


def test_a_single_altered_position_counts(published: Path, hidden_inputs: list[Bits]) -> None:
    ours = prefill_hop(load(published, *RANGES[1]), hidden_inputs[1])
    y = ours.copy()
    y[-1] *= 1.001
    found = compare(y, ours, hidden_inputs[1], F32)
    assert (found.outcome, found.position) == (Outcome.SEVERE, len(ours) - 1)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_a_huge_residual_is_not_an_accusation(published: Path, hidden_inputs: list[Bits], scale: float) -> None:
    inputs = (hidden_inputs[1] * scale).astype(np.float32)
    engine = load(published, *RANGES[1])
    y, ours = decode_hop(engine, inputs), prefill_hop(engine, inputs)
    assert compare(y, ours, inputs, F32).worst < 0.5
    # The tolerance on the update alone would accuse: this is why there is a second term.
    error = np.linalg.norm((y - ours).astype(np.float64), axis=1)
    update = np.linalg.norm((ours - inputs).astype(np.float64), axis=1)
    if scale == 1e4:
        assert (error / (3e-5 * update)).max() > 1


def test_a_skipped_layer_shows_behind_a_huge_residual(published: Path, hidden_inputs: list[Bits]) -> None:
    inputs = (hidden_inputs[1] * 100).astype(np.float32)
    y = decode_hop(skipping(load(published, *RANGES[1]), 1), inputs)
    ours = prefill_hop(load(published, *RANGES[1]), inputs)
    assert compare(y, ours, inputs, F32).outcome is Outcome.SEVERE


def test_constant_tokens_are_not_an_accusation(published: Path) -> None:
    ids = np.full(96, 11, dtype=np.int32)
    engine = load(published, *RANGES[0])
    y, ours = decode_hop(engine, ids, prompt=4), prefill_hop(engine, ids)
    assert compare(y, ours, engine.embed(ids), F32).worst < 0.25


def test_an_outlier_dimension_is_not_an_accusation(published: Path, hidden_inputs: list[Bits]) -> None:
    inputs = hidden_inputs[1].copy()
    inputs[:, 3] *= 1000
    engine = load(published, *RANGES[1])
    assert compare(decode_hop(engine, inputs), prefill_hop(engine, inputs), inputs, F32).worst < 0.5


def as_wire(values: Bits) -> Bits:
    from efedllm.commitments.canonical import encode

    return decode(encode(values, BF16), BF16, values.shape[1])


def rows(n: int, d: int = 64, seed: int = 1) -> Bits:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_equal_outputs_are_zero_even_without_an_update() -> None:
    zeros = np.zeros((3, 8), dtype=np.float32)
    assert compare(zeros, zeros, zeros, F32) == HopStatistic(0.0, 0, 0.0, Outcome.PASS)


def test_a_difference_without_a_scale_is_infinite() -> None:
    zeros = np.zeros((3, 8), dtype=np.float32)
    found = compare(zeros + np.float32(1e-30), zeros, zeros, F32)
    assert found.outcome is Outcome.SEVERE
    assert np.isinf(found.worst)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_committed_number_that_is_none_is_severe(bad: float) -> None:
    y = rows(4)
    ours = y.copy()
    y[2, 5] = bad
    found = compare(y, ours, rows(4, seed=2), F32)
    assert (found.outcome, found.position) == (Outcome.SEVERE, 2)


@pytest.mark.parametrize("which", ["ours", "input", "shape", "empty"])
def test_our_own_bad_numbers_accuse_nobody(which: str) -> None:
    y, ours, x = rows(4), rows(4), rows(4, seed=2)
    if which == "ours":
        ours[0, 0] = np.nan
    elif which == "input":
        x[0, 0] = np.inf
    elif which == "shape":
        ours = ours[:3]
    else:
        y, ours, x = y[:0], ours[:0], x[:0]
    with pytest.raises(BackendError):
        compare(y, ours, x, F32)


@pytest.mark.parametrize(
    ("worst", "outcome"),
    [(0.0, 0), (1.0, 0), (1.0000001, 1), (10.0, 1), (10.1, 2), (float("inf"), 2), (float("nan"), 2)],
)
def test_grades(worst: float, outcome: int) -> None:
    assert grade(worst) == outcome


def test_half_a_bf16_step() -> None:
    values = np.array([1.0, 1.5, 2.0, -3.0, 0.0, 1e-40])
    half = bf16_half_step(values)
    assert half[:4].tolist() == [2.0**-8, 2.0**-8, 2.0**-7, 2.0**-7]
    assert half[5] == 2.0**-134


def test_bf16_rounding_alone_is_zero_and_one_large_element_is_not() -> None:
    ours, x = rows(64, 256), rows(64, 256, seed=2)
    y = as_wire(ours)
    assert compare(y, ours, x, BF16).worst == 0.0
    y = y.copy()
    # One element of 16,384: far below the mismatch share, caught by its magnitude.
    y[40, 7] = as_wire(y[40:41] * 1.1)[0, 7]
    found = compare(y, ours, x, BF16)
    assert (found.outcome, found.position) == (Outcome.SEVERE, 40)


@pytest.mark.parametrize(("share", "outcome"), [(0.01, 0), (0.05, 1), (0.2, 2)])
def test_moved_bf16_bits_are_counted_per_chunk(share: float, outcome: int) -> None:
    ours = rows(96, 256)
    y = as_wire(ours)
    moved = np.random.default_rng(3).random((32, 256)) < share
    # Only the middle chunk, by one step towards zero.
    bits = y[32:64].copy().view(np.uint32)
    bits[moved] -= np.uint32(1 << 16)
    y = y.copy()
    y[32:64] = bits.view(np.float32)
    found, grade_ = chunk_mismatch(y, ours)
    assert grade_ == outcome
    assert found == pytest.approx(share, abs=0.01)


def test_a_few_elements_of_a_tiny_chunk_do_not_count() -> None:
    ours = rows(1, 64)
    y = as_wire(ours).copy()
    bits = y.view(np.uint32)
    bits[0, :MISMATCH_FLOOR] -= np.uint32(1 << 16)
    share, outcome = chunk_mismatch(y, ours)
    assert share > 0.1
    assert outcome is Outcome.PASS


def test_a_wide_limit_is_wide_on_a_bf16_wire_too() -> None:
    """Honest rows of a model whose own limit is 1e-3 move more bits than those of one whose limit is TAU."""
    rng = np.random.default_rng(5)
    x = rows(64, 256)
    ours = x + rng.standard_normal(x.shape).astype(np.float32)
    wide = DeviationLimits(tau=3e-3)
    # An eighth of the limit, as calibration leaves it.
    honest = as_wire(ours + np.float32(wide.tau / 8) * rng.standard_normal(x.shape).astype(np.float32))
    assert compare(honest, ours, x, BF16).outcome is Outcome.SEVERE
    assert compare(honest, ours, x, BF16, wide).outcome is Outcome.PASS
    cheat = as_wire(ours * np.float32(1.1))
    assert compare(cheat, ours, x, BF16, wide).outcome is Outcome.SEVERE


@pytest.mark.parametrize("n", [1, 31, 32, 33, 63, 64, 65, 100])
def test_every_position_is_in_one_chunk(n: int) -> None:
    ours = rows(n, 256)
    y = as_wire(ours).copy()
    bits = y.view(np.uint32)
    bits[-1] -= np.uint32(1 << 16)
    share, outcome = chunk_mismatch(y, ours)
    tail = n if n < 64 else 32 + n % 32
    assert share == pytest.approx(1 / tail)
    assert outcome is (Outcome.SEVERE if tail < 10 else Outcome.FAIL if tail < 50 else Outcome.PASS)


def test_two_torch_threads_really_run(published: Path) -> None:
    load(published, *RANGES[1], threads=2)
    assert torch.get_num_threads() == 2


def test_a_model_without_limits_of_its_own_is_measured_more_generously() -> None:
    assert DeviationLimits.of(None).tau == 10 * DeviationLimits().tau
    assert DeviationLimits.of(None).slashable


def test_a_models_own_limits_count_and_an_unslashable_one_never_slashes() -> None:
    x, y = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    off = y * np.float32(1 + 1e-3)
    assert compare(off, y, x, F32).outcome is Outcome.SEVERE
    wide = DeviationLimits(tau=2e-3, rounding=0.0)
    assert compare(off, y, x, F32, wide).outcome is Outcome.PASS
    assert compare(off, y, x, F32, wide).worst == pytest.approx(0.5, rel=1e-3)
    narrow = DeviationLimits(tau=1e-5, rounding=0.0, slashable=False)
    assert compare(off, y, x, F32, narrow).outcome is Outcome.FAIL
    poisoned = off.copy()
    poisoned[0, 0] = np.inf
    # No rounding explains it.
    assert compare(poisoned, y, x, F32, narrow).outcome is Outcome.SEVERE


def test_a_row_that_strays_from_itself_has_as_wide_a_limit() -> None:
    x, y = np.zeros((3, 256), np.float32), rows(3, 256)
    off = y * np.float32(1 + 1e-3)
    away = np.linalg.norm(off.astype(np.float64) - y, axis=1)
    plain = per_position(off, y, x, F32)
    assert (plain > SEVERE_AT).all()
    spread = np.array([away[0] / 4, 0.0, np.inf])
    assert per_position(off, y, x, F32, spread=spread) == pytest.approx([4 / SPREAD_MARGIN, plain[1], 0.0])
    assert compare(off, y, x, F32, spread=spread) == replace(compare(off[1:2], y[1:2], x[1:2], F32), position=1)
    # Its bits on a bf16 wire are not counted either.
    rounded = as_wire(off)
    assert compare(rounded, y, x, BF16).outcome is Outcome.SEVERE
    assert compare(rounded, y, x, BF16, spread=away).outcome is Outcome.PASS
