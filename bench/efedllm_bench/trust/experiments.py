"""The experiments behind docs/trust.md, each a function from a setting to plain rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from efedllm_bench.trust import additive, routing
from efedllm_bench.trust import rule as r
from efedllm_bench.trust.dilemma import steady_rate
from efedllm_bench.trust.simulate import Economy, Setting, StrategyOutcome, deterring_stake, profit, simulate
from efedllm_bench.trust.strategies import Floats, Later, OnOff, RateAware, Sometimes, Strategy
from efedllm_client.routes.choose import CostWeights

Row: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[str], None]

FLOAT_FALSE_ALARM = 3.5e-7  # per audit: the bound of docs/trust.md for the float profile
YEAR = 365 * 86_400


@dataclass(frozen=True)
class StrategyCase:
    """One strategy with what it changes in the setting; `ids` identities share one stake and one node's demand."""

    name: str
    strategy: Strategy
    changes: Row
    ids: int = 1


def steady_trust(rule: r.Rule, jobs: int) -> int:
    """Score, ppm, of an honest node with `jobs` full jobs an epoch in the long run."""
    alpha = jobs * steady_rate(rule, jobs) * 1e6 * 2**rule.decay_shift
    return int(r.PPM * alpha / (alpha + rule.prior_mass))


def cases(setting: Setting) -> list[StrategyCase]:
    """Every strategy of the table."""
    high = int(0.9 * steady_trust(setting.rule, setting.jobs))
    quiet = int(1.1e6 * steady_rate(setting.rule, setting.jobs))
    turn = setting.epochs // 5
    return [
        StrategyCase("honest, exact profile", Sometimes(0.0), {}),
        StrategyCase("honest, float profile", Sometimes(0.0), {"false_alarm": FLOAT_FALSE_ALARM}),
        StrategyCase("always", Sometimes(1.0), {}),
        StrategyCase("50 % of jobs", Sometimes(0.5), {}),
        StrategyCase("10 % of jobs", Sometimes(0.1), {}),
        StrategyCase("1 % of jobs", Sometimes(0.01), {}),
        StrategyCase("0.1 % of jobs", Sometimes(0.001), {}),
        StrategyCase("always, after an honest fifth", Later(turn, Sometimes(1.0)), {}),
        StrategyCase("on-off", OnOff(high), {}),
        StrategyCase("exit scam", OnOff(high, leaves=True), {}),
        StrategyCase("audit-aware", RateAware(quiet), {}),
        StrategyCase("4 sybils, always", Sometimes(1.0), {"jobs": setting.jobs // 4}, 4),
        StrategyCase("12 sybils, 10 % of jobs", Sometimes(0.1), {"jobs": setting.jobs // 12}, 12),
        StrategyCase("whitewashing, 10 identities", Sometimes(1.0), {"identities": 10}),
        StrategyCase("gray, 10 % of jobs", Sometimes(0.1), {"severe": False}),
        StrategyCase("withholding, always", Sometimes(1.0, withholds=True), {}),
        StrategyCase("withholding, 1 % of jobs", Sometimes(0.01, withholds=True), {}),
    ]


def strategies(setting: Setting, economy: Economy, say: Say) -> list[Row]:
    """What each strategy does to the network and to itself."""
    honest = 0.0
    rows = []
    for case in cases(setting):
        say(f"strategy: {case.name}")
        outcome = simulate(replace(setting, **case.changes), case.strategy)
        # Identities of one group share a stake; a lone node is a group of one.
        earned = _groups(profit(outcome, replace(economy, stake=economy.stake / case.ids)), case.ids)
        honest = honest or float(earned.mean())
        rows.append(_row(case, outcome, economy, earned, honest))
    return rows


def _groups(values: Floats, ids: int) -> Floats:
    whole = len(values) // ids * ids
    grouped: Floats = values[:whole].reshape(-1, ids).sum(axis=1)
    return grouped


def _row(case: StrategyCase, outcome: StrategyOutcome, economy: Economy, earned: Floats, honest: float) -> Row:
    before = _groups(outcome.bad_before_exclusion.astype(np.float64), case.ids)
    excluded = outcome.first_exclusion > 0
    cheats = bool(outcome.bad.any())
    deterring = deterring_stake(outcome, economy)
    return {
        "strategy": case.name,
        "bad_before_exclusion": {
            "mean": round(float(before.mean()), 2),
            "median": float(np.median(before)),
            "p95": float(np.percentile(before, 95)),
        },
        "bad_total": round(float(_groups(outcome.bad.astype(np.float64), case.ids).mean()), 2),
        "excluded_share": round(float(excluded.mean()), 5),
        "first_exclusion_epoch": float(np.median(outcome.first_exclusion[excluded])) if excluded.any() else None,
        "false_exclusions": 0 if cheats else int(outcome.exclusions.sum()),
        "stake_lost": round(float(outcome.slashed.mean()), 4),
        "profit_fees": round(float(earned.mean()), 1),
        "profit_of_honest": round(float(earned.mean()) / honest, 4),
        # One identity's savings against one identity's stake: groups split both.
        "deterring_stake_fees": None if deterring is None else round(deterring * case.ids, 2),
        "audited_share": round(float(outcome.audits.sum() / max((outcome.good + outcome.bad).sum(), 1)), 4),
        "final_trust_ppm": int(outcome.trust.mean()),
    }


def audit_rate_sweep(setting: Setting, say: Say) -> list[Row]:
    """pMin and share of bad jobs: an established node turns. Bad jobs before exclusion against the load of audits."""
    rows = []
    turn = setting.epochs // 5
    for p_min in (10_000, 20_000, 50_000, 100_000, 200_000):
        say(f"audit rate: pMin {p_min / 1e4:g} %")
        here = replace(setting, rule=replace(setting.rule, p_min=p_min))
        for rho in (0.001, 0.01, 0.1, 1.0):
            outcome = simulate(here, Later(turn, Sometimes(rho)))
            rows.append(
                {
                    "p_min_ppm": p_min,
                    "rho": rho,
                    "bad_mean": round(float(outcome.bad_before_exclusion.mean()), 2),
                    "bad_p95": float(np.percentile(outcome.bad_before_exclusion, 95)),
                    "excluded_share": round(float((outcome.first_exclusion > 0).mean()), 4),
                    "honest_audit_rate": round(steady_rate(here.rule, setting.jobs), 4),
                }
            )
    return rows


def p_max_sweep(setting: Setting, say: Say) -> list[Row]:
    """pMax: what newcomers cost in audits, and how many bad jobs a fresh cheat serves."""
    rows = []
    for p_max in (50_000, 100_000, 200_000, 500_000, 1_000_000):
        say(f"audit rate: pMax {p_max / 1e4:g} %")
        here = replace(setting, rule=replace(setting.rule, p_max=p_max))
        cheat, honest = simulate(here, Sometimes(0.1)), simulate(here, Sometimes(0.0))
        rows.append(
            {
                "p_max_ppm": p_max,
                "bad_mean": round(float(cheat.bad_before_exclusion.mean()), 2),
                "honest_audited_share": round(float(honest.audits.sum() / honest.good.sum()), 4),
                "epochs_to_active": _first_at_least(honest.mean_trust, setting.rule.theta),
            }
        )
    return rows


def theta_sweep(setting: Setting, say: Say) -> list[Row]:
    """theta matters where a failure is gray: below it one failure excludes, above it honest newcomers never get in."""
    rows = []
    turn = setting.epochs // 5
    for jobs in (4, 24, 200):
        say(f"theta: {jobs} jobs an epoch")
        honest = simulate(replace(setting, jobs=jobs), Sometimes(0.0))
        for theta in (100_000, 200_000, 300_000, 400_000, 500_000, 600_000, 700_000, 800_000):
            rule = replace(setting.rule, theta=theta, reentry=max(setting.rule.reentry, theta))
            here = replace(setting, rule=rule, jobs=jobs, severe=False)
            cheat = simulate(here, Later(turn, Sometimes(0.1)))
            unlucky = simulate(replace(here, false_alarm=1e-4), Sometimes(0.0))
            alarms = 1e-4 * float(unlucky.audits.sum())
            rows.append(
                {
                    "theta_ppm": theta,
                    "jobs": jobs,
                    "bad_gray_mean": round(float(cheat.bad_before_exclusion.mean()), 2),
                    "bad_gray_total": round(float(cheat.bad.mean()), 2),
                    "false_exclusions_per_false_alarm": round(float(unlucky.exclusions.sum()) / alarms, 3),
                    "epochs_to_active": _first_at_least(honest.mean_trust, theta),
                }
            )
    return rows


def memory_sweep(setting: Setting, say: Say) -> list[Row]:
    """Prior mass and decay: how fast trust comes, how little a trusted node is audited, what it can do with that."""
    rows = []
    for shift in (5, 6, 7):
        for prior in (2_000_000, 3_000_000, 5_000_000, 20_000_000, 100_000_000):
            say(f"prior mass {prior / 1e6:g} audits, decay 1/{2**shift} an epoch")
            here = replace(setting, rule=replace(setting.rule, prior_mass=prior, decay_shift=shift))
            honest = simulate(here, Sometimes(0.0))
            turned = simulate(here, OnOff(int(0.9 * steady_trust(here.rule, here.jobs))))
            rare = simulate(here, Later(setting.epochs // 5, Sometimes(0.01)))
            rows.append(
                {
                    "prior_mass": prior,
                    "decay_shift": shift,
                    "epochs_to_active": _first_at_least(honest.mean_trust, here.rule.theta),
                    "steady_trust_ppm": steady_trust(here.rule, here.jobs),
                    "steady_audit_rate": round(steady_rate(here.rule, here.jobs), 4),
                    "on_off_bad_mean": round(float(turned.bad_before_exclusion.mean()), 2),
                    "one_percent_bad_mean": round(float(rare.bad_before_exclusion.mean()), 2),
                }
            )
    return rows


def _first_at_least(series: Floats, mark: int) -> int | None:
    """First epoch whose mean trust reaches `mark`; None if none does."""
    reached = np.flatnonzero(series >= mark)
    return int(reached[0]) + 1 if len(reached) else None


def false_alarm_sweep(setting: Setting, economy: Economy, epoch_length: int, say: Say) -> list[Row]:
    """Detection error of honest nodes: exclusions a node and year, and what they cost."""
    rows = []
    years = setting.nodes * setting.epochs * epoch_length / YEAR
    honest = float(profit(simulate(setting, Sometimes(0.0)), economy).mean())
    for phi in (0.0, FLOAT_FALSE_ALARM, 1e-5, 1e-4, 1e-3, 1e-2):
        say(f"false alarms: {phi:g} an audit")
        for severe in (False, True):
            outcome = simulate(replace(setting, false_alarm=phi, false_severe=severe), Sometimes(0.0))
            rows.append(
                {
                    "phi": phi,
                    "severe": severe,
                    "false_alarms_expected": round(phi * float(outcome.audits.sum()), 2),
                    "exclusions": int(outcome.exclusions.sum()),
                    "exclusions_per_node_year": round(float(outcome.exclusions.sum()) / years, 5),
                    "stake_lost": round(float(outcome.slashed.mean()), 5),
                    "income_lost": round(1 - float(profit(outcome, economy).mean()) / honest, 5),
                }
            )
    return rows


def detection_sweep(setting: Setting, say: Say) -> list[Row]:
    """Cheats that the statistic sees only sometimes: small noise in the float profile."""
    rows = []
    for detection in (1.0, 0.5, 0.1, 0.01, 0.001):
        say(f"detection: {detection:g} an audit")
        outcome = simulate(replace(setting, detection=detection), Sometimes(1.0))
        rows.append(
            {
                "detection": detection,
                "bad_mean": round(float(outcome.bad_before_exclusion.mean()), 1),
                "excluded_share": round(float((outcome.first_exclusion > 0).mean()), 4),
                "final_trust_ppm": int(outcome.trust.mean()),
            }
        )
    return rows


def filtering(setting: Setting, fleet: routing.Fleet, say: Say) -> list[Row]:
    """Clients choose by cost: the work that cheats get, by their share, with and without trust's weight,
    and without trying newcomers."""
    rows = []
    for malicious in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        for weighed, explore in ((True, fleet.explore), (True, 0.0), (False, 0.0)):
            say(f"routing: {malicious:.0%} cheat, {'trust weighs' if weighed else 'trust ignored'}, {explore:.0%} try")
            shares = routing.run(setting, replace(fleet, malicious=malicious, explore=explore), weighed)
            rows.append(
                {
                    "malicious": malicious,
                    "trust_weighs": weighed,
                    "explore": explore,
                    "work_of_malicious": [round(float(x), 4) for x in shares.malicious],
                    "bad_share_whole": round(float(shares.bad.mean()), 5),
                    "detected": round(shares.detected, 3),
                    "false_exclusions": shares.false_exclusions,
                    "first_exclusion_epoch": shares.median_first,
                    "gini_honest": round(shares.gini, 3),
                }
            )
    return rows


def newcomers(setting: Setting, fleet: routing.Fleet) -> list[Row]:
    """What share of a fair part of the work a tenth of the replicas gets while it has no trust yet, by load."""
    established = steady_trust(setting.rule, setting.jobs)
    rows = []
    for concurrency in (1, 4, 16, 64):
        row: Row = {"concurrency": concurrency}
        for name, explore in (("of_fair_share", 0.0), ("of_fair_share_explored", fleet.explore)):
            shares = []
            for trial in range(20):
                seed = setting.seed + trial
                latency = np.random.default_rng(seed).uniform(*fleet.latency_ms, fleet.nodes)
                new = np.arange(fleet.nodes) < fleet.nodes // 10
                trust = np.where(new, 0, established)
                everybody = np.ones(fleet.nodes, dtype=np.bool_)
                jobs, in_flight = fleet.nodes * 64, fleet.nodes * concurrency
                got = routing.assign(latency, trust, everybody, jobs, in_flight, CostWeights(), explore, seed)
                shares.append(float(got[new].sum() / got.sum()) / 0.1)
            row[name] = round(float(np.mean(shares)), 4)
        rows.append(row)
    return rows


def joining(setting: Setting, fleet: routing.Fleet) -> list[Row]:
    """A tenth of the replicas registers when the others are trusted: their part of the work, epoch by epoch, by the
    share of jobs that try newcomers; all are honest."""
    rows = []
    for explore in (0.0, 0.01, 0.05, 0.1):
        outcome = routing.run(setting, replace(fleet, malicious=0.0, joining=0.1, explore=explore))
        after = outcome.joined[fleet.join_epoch - 1 :]
        rows.append({"explore": explore, "of_fair_share": [round(float(x), 4) for x in after]})
    return rows


def additive_rule(nodes: int, jobs: int) -> list[Row]:
    """The naive rule under the same cheats, for comparison: 5 % of the jobs checked."""
    rule = additive.Additive()
    rows = []
    for name, rho, on in (
        ("honest", 0.0, 0.0),
        ("always", 1.0, 0.0),
        ("10 % of jobs", 0.1, 0.0),
        ("1 % of jobs", 0.01, 0.0),
        ("on-off", 1.0, 0.9),
    ):
        outcome = additive.run(rule, rho, on, nodes, jobs)
        rows.append(
            {
                "strategy": name,
                "final_trust": round(float(outcome.trust.mean()), 4),
                "bad_served": round(float(outcome.bad.mean()), 1),
                "excluded_share": round(float(outcome.excluded.mean()), 4),
                "jobs": jobs,
            }
        )
    return rows


def reward_shares(layers: Sequence[int], setting: Setting) -> list[Row]:
    """Emission shares of honest nodes with that many layers, and of one that always cheats: work times trust."""
    honest = simulate(replace(setting, nodes=len(layers)), Sometimes(0.0))
    cheat = simulate(replace(setting, nodes=1), Sometimes(1.0))
    # An excluded node weighs nothing, whatever it worked.
    weights = [
        *(int(t) * n for t, n in zip(honest.trust, layers, strict=True)),
        0 if cheat.exclusions[0] else int(cheat.trust[0]) * layers[-1],
    ]
    whole = sum(weights)
    names = [*(f"honest, {n} layers" for n in layers), f"always cheats, {layers[-1]} layers"]
    return [{"node": name, "share": round(w / whole, 4)} for name, w in zip(names, weights, strict=True)]
