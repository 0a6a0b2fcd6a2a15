"""The simulation of nodes: reproducible, honest nodes untouched, cheats out as soon as an audit covers them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from efedllm_bench.trust import additive, experiments, routing
from efedllm_bench.trust import rule as r
from efedllm_bench.trust.simulate import Economy, Setting, deterring_stake, profit, simulate
from efedllm_bench.trust.strategies import Later, OnOff, RateAware, Sometimes
from efedllm_client.routes.choose import Candidate, CostWeights, choose_route, hop_cost
from efedllm_client.routes.newcomers import Lot, explored_route
from efedllm_deploy.profile import Profile

PRODUCTION = Profile.load("production")
SETTING = Setting(r.Rule.of(PRODUCTION), nodes=100, epochs=100)


def test_the_same_seed_gives_the_same_outcome_and_another_seed_another() -> None:
    a, b = simulate(SETTING, Sometimes(0.05)), simulate(SETTING, Sometimes(0.05))
    assert (a.bad == b.bad).all()
    assert (a.trust == b.trust).all()
    assert (simulate(replace(SETTING, seed=2), Sometimes(0.05)).bad != a.bad).any()


def test_honest_nodes_are_never_excluded_without_false_alarms_and_become_active() -> None:
    out = simulate(SETTING, Sometimes(0.0))
    assert out.exclusions.sum() == 0
    assert out.slashed.sum() == 0
    assert (out.good == SETTING.epochs * SETTING.jobs).all()
    steady = experiments.steady_trust(SETTING.rule, SETTING.jobs)
    assert abs(float(out.trust.mean()) - steady) < 30_000
    assert steady > SETTING.rule.reentry


def test_an_always_cheat_is_out_in_the_tally_of_its_first_epoch_and_its_tail_burns_the_rest() -> None:
    out = simulate(SETTING, Sometimes(1.0))
    # Half of 24 bad jobs are audited: the chance that none is covered is 2^-24.
    assert (out.first_exclusion == 2).all()
    assert (out.bad_before_exclusion == SETTING.jobs + SETTING.jobs * 2 // 3).all()
    assert np.allclose(out.slashed, 1.0)
    assert (out.bad == out.bad_before_exclusion).all()


def test_with_every_job_audited_no_cheat_outlives_the_epoch_after_its_first() -> None:
    setting = replace(SETTING, rule=r.Rule.of(Profile.load("local")), epochs=60)
    out = simulate(setting, Later(20, Sometimes(1.0)))
    assert (out.first_exclusion == 21).all()


@pytest.mark.parametrize("rho", [0.01, 0.1])
def test_more_audits_mean_fewer_bad_jobs_before_the_exclusion(rho: float) -> None:
    means = []
    for p_min in (10_000, 100_000, 500_000):
        setting = replace(SETTING, rule=replace(SETTING.rule, p_min=p_min))
        means.append(float(simulate(setting, Later(40, Sometimes(rho))).bad_before_exclusion.mean()))
    assert means[0] > means[1] > means[2]


def test_small_rates_of_cheating_need_as_many_bad_jobs_as_the_audit_rate_says() -> None:
    """Every bad job is audited with probability p: about 1/p are served until one is, and a tail until the tally."""
    rule = replace(SETTING.rule, p_min=200_000, p_max=200_000)
    setting = replace(SETTING, rule=rule, nodes=600, epochs=250)
    out = simulate(setting, Sometimes(0.05))
    assert (out.first_exclusion > 0).all()
    caught_after = 1 / 0.2
    tail = 0.05 * (setting.jobs / 2 + setting.jobs * 2 / 3)
    assert float(out.bad_before_exclusion.mean()) == pytest.approx(caught_after + tail, rel=0.15)


def test_no_strategy_earns_more_than_honest_work() -> None:
    economy = Economy()
    honest = float(profit(simulate(SETTING, Sometimes(0.0)), economy).mean())
    high = int(0.9 * experiments.steady_trust(SETTING.rule, SETTING.jobs))
    strategies = (Sometimes(1.0), Sometimes(0.1), OnOff(high), OnOff(high, leaves=True), RateAware(100_000))
    for strategy in (*strategies, Sometimes(1.0, withholds=True)):
        assert float(profit(simulate(SETTING, strategy), economy).mean()) < honest, strategy


def test_withholding_is_excluded_but_never_slashed() -> None:
    out = simulate(SETTING, Sometimes(1.0, withholds=True))
    assert (out.first_exclusion > 0).all()
    assert out.slashed.sum() == 0
    assert deterring_stake(out, Economy()) is None


def test_a_node_that_leaves_after_its_exclusion_never_works_again() -> None:
    rule = replace(SETTING.rule, exclusion_epochs=5)
    stays = simulate(replace(SETTING, rule=rule, severe=False), Sometimes(1.0))
    leaves = simulate(replace(SETTING, rule=rule, severe=False), Sometimes(1.0, leaves=True))
    assert float(stays.exclusions.mean()) > 2
    assert (leaves.exclusions == 1).all()


def test_whitewashing_costs_a_stake_for_every_identity() -> None:
    one, five = (simulate(replace(SETTING, identities=n), Sometimes(1.0)) for n in (1, 5))
    assert (five.identities == 5).all()
    assert float(five.slashed.mean()) == pytest.approx(5 * float(one.slashed.mean()), rel=0.01)
    assert float(five.bad.mean()) == pytest.approx(5 * float(one.bad.mean()), rel=0.05)


def test_false_alarms_exclude_in_proportion() -> None:
    setting = replace(SETTING, nodes=800, false_alarm=1e-3)
    out = simulate(setting, Sometimes(0.0))
    expected = 1e-3 * float(out.audits.sum())
    assert float(out.exclusions.sum()) == pytest.approx(expected, rel=0.25)
    assert out.slashed.sum() == 0
    assert simulate(replace(setting, false_severe=True), Sometimes(0.0)).slashed.sum() > 0


def test_the_additive_rule_keeps_a_node_that_always_cheats() -> None:
    """5 % checks with a tenfold loss add up to a gain: the rule this project does not use."""
    out = additive.run(additive.Additive(), 1.0, 0.0, nodes=10, jobs=2_000)
    assert out.excluded.sum() == 0
    assert float(out.trust.mean()) > 0.9


def test_routing_costs_are_those_of_the_client() -> None:
    rng = np.random.default_rng(5)
    latency, trust, queue = rng.uniform(1, 80, 20), rng.integers(0, 10**6, 20), rng.integers(0, 9, 20)
    weights = CostWeights()
    nodes = [
        Candidate(f"0x{i:040x}", "", "", 0, 1, 7, int(trust[i]), 2, latency_ms=float(latency[i]), queue=int(queue[i]))
        for i in range(20)
    ]
    mine = routing.costs(latency, trust, queue, weights)
    assert mine.tolist() == pytest.approx([hop_cost(node, 7.0, weights) for node in nodes])
    chosen = choose_route(nodes, 1)
    assert chosen.addresses == (nodes[int(np.argmin(mine))].address,)


def test_routing_leaves_cheats_without_work_and_honest_nodes_alone() -> None:
    setting = replace(SETTING, epochs=15, jobs=12)
    shares = routing.run(setting, routing.Fleet(nodes=30, malicious=0.3))
    assert shares.malicious[0] > 0.2
    assert shares.malicious[-1] == 0
    assert shares.false_exclusions == 0


def test_who_may_be_tried_is_whom_the_client_may_try() -> None:
    rng = np.random.default_rng(9)
    weights, everybody = CostWeights(), np.ones(30, dtype=np.bool_)
    latency, trust = rng.uniform(1, 90, 30), rng.integers(0, 10**6, 30)
    nodes = [
        Candidate(f"0x{i:040x}", "", "", 0, 1, 7, int(trust[i]), 2, latency_ms=float(latency[i])) for i in range(30)
    ]
    best = choose_route(nodes, 1)
    routes = [explored_route(nodes, 1, best, Lot(0, pick)) for pick in range(60)]
    mine = {nodes[i].address for i in np.flatnonzero(routing.newcomers(latency, trust, everybody, weights))}
    assert {route.newcomer for route in routes if route} == mine - set(best.addresses)
    assert 0 < len(mine) < 30


def test_newcomers_get_work_and_trust_when_some_jobs_try_them() -> None:
    setting = replace(SETTING, epochs=20, jobs=12)
    fleet = routing.Fleet(nodes=30, malicious=0.0, joining=0.1, join_epoch=10)
    without = routing.run(setting, replace(fleet, explore=0.0)).joined
    tried = routing.run(setting, replace(fleet, explore=0.05)).joined
    assert without[:9].sum() == tried[:9].sum() == 0
    assert without[9:].sum() == 0
    assert (tried[9:] > 0).all()
    assert float(tried[9:].mean()) > 0.05


def test_identities_of_a_group_share_a_stake() -> None:
    rows = experiments.strategies(replace(SETTING, nodes=48, epochs=30), Economy(), lambda _: None)
    by_name = {row["strategy"]: row for row in rows}
    assert len(by_name) == len(rows)
    assert by_name["honest, exact profile"]["profit_of_honest"] == 1
    assert by_name["4 sybils, always"]["stake_lost"] <= 1
    assert by_name["4 sybils, always"]["profit_fees"] < 0
