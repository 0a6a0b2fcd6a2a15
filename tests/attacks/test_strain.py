"""Inputs searched to strain honest machines (24): the verifier's second look, and the same bits of exact kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor
from efedllm.engine.select import load_executor
from efedllm_bench.attacks.lab import GREEDY, RANGES, Lab, LabJob, decoded, prefilled, spec_of
from efedllm_bench.attacks.search import strained_inputs as strain
from efedllm_bench.attacks.search.differentiable import DifferentiableHop
from efedllm_bench.attacks.search.strained_exact import outcome, search_exact, two_kernels
from efedllm_bench.cheats.catalog import attack
from efedllm_bench.cheats.outputs import counter_normal
from efedllm_verifier.conditioning import own_spread
from efedllm_verifier.rerun import compared
from efedllm_verifier.statistic import HALF_LIMITS, SPREAD_MARGIN, Outcome, compare, per_position

HOP = 1
SMALL = strain.Effort(rows=12, descents=60, short=10, generations=1, children=4, tokens=1)


@pytest.fixture(scope="module")
def cancelled(float_lab: Lab) -> strain.Rows:
    """Rows of a text, moved until the first layer of a hop nearly cancels them."""
    gradient = DifferentiableHop.load(float_lab.published, *RANGES[HOP])
    text = np.asarray(float_lab.inputs(float_lab.jobs[0], HOP)[:16], np.float32)
    return strain.cancelling(gradient, text, 1, 500, 0.02)


def sent(lab: Lab, rows: strain.Rows, output: strain.Rows) -> LabJob:
    """A job in which the node before sent `rows` and the hop answered `output`."""
    spec = spec_of(0, lab.jobs[0].prompt[: len(rows)], 1, GREEDY, WireDtype.F32)
    ids = np.zeros(len(rows), "<i4").tobytes()
    boundaries = (ids, encode(rows, WireDtype.F32), encode(output, WireDtype.F32), b"")
    return LabJob(spec, lab.jobs[0].prompt[: len(rows)], boundaries, ())


def test_gradients_flow_through_what_the_engine_computes(float_lab: Lab) -> None:
    for hop, engine in enumerate(float_lab.engines):
        given = float_lab.inputs(float_lab.jobs[0], hop)
        gradient = DifferentiableHop.load(float_lab.published, *RANGES[hop])
        x = gradient.embed(given) if hop == 0 else torch.tensor(given)
        ours = prefilled(engine, given)
        assert np.abs(gradient.states(x).detach().numpy() - ours).max() <= 1e-5 * np.abs(ours).max()
        twice = gradient.states(torch.cat([x, x]), sequences=2).detach().numpy()
        assert np.abs(twice[len(x) :] - ours).max() <= 1e-5 * np.abs(ours).max()


def test_a_node_that_was_sent_rows_made_to_strain_it_is_not_accused(float_lab: Lab, cancelled: strain.Rows) -> None:
    """By the model's limits alone its honest answer would fail: what is wrong are the rows, and who sent them."""
    engine = float_lab.engines[HOP]
    ours, theirs = prefilled(engine, cancelled), decoded(engine, cancelled, 4)
    assert compare(theirs, ours, cancelled, WireDtype.F32, float_lab.limits).outcome is not Outcome.PASS
    honest = sent(float_lab, cancelled, theirs)
    assert float_lab.judge(honest, HOP).outcome is Outcome.PASS
    # The look is of the input: whoever cheats on the same rows is found.
    cheat = attack("skip_layer").arm(float_lab.shop(), engine)
    guilty = sent(float_lab, cancelled, decoded(cheat, cancelled, 4))
    assert float_lab.judge(guilty, HOP).outcome is Outcome.SEVERE


def test_a_node_that_declares_bfloat16_is_not_slashed_for_such_rows(float_lab: Lab, cancelled: strain.Rows) -> None:
    engine = float_lab.engines[HOP]
    half = load_executor(float_lab.published, *RANGES[HOP], half=True)
    ours, theirs = prefilled(engine, cancelled), prefilled(half, cancelled)
    assert per_position(theirs, ours, cancelled, WireDtype.F32, HALF_LIMITS).max() > 1
    found = compared(engine, cancelled, theirs, ours, cancelled, WireDtype.F32, HALF_LIMITS, b"leaf")
    assert found.outcome is Outcome.PASS
    cheat = attack("skip_layer").arm(float_lab.shop(), half)
    skipped = prefilled(cheat, cancelled)
    wrong = compared(engine, cancelled, skipped, ours, cancelled, WireDtype.F32, HALF_LIMITS, b"leaf")
    assert wrong.outcome is not Outcome.PASS


@pytest.mark.parametrize("hop", range(len(RANGES)))
def test_rows_that_nobody_made_for_it_keep_their_limits(float_lab: Lab, hop: int) -> None:
    """The second look passes nothing on ordinary rows: tau is already as many times what honest machines stray by."""
    engine, given = float_lab.engines[hop], float_lab.inputs(float_lab.jobs[0], hop)
    ours = prefilled(engine, given)
    x = np.asarray(engine.embed(given) if hop == 0 else given, np.float32)
    spread = own_spread(engine, given, ours, b"leaf")
    # Ids are computed again in pieces: some processors give the same bits for the first rows.
    assert (spread > 0).any() if hop == 0 else (spread > 0).all()
    off = ours + counter_normal(b"off", ours.shape) * np.float32(1e-4)
    plain = per_position(off, ours, x, WireDtype.F32, float_lab.limits)
    assert np.array_equal(plain, per_position(off, ours, x, WireDtype.F32, float_lab.limits, spread))
    allowed = np.linalg.norm(off.astype(np.float64) - ours, axis=1) / plain
    assert (SPREAD_MARGIN * spread < allowed).all()


def test_what_moves_rows_follows_from_the_leaf(float_lab: Lab, cancelled: strain.Rows) -> None:
    engine = float_lab.engines[HOP]
    ours = prefilled(engine, cancelled)
    once, again, other = (own_spread(engine, cancelled, ours, seed) for seed in (b"leaf", b"leaf", b"another"))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_rows_at_the_end_of_float32_can_still_be_judged(float_lab: Lab) -> None:
    engine = float_lab.engines[HOP]
    given = np.full((4, float_lab.hidden), np.finfo(np.float32).max, np.float32)
    ours = np.zeros_like(given)
    assert own_spread(engine, given, ours, b"leaf").shape == (4,)


def test_on_a_bf16_wire_rows_that_stray_are_not_counted_bit_by_bit(float_lab: Lab, cancelled: strain.Rows) -> None:
    engine = float_lab.engines[HOP]
    ours, theirs = prefilled(engine, cancelled), decoded(engine, cancelled, 4)
    rounded = np.asarray(decode(encode(theirs, WireDtype.BF16), WireDtype.BF16, float_lab.hidden), np.float32)
    found = compared(engine, cancelled, rounded, ours, cancelled, WireDtype.BF16, float_lab.limits, b"leaf")
    assert found.outcome is Outcome.PASS


def test_a_search_for_strained_inputs_accuses_nobody(float_lab: Lab) -> None:
    tried = strain.search(float_lab, SMALL, lambda _: None)
    report = strain.report(tried)
    assert report["false_accusations"] == 0
    assert set(report["by_kind"]) == {"token ids", "rows of hop 1", "rows of hop 2"}
    assert all(kind["largest_settled"] < 0.8 for kind in report["by_kind"].values())
    half = strain.in_bfloat16(float_lab, strain.hardest(tried))
    assert half["inputs"] > 4
    assert (half["severe"], half["false_accusations"]) == (0, 0)
    # The same search gives the same inputs.
    again = strain.search_tokens(float_lab, SMALL, lambda _: None)
    assert [one.given.tobytes() for one in again] == [one.given.tobytes() for one in tried[: len(again)]]
    assert {one.hop for one in strain.hardest(tried)} == {0, 1, 2}


def test_strained_inputs_give_the_same_bits_by_two_exact_kernels(exact_lab: Lab) -> None:
    found = search_exact(exact_lab, replace(SMALL, descents=20), lambda _: None)
    assert found.differing == []
    assert found.kernels[0] != found.kernels[1]
    assert found.inputs > 60
    assert sum(found.refused.values()) + sum(map(len, found.computed.values())) == found.inputs


def test_rows_that_no_kernel_can_compute_are_refused_by_both(exact_lab: Lab) -> None:
    given = np.full((3, exact_lab.hidden), np.finfo(np.float32).max, np.float32)
    given[:, ::2] *= -1
    engines: list[Executor] = [
        ExactShardEngine.load(exact_lab.published, *RANGES[HOP], kernel=kernel) for kernel in two_kernels()
    ]
    poisoned = given.copy()
    poisoned[1, 5] = np.inf
    assert {outcome(engine, poisoned, "at once") for engine in engines} == {b"bad-input"}
    assert len({outcome(engine, given, way) for engine in engines for way in ("at once", "one by one")}) == 1
