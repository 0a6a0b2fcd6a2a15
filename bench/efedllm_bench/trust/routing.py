"""How work spreads when clients weigh trust: the cost function of clients over replicas of one range of layers.

Vectorised for thousands of choices; tests compare it with `efedllm_client.routes.choose.hop_cost` and `choose_route`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from efedllm_bench.trust import rule as r
from efedllm_bench.trust.simulate import Setting
from efedllm_bench.trust.strategies import Floats
from efedllm_client.config import ClientConfig
from efedllm_client.routes.choose import CostWeights
from efedllm_client.routes.newcomers import TRUST_GAP
from efedllm_verifier.verdict import FAILED_CAP, FULL_UNITS, PASSED_CAP


@dataclass(frozen=True)
class Fleet:
    """Replicas of the same layers: who cheats, how far away they are, how many jobs run at a time for each node."""

    nodes: int = 100
    malicious: float = 0.2
    rho: float = 1.0  # share of its jobs that a malicious node spoils
    concurrency: int = 4  # jobs at a time, for each node
    latency_ms: tuple[float, float] = (5.0, 40.0)  # uniform between
    explore: float = ClientConfig.explore_share  # of the jobs that try a newcomer
    joining: float = 0.0  # share of the replicas, honest ones, that register only in `join_epoch`
    join_epoch: int = 20


@dataclass(frozen=True)
class Shares:
    """By epoch: share of the jobs that malicious nodes got, and share of the jobs that were bad."""

    malicious: Floats
    bad: Floats
    joined: Floats  # jobs of those who joined, of their fair share
    detected: float  # share of the malicious nodes ever excluded
    false_exclusions: int
    median_first: float | None  # epoch of the first exclusion, over the malicious nodes that were excluded
    gini: float  # of the honest nodes' jobs over the whole time


def costs(latency: Floats, trust: r.Ints, queue: r.Ints, weights: CostWeights) -> Floats:
    """`hop_cost` of nodes that all ask the cheapest price per layer, for a range of one layer."""
    steps: Floats = np.ceil(latency / weights.latency_step) * weights.latency_step
    return (
        steps
        + weights.hop
        + weights.price_per_layer
        + weights.distrust * (r.PPM - trust) / r.PPM
        + weights.queue * queue
    )


def newcomers(latency: Floats, trust: r.Ints, usable: r.Bools, weights: CostWeights) -> r.Bools:
    """Who may be tried when nobody has work, at one price: see `efedllm_client.routes.newcomers.newcomers`."""
    plain = replace(weights, distrust=0.0)
    idle = np.zeros(len(trust), dtype=np.int64)
    best = np.where(usable, costs(latency, trust, idle, weights), np.inf).min()
    new: r.Bools = usable & (trust <= np.where(usable, trust, 0).max() - TRUST_GAP)
    new &= costs(latency, trust, idle, plain) <= best + weights.distrust
    return new


def assign(
    latency: Floats,
    trust: r.Ints,
    usable: r.Bools,
    jobs: int,
    in_flight: int,
    weights: CostWeights,
    explore: float = 0.0,
    seed: int = 0,
) -> r.Ints:
    """Jobs each node gets when `jobs` clients choose in turn; the last `in_flight` run, `explore` try newcomers."""
    got, queue = np.zeros(len(trust), dtype=np.int64), np.zeros(len(trust), dtype=np.int64)
    if not usable.any():
        return got
    base = np.where(usable, costs(latency, trust, queue, weights), np.inf)
    new = np.flatnonzero(newcomers(latency, trust, usable, weights))
    rng = np.random.default_rng(seed)
    tries = (rng.random(jobs) < explore) & (len(new) > 0)
    picks = rng.integers(0, max(len(new), 1), jobs)
    running: list[int] = []
    for job in range(jobs):
        chosen = int(new[picks[job]]) if tries[job] else int(np.argmin(base + weights.queue * queue))
        running.append(chosen)
        queue[chosen] += 1
        got[chosen] += 1
        if len(running) > in_flight:
            queue[running.pop(0)] -= 1
    return got


def run(setting: Setting, fleet: Fleet, weighed: bool = True) -> Shares:
    """Route every epoch's jobs by cost, audit them, apply the rule. Not `weighed`: clients look at no trust at all."""
    n, rule = fleet.nodes, setting.rule
    rng = np.random.default_rng(setting.seed)
    malicious = np.arange(n) < round(fleet.malicious * n)
    late = np.arange(n) >= n - round(fleet.joining * n)
    latency = rng.permutation(np.linspace(*fleet.latency_ms, n))
    weights = CostWeights() if weighed else replace(CostWeights(), distrust=0.0)
    state, stake = r.fresh(n), np.ones(n)
    good, bad, total = (np.zeros(n, dtype=np.int64) for _ in range(3))
    first = np.zeros(n, dtype=np.int64)
    to_malicious, bad_share, joined = [], [], []
    for epoch in range(1, setting.epochs + 1):
        scores = r.trust(state, rule, epoch)
        rate = r.audit_rate(scores, rule) / r.PPM
        caught = rng.binomial(rng.binomial(bad, rate), setting.detection)
        passed = rng.binomial(good, rate)
        wrong = rng.binomial(passed, setting.false_alarm)
        failed = np.minimum(FULL_UNITS * (caught + wrong), FAILED_CAP)
        verdicts = r.Verdicts(
            np.minimum(FULL_UNITS * (passed - wrong), PASSED_CAP),
            failed,
            (caught > 0) & setting.severe,
            (passed + failed) > 0,
        )
        # Sessions are chosen once an epoch, before its verdicts: what the excluded still serve counts against the rule.
        usable = (r.standing(state, rule, epoch, scores) != r.EXCLUDED) & (stake >= setting.min_stake)
        usable &= ~late | (epoch >= fleet.join_epoch)
        explore = fleet.explore if weighed else 0.0
        jobs, seed = n * setting.jobs, setting.seed + epoch
        got = assign(latency, scores, usable, jobs, n * fleet.concurrency, weights, explore, seed)
        applied = r.apply(state, rule, epoch - 1, verdicts)
        first = np.where((first == 0) & (applied.state.jailed_until > epoch), epoch, first)
        state, stake = applied.state, stake * (1 - applied.slash_bps / r.BPS)
        bad = np.where(malicious, rng.binomial(got, fleet.rho), 0)
        good = got - bad
        total += got
        to_malicious.append(got[malicious].sum() / max(got.sum(), 1))
        bad_share.append(bad.sum() / max(got.sum(), 1))
        joined.append(got[late].sum() / max(got.sum() * late.mean(), 1))
    found = first[malicious & (first > 0)]
    return Shares(
        np.array(to_malicious),
        np.array(bad_share),
        np.array(joined),
        float((first[malicious] > 0).mean()) if malicious.any() else 0.0,
        int((first[~malicious] > 0).sum()),
        float(np.median(found)) if len(found) else None,
        gini(total[~malicious]),
    )


def gini(values: r.Ints) -> float:
    """Inequality of non-negative values: 0 all equal, towards 1 one has all."""
    ordered = np.sort(values)
    n, whole = len(ordered), int(ordered.sum())
    if n == 0 or whole == 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * whole))
