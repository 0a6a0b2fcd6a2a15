"""Every strategy of a cheating node against one audit of the hop it cheated on, in both profiles."""

from __future__ import annotations

import pytest

from efedllm_bench.attacks.lab import RANGES, Lab, cheated
from efedllm_bench.cheats.catalog import ATTACKS, Attack, ExpectedVerdict, applies
from efedllm_verifier.statistic import Outcome

HOPS = len(RANGES)


def agrees(outcome: Outcome, expected: ExpectedVerdict) -> bool:
    return {
        ExpectedVerdict.SEVERE: outcome is Outcome.SEVERE,
        ExpectedVerdict.CAUGHT: outcome >= Outcome.FAIL,
        ExpectedVerdict.BELOW: outcome is Outcome.PASS,
    }[expected]


@pytest.mark.parametrize("hop", range(HOPS))
def test_honest_hops_are_not_accused(lab: Lab, hop: int) -> None:
    for job in lab.jobs:
        result = lab.judge(job, hop)
        assert result.fault is None
        assert result.statistic is not None
        assert result.statistic.worst < 0.5


@pytest.mark.parametrize("item", ATTACKS, ids=lambda item: item.name)
def test_an_audit_says_what_is_expected(lab: Lab, item: Attack) -> None:
    stale, job = lab.jobs
    shop = lab.shop(stale)
    hops = [hop for hop in range(HOPS) if applies(item, lab.profile, hop, HOPS)]
    if item.expected(lab.profile) is ExpectedVerdict.NONE:
        assert hops == []
        return
    for hop in hops:
        executor = item.arm(shop, lab.engines[hop])
        result = lab.judge(cheated(lab, job, hop, executor, sampled=item.sampled), hop)
        assert agrees(result.outcome, item.expected(lab.profile)), (hop, result)


def test_a_cheat_on_one_hop_accuses_no_other(float_lab: Lab) -> None:
    """A hop that computed honestly from what it was sent passes, whatever the sender did."""
    job = float_lab.jobs[1]
    cheat = next(item for item in ATTACKS if item.name == "skip_layer")
    executor = cheat.arm(float_lab.shop(), float_lab.engines[1])
    engines = [float_lab.engines[0], executor, float_lab.engines[2]]
    (whole,) = float_lab.generate([job.prompt], 12, engines=engines)
    assert [float_lab.judge(whole, hop).outcome for hop in range(HOPS)] == [
        Outcome.PASS,
        Outcome.SEVERE,
        Outcome.PASS,
    ]


def test_names_are_unique_and_every_number_is_of_the_list() -> None:
    names = [item.name for item in ATTACKS]
    assert len(set(names)) == len(names)
    assert {item.number for item in ATTACKS} <= set(range(1, 32))
