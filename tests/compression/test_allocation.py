"""The budget goes where it saves most, in forms of single matrices and of groups."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.compression.allocation import Option, choose, combine, front
from efedllm.compression.plan import (
    INT8,
    Choice,
    Group,
    Measured,
    allocate_groups,
    budget_bytes,
    partitions,
    plan_from_json,
    plan_to_json,
)
from efedllm.errors import ConfigError

SHAPES = {"q": (64, 64), "k": (32, 64), "v": (32, 64), "down": (64, 176)}
GROUP: Group = ("q", "k", "v")


def options(*figures: tuple[int, float]) -> list[Option]:
    return [Option(((f"{size}", None),), size, loss) for size, loss in figures]


@st.composite
def some_options(draw: st.DrawFn) -> list[Option]:
    pairs = draw(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 1000)), min_size=1, max_size=5))
    return options(*((size, float(loss)) for size, loss in pairs))


@settings(deadline=None)
@given(units=st.lists(some_options(), min_size=1, max_size=3), allowed=st.integers(1, 150))
def test_the_choice_is_within_the_budget_and_near_the_best(units: list[list[Option]], allowed: int) -> None:
    """The greedy way loses at most what one more step of the unit it stopped at would have saved."""
    chosen = choose({str(i): unit for i, unit in enumerate(units)}, allowed)
    fitting = [c for c in itertools.product(*units) if sum(o.nbytes for o in c) <= allowed]
    if chosen is None:
        assert not [c for c in itertools.product(*(front(u)[:1] for u in units)) if sum(o.nbytes for o in c) <= allowed]
        return
    assert sum(one.nbytes for one in chosen.values()) <= allowed
    best = min(sum(o.loss for o in c) for c in fitting)
    worst_step = max(a.loss - b.loss for u in units for a, b in itertools.pairwise([*front(u), front(u)[-1]]))
    assert sum(one.loss for one in chosen.values()) <= best + worst_step


def test_a_front_is_convex_and_fronts_add_up() -> None:
    a = front(options((10, 100.0), (20, 90.0), (30, 20.0), (40, 19.0), (50, 30.0)))
    assert [o.nbytes for o in a] == [10, 30, 40]
    both = combine([a, front(options((1, 5.0), (2, 0.0)))])
    assert [(o.nbytes, o.loss) for o in both] == [(11, 105.0), (12, 100.0), (32, 20.0), (42, 19.0)]
    assert all(len(o.choices) == 2 for o in both)


def falling(rank: int, start: float, pace: float) -> tuple[float, ...]:
    return tuple(start * pace**i for i in range(rank + 1))


def layer(shared: float) -> Measured:
    """Losses of a layer in which a common v of q, k, v is worth more (small `shared`) or less than their own."""
    spectra: dict[Group, tuple[float, ...]] = {(name,): falling(31, 1.0, 0.9) for name in GROUP}
    spectra |= {
        ("down",): falling(46, 1.0, 0.9),
        GROUP: falling(42, 3.0 * shared, 0.9),
        ("k", "v"): falling(32, 2.0, 0.9),
    }
    return Measured((GROUP, ("down",)), {name: {INT8: 1e-4} for name in SHAPES}, spectra)


@pytest.mark.parametrize("budget", [0.15, 0.2, 0.3, 0.4, 0.5])
def test_factors_stay_within_the_budget_and_use_it(budget: float) -> None:
    plan = allocate_groups(SHAPES, [layer(1.0)], budget, int8=True)
    used = sum(choice.nbytes(SHAPES[name], name=name) for name, choice in plan.items())
    assert 0.85 * budget_bytes(SHAPES, budget) < used <= budget_bytes(SHAPES, budget)
    assert plan_from_json(plan_to_json(plan)) == plan


def test_v_is_shared_where_that_loses_less_and_bytes_are_counted_once() -> None:
    plan = allocate_groups(SHAPES, [layer(0.3)], 0.3, int8=True)
    assert [plan[name].stack for name in GROUP] == ["q", "q", "q"]
    assert len({plan[name].rank for name in GROUP}) == 1
    rank = plan["q"].rank
    sizes = [plan[name].nbytes(SHAPES[name], name=name) for name in GROUP]
    assert sizes == [rank * (64 + 64) + 4 * (64 + rank), 32 * (rank + 4), 32 * (rank + 4)]
    plan = allocate_groups(SHAPES, [layer(30.0)], 0.3, int8=True)
    assert plan["q"].stack == ""


def test_matrices_stay_dense_where_factors_do_not_pay() -> None:
    plan = allocate_groups(SHAPES, [layer(1.0)], 0.55, int8=True)
    assert set(plan.values()) == {INT8}
    bare = Measured(layer(1.0).groups, {}, layer(1.0).spectra)
    assert all(choice.rank for choice in allocate_groups(SHAPES, [bare], 0.55, int8=True).values())


def test_no_matrix_gets_less_than_a_share_of_an_even_rank() -> None:
    spectra = dict(layer(1.0).spectra) | {("down",): (1e-9,) * 47}
    plan = allocate_groups(SHAPES, [Measured((GROUP, ("down",)), {}, spectra)], 0.4, int8=True)
    assert plan["down"].rank >= int(0.3 * 0.8 * 64 * 176 / 240)


def test_budgets_that_no_form_fits_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        allocate_groups(SHAPES, [layer(1.0)], 0.02, int8=True)
    assert caught.value.code == "budget-too-small"


def test_the_ways_to_store_a_group() -> None:
    assert partitions(("a",)) == [[("a",)]]
    assert partitions(("a", "b")) == [[("a",), ("b",)], [("a", "b")]]
    assert partitions(GROUP) == [[("q",), ("k",), ("v",)], [GROUP], [("q",), ("k", "v")]]


def test_bytes_of_a_choice() -> None:
    assert Choice(16, rank=4).nbytes((10, 20)) == 2 * 4 * 30
    assert Choice(8, rank=4).nbytes((10, 20)) == 4 * 30 + 4 * 14
    assert Choice(8, rank=4, stack="a").nbytes((10, 20), name="b") == 4 * 10 + 4 * 10
