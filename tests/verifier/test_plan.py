"""What a verifier does next, on literal states."""

from __future__ import annotations

from dataclasses import replace

import pytest

from efedllm.chain.types import ChainTime, chain_time
from efedllm_verifier.plan import (
    ArmSeed,
    AuditNode,
    AuditProgress,
    Claim,
    Commit,
    EpochState,
    Finalize,
    FixSeed,
    Judge,
    NodeWork,
    Reveal,
    Timing,
    plan,
    plan_claims,
    turn,
)

ME, BEN, CAT = "0xMe", "0xBen", "0xCat"
X, Y = "0xNodeX", "0xNodeY"
LENGTH = 60
# In epoch 6 it is our turn first, then Ben's, then Cat's.
EPOCH = 6
TIMING = Timing(stagger=1 / 60, commit_by=0.75, seed_lifetime=256)


def at(second: int, *, block: int = 1000, epoch: int = EPOCH + 1) -> ChainTime:
    """`second` of the epoch that judges EPOCH."""
    return chain_time(block, (epoch - 1) * LENGTH + second, 0, LENGTH)


def work(node: str, audit: AuditProgress = AuditProgress.NONE, **more: object) -> NodeWork:
    return replace(NodeWork(node, (ME, BEN, CAT), audit), **more)  # type: ignore[arg-type]


def fresh(**more: object) -> EpochState:
    state = EpochState(EPOCH, ME, (ME, BEN, CAT), (NodeWork(X), NodeWork(Y)))
    return replace(state, **more)  # type: ignore[arg-type]


def seeded(*nodes: NodeWork, **more: object) -> EpochState:
    return fresh(seed=b"s" * 32, nodes=nodes or (work(X), work(Y)), **more)


def test_nothing_without_work_or_without_a_seat() -> None:
    assert plan(fresh(nodes=()), at(1), TIMING) == []
    assert plan(fresh(me="0xStranger"), at(1), TIMING) == []


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH, EPOCH + 2])
def test_nothing_outside_the_judging_epoch(epoch: int) -> None:
    assert plan(seeded(), at(1, epoch=epoch), TIMING) == []


def test_the_order_of_turns_rotates() -> None:
    assert [turn(fresh(me=me)) for me in (ME, BEN, CAT)] == [0, 1, 2]
    assert [turn(fresh(me=me, epoch=EPOCH + 1)) for me in (ME, BEN, CAT)] == [1, 2, 0]


def test_the_first_arms_at_once_and_the_next_a_second_later() -> None:
    assert plan(fresh(), at(0), TIMING) == [ArmSeed(EPOCH)]
    assert plan(fresh(me=BEN), at(0), TIMING) == []
    assert plan(fresh(me=BEN), at(1), TIMING) == [ArmSeed(EPOCH)]


def test_fixing_waits_for_the_target_block() -> None:
    armed = fresh(armed_block=1002)
    assert plan(armed, at(3, block=1002), TIMING) == []
    assert plan(armed, at(3, block=1003), TIMING) == [FixSeed(EPOCH)]
    assert plan(replace(armed, me=CAT), at(3, block=1004), TIMING) == []
    assert plan(replace(armed, me=CAT), at(3, block=1005), TIMING) == [FixSeed(EPOCH)]


def test_a_seed_nobody_fixed_in_time_is_armed_again() -> None:
    assert plan(fresh(armed_block=700), at(5, block=1000), TIMING) == [ArmSeed(EPOCH)]


def test_no_seed_work_after_the_commit_phase() -> None:
    assert plan(fresh(), at(20), TIMING) == []
    assert plan(fresh(), at(45), TIMING) == []


def test_every_duty_is_audited_once() -> None:
    assert plan(seeded(), at(5), TIMING) == [AuditNode(EPOCH, X), AuditNode(EPOCH, Y)]
    assert plan(seeded(work(X, AuditProgress.RUNNING), work(Y)), at(5), TIMING) == [AuditNode(EPOCH, Y)]
    other = NodeWork(Y, (BEN, CAT))
    assert plan(seeded(work(X), other), at(5), TIMING) == [AuditNode(EPOCH, X)]


def test_commit_when_every_duty_is_settled() -> None:
    assert plan(seeded(work(X, AuditProgress.DONE), work(Y, AuditProgress.RUNNING)), at(5), TIMING) == []
    state = seeded(work(X, AuditProgress.DONE), work(Y, AuditProgress.ABSTAINED))
    assert plan(state, at(5), TIMING) == [Commit(EPOCH, (X,), False)]


def test_commit_what_is_there_before_the_phase_ends() -> None:
    state = seeded(work(X, AuditProgress.DONE), work(Y, AuditProgress.RUNNING))
    assert plan(state, at(14), TIMING) == []
    assert plan(state, at(15), TIMING) == [Commit(EPOCH, (X,), False)]
    assert plan(state, at(20), TIMING) == []


def test_nothing_to_commit_when_we_abstained_from_all() -> None:
    state = seeded(work(X, AuditProgress.ABSTAINED), work(Y, AuditProgress.ABSTAINED))
    assert plan(state, at(19), TIMING) == []


def test_a_prepared_attestation_is_sent_again_and_no_second_one_made() -> None:
    state = seeded(work(X, AuditProgress.DONE), work(Y), prepared=True)
    assert plan(state, at(5), TIMING) == [Commit(EPOCH, (X,), True)]
    assert plan(replace(state, committed=True), at(5), TIMING) == []


def test_reveal_once_in_its_phase_only() -> None:
    state = seeded(work(X, AuditProgress.DONE), prepared=True, committed=True)
    assert plan(state, at(19), TIMING) == []
    assert plan(state, at(20), TIMING) == [Reveal(EPOCH)]
    assert plan(state, at(39), TIMING) == [Reveal(EPOCH)]
    assert plan(replace(state, revealed=True), at(21), TIMING) == []


def test_what_was_not_committed_or_whose_salt_is_lost_is_not_revealed() -> None:
    assert plan(seeded(prepared=True), at(21), TIMING) == []
    assert plan(seeded(committed=True), at(21), TIMING) == []


def test_finalize_what_has_reveals_in_turn() -> None:
    state = seeded(work(X, reveals=3), work(Y), prepared=True, committed=True, revealed=True)
    assert plan(state, at(40), TIMING) == [Finalize(EPOCH, (X,))]
    assert plan(replace(state, me=CAT), at(41), TIMING) == []
    assert plan(replace(state, me=CAT), at(42), TIMING) == [Finalize(EPOCH, (X,))]


def test_judge_by_what_each_revealed_or_missed() -> None:
    state = seeded(
        work(X, finalized=True, reveals=2, quorum=True),
        work(Y, finalized=True, reveals=2, quorum=True),
        revealed_by=((ME, (X, Y)), (BEN, (Y,))),
        committed_by=frozenset({ME, BEN}),
    )
    assert plan(state, at(45), TIMING) == [
        Judge(EPOCH, ME, (X, Y)),
        Judge(EPOCH, BEN, (Y,)),
        Judge(EPOCH, CAT, (X, Y)),
    ]
    assert plan(replace(state, judged=frozenset({ME, BEN, CAT})), at(45), TIMING) == []


def test_a_silent_verifier_is_judged_only_where_the_others_had_a_quorum() -> None:
    lone = seeded(work(X, finalized=True, reveals=1, quorum=False), revealed_by=((BEN, (X,)),))
    assert plan(lone, at(45), TIMING) == [Judge(EPOCH, BEN, (X,))]
    broken_word = replace(lone, committed_by=frozenset({BEN, CAT}))
    assert plan(broken_word, at(45), TIMING) == [Judge(EPOCH, BEN, (X,)), Judge(EPOCH, CAT, (X,))]


def test_nobody_is_judged_for_work_that_nobody_judged() -> None:
    assert plan(seeded(work(X), work(Y)), at(45), TIMING) == []


def test_claims_wait_two_epochs_and_come_oldest_first() -> None:
    now = at(0, epoch=9)
    assert plan_claims({8, 7, 6, 3}, now) == [Claim((3, 6, 7))]
    assert plan_claims({8}, now) == []
    assert plan_claims(range(1, 8), now, limit=2) == [Claim((1, 2))]


def test_planning_twice_on_one_state_gives_the_same() -> None:
    for second in range(LENGTH):
        state = seeded(work(X, AuditProgress.DONE), work(Y, AuditProgress.DONE))
        assert plan(state, at(second), TIMING) == plan(state, at(second), TIMING)
