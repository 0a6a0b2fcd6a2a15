"""Properties of the trust rule, of committees and of slashes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from efedllm_bench.trust import committee as com
from efedllm_bench.trust import rule as r
from efedllm_deploy.profile import Profile
from efedllm_verifier.verdict import Verdict

RULE = r.Rule.of(Profile.load("production"))

verdicts = st.builds(
    lambda passed, failed, severe: Verdict(passed, failed, severe and failed > 0),
    st.integers(0, 255),
    st.integers(0, 127),
    st.booleans(),
)
histories = st.lists(st.tuples(st.integers(1, 90), verdicts), min_size=1, max_size=12)


def one(verdict: Verdict) -> r.Verdicts:
    return r.Verdicts(
        np.array([verdict.passed]), np.array([verdict.failed]), np.array([verdict.severe]), np.array([True])
    )


def played(history: list[tuple[int, Verdict]]) -> tuple[r.TrustState, int]:
    state, epoch = r.fresh(1), 0
    for gap, verdict in history:
        epoch += gap
        state = r.apply(state, RULE, epoch, one(verdict)).state
    return state, epoch


@given(history=histories, more=st.integers(1, 255))
def test_a_pass_never_lowers_trust_and_a_failure_never_raises_it(history: list[tuple[int, Verdict]], more: int) -> None:
    state, epoch = played(history)
    passed = r.apply(state, RULE, epoch + 1, one(Verdict(more, 0, False)))
    failed = r.apply(state, RULE, epoch + 1, one(Verdict(more, 1, False)))
    assert passed.after[0] >= passed.before[0]
    assert failed.after[0] <= failed.before[0]
    assert passed.slash_bps[0] == failed.slash_bps[0] == 0


@given(history=histories)
def test_scores_rates_and_masses_stay_in_their_bounds(history: list[tuple[int, Verdict]]) -> None:
    state, epoch = played(history)
    score = r.trust(state, RULE, epoch + 1)
    assert 0 <= score[0] < r.PPM
    assert RULE.p_min <= r.audit_rate(score, RULE)[0] <= RULE.p_max
    # 64 epochs of full verdicts at most, so a uint64 and an int64 hold the same.
    assert 0 <= state.alpha[0] <= 64 * 255 * r.UNIT + 255 * r.UNIT
    assert 0 <= state.beta[0] <= 64 * 127 * r.FAIL_FACTOR * r.UNIT + 127 * r.FAIL_FACTOR * r.UNIT


@given(history=histories, gap=st.integers(0, 200))
def test_decay_in_two_steps_equals_decay_in_one_within_the_cap(history: list[tuple[int, Verdict]], gap: int) -> None:
    state, epoch = played(history)
    alpha, beta = int(state.alpha[0]), int(state.beta[0])
    for _ in range(min(gap, r.MAX_DECAY_STEPS)):
        alpha -= alpha >> 6
        beta -= beta >> 6
    at = r.decayed(state, epoch + gap)
    assert (int(at[0][0]), int(at[1][0])) == (alpha, beta)


@given(history=histories)
def test_a_severe_failure_excludes_whatever_the_history(history: list[tuple[int, Verdict]]) -> None:
    state, epoch = played(history)
    applied = r.apply(state, RULE, epoch + 1, one(Verdict(0, 1, True)))
    assert r.standing(applied.state, RULE, epoch + 2)[0] == r.EXCLUDED
    until = epoch + 1 + RULE.exclusion_epochs
    assert applied.state.jailed_until[0] >= until
    expected = RULE.slash_first_bps if state.offences[0] == 0 else RULE.slash_repeat_bps
    assert applied.slash_bps[0] == expected


@given(history=histories)
def test_without_a_quorum_nothing_happens(history: list[tuple[int, Verdict]]) -> None:
    state, epoch = played(history)
    none = r.Verdicts(np.array([255]), np.array([127]), np.array([True]), np.array([False]))
    applied = r.apply(state, RULE, epoch + 1, none)
    for name in state.__dataclass_fields__:
        assert (getattr(applied.state, name) == getattr(state, name)).all()
    assert applied.slash_bps[0] == 0


def test_many_nodes_at_once_are_the_same_as_each_alone() -> None:
    rng = np.random.default_rng(3)
    state = r.fresh(50)
    alone = [r.fresh(1) for _ in range(50)]
    for epoch in range(1, 40):
        passed, failed = rng.integers(0, 256, 50), rng.integers(0, 128, 50) * (rng.random(50) < 0.1)
        severe, judged = (failed > 0) & (rng.random(50) < 0.5), rng.random(50) < 0.7
        state = r.apply(state, RULE, epoch, r.Verdicts(passed, failed, severe, judged)).state
        for i in range(50):
            part = r.Verdicts(passed[i : i + 1], failed[i : i + 1], severe[i : i + 1], judged[i : i + 1])
            alone[i] = r.apply(alone[i], RULE, epoch, part).state
    for name in state.__dataclass_fields__:
        assert getattr(state, name).tolist() == [int(getattr(item, name)[0]) for item in alone]


@given(said=st.lists(verdicts, min_size=1, max_size=15), drawn=st.integers(1, 15))
def test_a_final_verdict_needs_two_thirds_and_severe_implies_failed(said: list[Verdict], drawn: int) -> None:
    said = said[:drawn]
    final = com.final([com.Said(verdict) for verdict in said], drawn)
    assert (final is not None) == (3 * len(said) >= 2 * drawn)
    if final is not None and final.severe:
        assert final.failed > 0


@given(active=st.integers(0, 2**96), unbonding=st.integers(0, 2**96), bps=st.integers(0, 10_000))
def test_a_slash_rounds_against_the_offender_and_takes_no_more_than_there_is(
    active: int, unbonding: int, bps: int
) -> None:
    before = com.Stake(active, unbonding)
    after, burned = com.slash(before, bps)
    assert before.total - after.total == burned
    assert burned * 10_000 >= before.total * bps
    assert burned <= before.total
    # Leaving never pays: the unbonding part gives at least its share.
    assert (unbonding - after.unbonding) * before.total >= burned * unbonding
    assert min(after.active, after.unbonding) >= 0


def test_one_opposite_verdict_costs_every_point_of_the_epoch() -> None:
    finals = {"a": com.Final(30, 0, False), "b": com.Final(0, 10, True), "c": None}
    honest = {"a": Verdict(40, 0, False), "b": Verdict(0, 20, True), "c": Verdict(9, 9, False)}
    assert com.judge({n: com.Said(v) for n, v in honest.items()}, finals, 200) == com.Judgement(com.OK, 40, 0)
    lazy = {name: com.Said(Verdict(10, 0, False)) for name in honest}
    assert com.judge(lazy, finals, 200) == com.Judgement(com.DEVIATED, 0, 200)


PASS, FAIL = Verdict(30, 0, False), Verdict(0, 10, True)


def test_a_pass_without_the_agreed_tap_costs_the_points_and_the_stake_once() -> None:
    said = [com.Said(PASS, 7)] * 5 + [com.Said(PASS, 8), com.Said(PASS)]
    final = com.final(said, 7)
    assert final == com.Final(30, 0, False, 7)
    finals = {"a": final, "b": final, "c": None}
    judged = [com.judge(dict.fromkeys("abc", item), finals, 200) for item in said]
    assert judged == [com.Judgement(com.OK, 60, 0)] * 5 + [com.Judgement(com.TAP_DIFFERS, 0, 200)] * 2
    mixed = {"a": com.Said(PASS, 8), "b": com.Said(FAIL)}
    assert com.judge(mixed, finals, 200) == com.Judgement(com.DEVIATED, 0, 200)


def test_who_failed_a_node_is_not_asked_for_its_tap_and_lends_it_no_vote() -> None:
    final = com.final([com.Said(PASS, 7)] * 4 + [com.Said(FAIL, 7)] * 3, 7)
    assert final is not None
    assert final.tap == 0
    failed = com.final([com.Said(PASS, 7)] * 2 + [com.Said(FAIL)] * 5, 7)
    assert failed is not None
    assert com.judge({"a": com.Said(FAIL)}, {"a": failed}, 200) == com.Judgement(com.OK, 10, 0)


@given(taps=st.lists(st.integers(0, 3), min_size=1, max_size=15), drawn=st.integers(1, 15))
def test_zero_is_never_agreed_and_a_tap_needs_two_thirds(taps: list[int], drawn: int) -> None:
    taps = taps[:drawn]
    tap = com.agreed([com.Said(PASS, tap) for tap in taps], drawn)
    ready = [t for t in (1, 2, 3) if 3 * taps.count(t) >= 2 * drawn]
    assert tap == (ready[0] if ready else 0)


verdicts = st.builds(Verdict, st.integers(0, 255), st.integers(0, 3), st.just(False)) | st.builds(
    Verdict, st.integers(0, 255), st.integers(1, 3), st.booleans()
)


@given(said=st.lists(st.builds(com.Said, verdicts, st.integers(0, 2)), min_size=1, max_size=15))
def test_a_verdict_opposite_to_the_median_deviates_and_no_tap_beside_a_failure_changes_that(
    said: list[com.Said],
) -> None:
    decided = com.final(said, len(said))
    assert decided is not None
    assert (decided.passed, decided.failed) == com.outcome([item.verdict for item in said])[:2]
    assert decided.units == decided.passed + decided.failed
    for item in said:
        judged = com.judge({"a": item}, {"a": decided}, 200)
        failed = item.verdict.failed != 0
        if failed != (decided.failed != 0):
            assert judged == com.Judgement(com.DEVIATED, 0, 200)
        elif failed:
            assert judged == com.Judgement(com.OK, decided.units, 0)
