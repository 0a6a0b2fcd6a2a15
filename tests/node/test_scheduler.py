"""Which positions share a forward pass, from literal states."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from efedllm_node.compute.scheduler import BatchLimits, Share, Waiting, plan_batch

LIMITS = BatchLimits(tokens=10, jobs=4, chunk=6, starvation=3)


def waiting(*states: tuple[str, int, int]) -> list[Waiting]:
    return [Waiting(name.encode(), positions, rounds) for name, positions, rounds in states]


def shares(*parts: tuple[str, int]) -> tuple[Share, ...]:
    return tuple(Share(name.encode(), positions) for name, positions in parts)


def test_nothing_waits() -> None:
    assert plan_batch([], LIMITS) == ()
    assert plan_batch(waiting(("a", 0, 9)), LIMITS) == ()


def test_single_positions_go_before_prompts() -> None:
    state = waiting(("prompt", 40, 1), ("a", 1, 0), ("b", 1, 0))
    assert plan_batch(state, LIMITS) == shares(("a", 1), ("b", 1), ("prompt", 6))


def test_the_longest_waiting_goes_first_in_its_group() -> None:
    state = waiting(("a", 1, 0), ("b", 1, 2), ("c", 1, 1), ("long", 30, 0), ("longer", 30, 2))
    assert plan_batch(state, LIMITS) == shares(("b", 1), ("c", 1), ("a", 1), ("longer", 6))


def test_a_prompt_passed_over_too_often_goes_first() -> None:
    state = waiting(("a", 1, 0), ("b", 1, 0), ("c", 1, 0), ("d", 1, 0), ("prompt", 30, 3))
    assert plan_batch(state, LIMITS) == shares(("prompt", 6), ("a", 1), ("b", 1), ("c", 1))


def test_a_second_prompt_takes_what_room_is_left() -> None:
    assert plan_batch(waiting(("p", 30, 0), ("q", 30, 0)), LIMITS) == shares(("p", 6), ("q", 4))


states = st.lists(
    st.builds(Waiting, st.binary(min_size=1, max_size=4), st.integers(0, 50), st.integers(0, 6)),
    max_size=12,
    unique_by=lambda w: w.key,
)


@given(states)
def test_every_pass_is_within_its_limits_and_never_idle(state: list[Waiting]) -> None:
    plan = plan_batch(state, LIMITS)
    sizes = {w.key: w.positions for w in state}
    assert len(plan) <= LIMITS.jobs
    assert len({share.key for share in plan}) == len(plan)
    assert sum(share.positions for share in plan) <= LIMITS.tokens
    assert all(1 <= share.positions <= min(sizes[share.key], LIMITS.chunk) for share in plan)
    assert bool(plan) == any(w.positions for w in state)


@given(states)
def test_nobody_waits_for_ever(state: list[Waiting]) -> None:
    """Serving what is planned again and again serves everyone, within a bounded number of passes."""
    left = {w.key: w.positions for w in state}
    rounds = {w.key: w.rounds for w in state}
    passes = 0
    while any(left.values()):
        plan = plan_batch([Waiting(key, n, rounds[key]) for key, n in left.items()], LIMITS)
        served = {share.key: share.positions for share in plan}
        for key in left:
            rounds[key] = 0 if key in served else rounds[key] + 1
            left[key] -= served.get(key, 0)
        passes += 1
        assert passes <= sum(w.positions for w in state)


def test_a_whole_text_is_never_cut() -> None:
    fits = Waiting(b"fits", LIMITS.chunk + 1, 5, whole=True)
    long = Waiting(b"long", LIMITS.tokens + 3, 9, whole=True)
    assert plan_batch([fits], LIMITS) == (Share(b"fits", LIMITS.chunk + 1),)
    # Longer than any pass: alone, when its turn comes.
    assert plan_batch([long, fits], LIMITS) == (Share(b"long", LIMITS.tokens + 3),)
    for other in plan_batch([fits, Waiting(b"next", LIMITS.tokens, 0, whole=True)], LIMITS):
        assert other == Share(b"fits", LIMITS.chunk + 1)
