"""Perturbations inside the tolerance, aimed by many steps of gradient ascent (9): what passes, and what it can do."""

from __future__ import annotations

import numpy as np
import torch

from efedllm_bench.attacks.lab import Lab, prompts
from efedllm_bench.attacks.search import gradient as descent


def quiet(_: str) -> None:
    """Says nothing."""


def test_what_the_last_hop_can_do_inside_the_tolerance(float_lab: Lab) -> None:
    (text,) = prompts(1, 40)
    found = descent.last_hop(float_lab, [text], steps=6)
    assert (found.positions, found.accused, found.audits) == (40, 0, 1)
    assert 0.9 < found.largest_statistic <= 1.0
    # Every row gains, and steps after the first lose nothing.
    assert all(0 < one.first <= one.gain for one in found.reached)
    # A token is replaced where its lead is within what was gained and the rule for tokens lets pass, and nowhere else.
    assert all(one.lead < one.gain + 0.01 for one in found.reached if one.flipped)
    assert found.flips == sum(one.flipped for one in found.reached)


def test_with_a_wider_tolerance_tokens_are_replaced_and_the_audit_finds_it(float_lab: Lab) -> None:
    (text,) = prompts(1, 40)
    narrow, wide = (descent.last_hop(float_lab, [text], times=times, steps=6) for times in (1.0, 200.0))
    assert wide.flips > max(narrow.flips, 3)
    assert wide.accused == wide.audits == 1
    assert wide.largest_statistic > 100
    # Within so small a ball the margin is nearly linear.
    assert np.median([one.gain for one in wide.reached]) > 100 * np.median([one.gain for one in narrow.reached])


def test_all_hops_together_gain_more_and_pass(float_lab: Lab) -> None:
    (text,) = prompts(1, 24)
    found = descent.all_hops(float_lab, [text], quiet, steps=3, fewest=2)
    assert found.accused == 0
    # The two nearest at least are searched to the end, and every one of their hops audited.
    assert found.audits >= 3 * 2
    assert found.audits % 3 == 0
    assert 0.9 < found.largest_statistic <= 1.0
    alone = descent.last_hop(float_lab, [text], steps=3)
    assert np.median([one.gain for one in found.reached]) > 2 * np.median([one.gain for one in alone.reached])


def test_the_ascent_finds_the_best_of_a_ball() -> None:
    """Of a linear margin at once; of a curved one only by several steps."""
    goal = torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    units, first, best = descent.ascend(lambda u: (u[0] * goal).sum(dim=1), [torch.zeros(2, 2)], 4)
    assert torch.allclose(units[0], goal, atol=1e-6)
    assert torch.allclose(first, best, atol=1e-6)
    inside = torch.tensor([[0.3, 0.0]])
    units, first, best = descent.ascend(lambda u: -((u[0] - inside) ** 2).sum(dim=1), [torch.zeros(1, 2)], 200)
    assert best > first
    assert torch.allclose(units[0], inside, atol=0.1)
    assert (units[0].norm(dim=1) <= 1 + 1e-6).all()
