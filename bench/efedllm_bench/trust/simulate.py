"""Thousands of nodes over hundreds of epochs under the integer trust rule.

Work of epoch e is judged in the last third of e + 1, so that an excluded node has served all of e and two thirds of
e + 1. Audits are drawn independently per job at the node's audit rate at the start of e + 1, as the contract's sampling
rule does with a fair hash. Committees here are honest; what dishonest ones do is in capture.py and dilemma.py.
Randomness is numpy's PCG64 with a fixed seed: a simulation, nothing that is signed or paid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from efedllm_bench.trust import rule as r
from efedllm_bench.trust.strategies import Floats, Strategy, View
from efedllm_verifier.lot import FAILED_CAP, FULL_UNITS, PASSED_CAP


@dataclass(frozen=True)
class Setting:
    """A network and how long it is watched."""

    rule: r.Rule
    nodes: int = 2_000
    epochs: int = 500
    jobs: int = 24  # hop-jobs of a node in an epoch, each of full audit weight
    detection: float = 1.0  # probability that the audit of a bad job fails it: 1 in the exact profile
    false_alarm: float = 0.0  # probability that the audit of a good job fails it: 0 in the exact profile
    severe: bool = True  # whether a detected bad job is severe; gray failures are not slashed
    false_severe: bool = False  # whether a false alarm is
    min_stake: float = 0.5  # share of its stake below which a node may take no sessions
    identities: int = 1  # fresh identities a node can pay the stake of, one after the other
    seed: int = 1


@dataclass(frozen=True)
class StrategyOutcome:
    """Totals per node, arrays of shape (nodes,). Jobs are hop-jobs; stakes are in units of one node's stake."""

    good: r.Ints
    bad: r.Ints
    bad_before_exclusion: r.Ints  # bad jobs served until the first exclusion, all of them if there was none
    first_exclusion: r.Ints  # epoch in which the node was first excluded, 0 = never
    exclusions: r.Ints
    slashed: Floats  # stake burned, over all identities
    identities: r.Ints
    trust: r.Ints  # at the end, ppm
    audits: r.Ints
    mean_trust: Floats  # over the nodes, by epoch, ppm
    served_share: Floats  # share of the offered jobs that the nodes were allowed to serve, by epoch


@dataclass(frozen=True)
class _Node:
    """State of all nodes between two epochs."""

    trust: r.TrustState
    stake: Floats
    gone: r.Bools
    good: r.Ints  # of the epoch just served
    bad: r.Ints


def simulate(setting: Setting, strategy: Strategy) -> StrategyOutcome:
    """Run `setting.epochs` epochs of nodes that all follow `strategy`. The same setting gives the same outcome."""
    n, rule = setting.nodes, setting.rule
    rng = np.random.default_rng(setting.seed)
    zeros = np.zeros(n, dtype=np.int64)
    node = _Node(r.fresh(n), np.ones(n), np.zeros(n, dtype=np.bool_), zeros, zeros)
    good, bad, before_exclusion, first, exclusions, audits = (zeros.copy() for _ in range(6))
    slashed, identities = np.zeros(n), np.ones(n, dtype=np.int64)
    mean_trust, served_share = np.zeros(setting.epochs), np.zeros(setting.epochs)
    early = setting.jobs * 2 // 3
    for epoch in range(1, setting.epochs + 1):
        scores = r.trust(node.trust, rule, epoch)
        standing = r.standing(node.trust, rule, epoch, scores)
        rate = r.audit_rate(scores, rule)
        allowed = _allowed(node, standing, setting)
        share = strategy.cheats(View(epoch, scores, standing, rate, setting.jobs))
        bad_now = np.where(allowed, rng.binomial(early, share), 0)
        served = np.where(allowed, early, 0)
        verdicts, count = _audit(node, rate, setting, strategy.withholds, rng)
        applied = r.apply(node.trust, rule, epoch - 1, verdicts)
        burned = node.stake * applied.slash_bps / r.BPS
        excluded = (applied.state.jailed_until > epoch) & (node.trust.jailed_until <= epoch)
        node = replace(
            node, trust=applied.state, stake=node.stake - burned, gone=node.gone | (excluded & strategy.leaves)
        )
        slashed += burned
        audits += count
        first = np.where((first == 0) & excluded, epoch, first)
        exclusions += excluded
        allowed &= _allowed(node, r.standing(node.trust, rule, epoch), setting)
        bad_now += np.where(allowed, rng.binomial(setting.jobs - early, share), 0)
        served += np.where(allowed, setting.jobs - early, 0)
        before_exclusion += np.where(first == 0, bad_now, 0)
        # What is served in the epoch of the exclusion was served before it.
        before_exclusion += np.where(first == epoch, bad_now, 0)
        good += served - bad_now
        bad += bad_now
        node = replace(node, good=served - bad_now, bad=bad_now)
        if setting.identities > 1:
            renew = excluded & (identities < setting.identities)
            identities += renew
            slashed += _left_behind(node, renew, epoch, setting, strategy.withholds, rng)
            node = _renewed(node, renew)
        mean_trust[epoch - 1] = scores.mean()
        served_share[epoch - 1] = served.mean() / setting.jobs
    final = r.trust(node.trust, rule, setting.epochs + 1)
    return StrategyOutcome(
        good, bad, before_exclusion, first, exclusions, slashed, identities, final, audits, mean_trust, served_share
    )


def _allowed(node: _Node, standing: r.Ints, setting: Setting) -> r.Bools:
    allowed: r.Bools = (standing != r.EXCLUDED) & ~node.gone & (node.stake >= setting.min_stake)
    return allowed


def _left_behind(
    node: _Node, where: r.Bools, epoch: int, setting: Setting, withholds: bool, rng: np.random.Generator
) -> Floats:
    """Stake burned on identities given up `where`: their last epoch is judged while the stake is still unbonding."""
    rate = r.audit_rate(r.trust(node.trust, setting.rule, epoch + 1), setting.rule)
    verdicts, _ = _audit(node, rate, setting, withholds, rng)
    applied = r.apply(node.trust, setting.rule, epoch, verdicts)
    return np.where(where, node.stake * applied.slash_bps / r.BPS, 0.0)


def _renewed(node: _Node, where: r.Bools) -> _Node:
    return replace(
        node,
        trust=r.replaced(node.trust, where),
        stake=np.where(where, 1.0, node.stake),
        good=np.where(where, 0, node.good),
        bad=np.where(where, 0, node.bad),
    )


def _audit(
    node: _Node, rate: r.Ints, setting: Setting, withholds: bool, rng: np.random.Generator
) -> tuple[r.Verdicts, r.Ints]:
    """The committee's verdict about the epoch just served, and how many jobs it audited."""
    p = rate / r.PPM
    audited_good, audited_bad = rng.binomial(node.good, p), rng.binomial(node.bad, p)
    # Bytes that are not shown fail for certain, whatever the statistic would have said.
    caught = audited_bad if withholds else rng.binomial(audited_bad, setting.detection)
    wrong = rng.binomial(audited_good, setting.false_alarm)
    audited = audited_good + audited_bad
    passed = np.minimum(FULL_UNITS * (audited - caught - wrong), PASSED_CAP)
    failed = np.minimum(FULL_UNITS * (caught + wrong), FAILED_CAP)
    slashable = (caught > 0) & (setting.severe and not withholds)
    severe = slashable | ((wrong > 0) & setting.false_severe)
    return r.Verdicts(passed, failed, severe, audited > 0), audited


@dataclass(frozen=True)
class Economy:
    """Money of a hop-job, in fees: what honest work costs, what cheating saves of it, what a node has staked."""

    cost: float = 0.5
    saving: float = 0.45
    stake: float = 10_000.0


def profit(outcome: StrategyOutcome, economy: Economy) -> Floats:
    """Fees less cost plus savings less slashes, in fees, per node. Bad jobs are paid: vouchers come before verdicts."""
    margin = 1 - economy.cost
    result: Floats = margin * outcome.good + (margin + economy.saving) * outcome.bad - economy.stake * outcome.slashed
    return result


def deterring_stake(outcome: StrategyOutcome, economy: Economy) -> float | None:
    """Stake, in fees, from which slashes exceed all that cheating saved, future earnings not counted.

    0 without savings; None when nothing is ever slashed, so that only the lost future deters.
    """
    saved = economy.saving * float(outcome.bad.mean())
    burned = float(outcome.slashed.mean())
    if saved == 0:
        return 0.0
    return saved / burned if burned > 0 else None
