"""The rule that suggests itself, for comparison: trust is added for every job that nobody found wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efedllm_bench.trust.strategies import Floats


@dataclass(frozen=True)
class Additive:
    """Trust in 0..1: `gain` for a job not found bad, `loss` for one found bad; a fixed share of jobs is checked."""

    start: float = 0.5
    gain: float = 0.001
    loss: float = 0.01
    checked: float = 0.05
    theta: float = 0.3


@dataclass(frozen=True)
class AdditiveOutcome:
    trust: Floats  # at the end
    bad: Floats  # bad jobs served
    excluded: Floats  # 1.0 where trust fell below theta


def run(rule: Additive, rho: float, on: float, nodes: int, jobs: int, seed: int = 1) -> AdditiveOutcome:
    """`nodes` nodes that cheat on a share `rho` of `jobs` jobs, while trust is at least `on`."""
    rng = np.random.default_rng(seed)
    trust, bad, out = np.full(nodes, rule.start), np.zeros(nodes), np.zeros(nodes, dtype=np.bool_)
    for _ in range(jobs):
        cheats = ~out & (trust >= on) & (rng.random(nodes) < rho)
        caught = cheats & (rng.random(nodes) < rule.checked)
        bad += cheats
        trust = np.where(out, trust, np.clip(trust + np.where(caught, -rule.loss, rule.gain), 0.0, 1.0))
        out |= trust < rule.theta
    return AdditiveOutcome(trust, bad, out.astype(np.float64))
