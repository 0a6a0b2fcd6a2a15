"""The allocation keeps the budget and gives the bytes to what needs them."""

from __future__ import annotations

import pytest

from efedllm.compression.factor import rank_for
from efedllm.compression.plan import (
    DENSE,
    INT8,
    Choice,
    all_int8,
    allocate,
    budget_bytes,
    factored_bytes,
    keep_within,
    lowrank_int4,
    plan_from_json,
    plan_to_json,
)
from efedllm.errors import ConfigError

SHAPES = {"q": (256, 256), "v": (128, 256), "up": (704, 256), "down": (256, 704)}
FORMS = (Choice(2, 64), Choice(3, 64), Choice(4, 64), Choice(5, 64), Choice(6, 64), INT8, DENSE)


def table(weights: dict[str, float]) -> dict[str, dict[Choice, float]]:
    """Losses that quarter with each bit."""
    return {name: {c: 0.0 if c == DENSE else weight * 4.0**-c.bits for c in FORMS} for name, weight in weights.items()}


@pytest.mark.parametrize("budget", [0.15, 0.2, 0.3, 0.4, 0.5, 0.8, 1.0])
def test_the_budget_is_kept_and_used(budget: float) -> None:
    chosen = allocate(SHAPES, table(dict.fromkeys(SHAPES, 1.0)), budget)
    used = sum(chosen[name].nbytes(shape) for name, shape in SHAPES.items())
    assert used <= budget_bytes(SHAPES, budget)
    assert used > 0.75 * budget_bytes(SHAPES, budget)


def test_sensitive_matrices_get_more_bits() -> None:
    chosen = allocate(SHAPES, table({"q": 1.0, "v": 100.0, "up": 1.0, "down": 1.0}), 0.3)
    assert chosen["v"].bits > max(chosen[name].bits for name in ("q", "up", "down"))
    assert plan_from_json(plan_to_json(chosen)) == chosen


def test_a_budget_below_the_smallest_forms_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs 0\.13") as caught:
        allocate(SHAPES, table(dict.fromkeys(SHAPES, 1.0)), 0.1)
    assert caught.value.code == "budget-too-small"
    for plan in (lowrank_int4, lambda shapes, budget, _rank: all_int8(shapes, budget)):
        with pytest.raises(ConfigError) as caught:
            plan(SHAPES, 0.2, 8)
        assert caught.value.code == "budget-too-small"


@pytest.mark.parametrize("budget", [0.26, 0.28, 0.3, 0.35, 0.45, 0.6])
def test_the_rank_beside_int4_is_the_largest_that_fits(budget: float) -> None:
    chosen = lowrank_int4(SHAPES, budget, 8)
    used = sum(choice.nbytes(SHAPES[name]) for name, choice in chosen.items())
    assert used <= budget_bytes(SHAPES, budget)
    assert all(choice.bits in (4, 8) for choice in chosen.values())
    ranks = {choice.rank for choice in chosen.values() if choice.bits == 4}
    assert len(ranks) <= 1
    assert (ranks and max(ranks) > 0) == (budget > 0.27) or budget >= 0.6


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("budget", [0.1, 0.3, 0.45])
def test_keep_is_the_largest_within_the_budget(budget: float, int8: bool) -> None:
    def used(keep: float) -> int:
        return sum(factored_bytes(shape, rank_for(keep, *shape), int8=int8) for shape in SHAPES.values())

    keep = keep_within(SHAPES, budget, int8=int8)
    assert used(keep) <= budget_bytes(SHAPES, budget) < used(keep + 0.02)
