"""`efedllm bench trust`: the whole benchmark, from settings to one JSON object and plots."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from efedllm_bench.processor import processor_name
from efedllm_bench.trust import capture, experiments, games
from efedllm_bench.trust.experiments import Say
from efedllm_bench.trust.history import Comparison
from efedllm_bench.trust.routing import Fleet
from efedllm_bench.trust.rule import Rule
from efedllm_bench.trust.simulate import Economy, Setting
from efedllm_deploy.profile import Profile

# Values under which honest verifiers lose, by profile and section, to compare the shipped ones with: most of the
# emission to nodes, who live on fees, and a prior mass that has trusted nodes audited twice as often.
FORMER: dict[str, dict[str, dict[str, int]]] = {
    "testnet": {"rewards": {"servers_bps": 7_000, "verifiers_bps": 2_000}},
    "production": {
        "committee": {"prior_mass": 20_000_000},
        "rewards": {"servers_bps": 7_000, "verifiers_bps": 2_000},
    },
}


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    nodes: int
    sweep_nodes: int
    epochs: int
    sweep_epochs: int
    routing_epochs: int
    game_epochs: int
    draws: int
    compared_epochs: int


FULL = Size(2_000, 300, 500, 300, 60, 60, 20_000, 120)
QUICK = Size(200, 60, 150, 100, 20, 8, 1_000, 25)


def run(quick: bool, say: Say) -> dict[str, Any]:
    """Everything docs/trust.md quotes. Raises ProtocolError "model-differs" when contract and model disagree."""
    size = QUICK if quick else FULL
    production = Profile.load("production")
    rule, economy, fleet = Rule.of(production), Economy(), Fleet(rho=0.1)
    whole = Setting(rule, nodes=size.nodes, epochs=size.epochs)
    sweep = Setting(rule, nodes=size.sweep_nodes, epochs=size.sweep_epochs)
    routed = Setting(rule, nodes=fleet.nodes, epochs=size.routing_epochs)
    length = production.clock.epoch_length
    return {
        "machine": machine(),
        "size": "quick" if quick else "full",
        "settings": {"profile": "production", **asdict(size), "jobs": whole.jobs, "economy": asdict(economy)},
        "randomness": "numpy PCG64, fixed seeds; histories and draws from sha256 and keccak counters",
        "contract": compare(size.compared_epochs, say),
        "strategies": experiments.strategies(whole, economy, say),
        "additive": experiments.additive_rule(30, 2_000 if quick else 20_000),
        "audit_rate_sweep": experiments.audit_rate_sweep(sweep, say),
        "p_max_sweep": experiments.p_max_sweep(sweep, say),
        "theta_sweep": experiments.theta_sweep(sweep, say),
        "memory_sweep": experiments.memory_sweep(sweep, say),
        "false_alarms": experiments.false_alarm_sweep(whole, economy, length, say),
        "detection": experiments.detection_sweep(sweep, say),
        "filtering": experiments.filtering(routed, fleet, say),
        "newcomers": experiments.newcomers(routed, fleet),
        "joining": experiments.joining(routed, replace(fleet, join_epoch=routed.epochs // 3)),
        "reward_shares": experiments.reward_shares((1, 2, 6), sweep),
        "break_even": games.break_even(economy, FORMER, max(size.game_epochs // 4, 2), say),
        "payoffs": games.payoffs(economy, size.game_epochs, say),
        "crowds": games.crowds(economy, production, max(size.game_epochs // 2, 4), say),
        "capture": captures(size.draws, say),
    }


def compare(epochs: int, say: Say) -> list[dict[str, Any]]:
    """Random histories on the compiled contracts and on the model, under every profile and two harsher rules."""
    rows = []
    for name, changes in (
        ("local", {}),
        ("testnet", {"exclusion_epochs": 6}),
        ("production", {"exclusion_epochs": 9}),
        ("production", {"theta": 700_000, "reentry": 800_000, "prior_mass": 1_000_000, "exclusion_epochs": 4}),
    ):
        say(f"contract and model: {name} {changes or ''}")
        profile = Profile.load(name)
        edited = profile.model_copy(update={"committee": profile.committee.model_copy(update=changes)})
        seen = Comparison(edited, nodes=6, verifiers=8, seed=f"{name} {changes}".encode()).run(epochs)
        rows.append({"profile": name, "changes": changes, **asdict(seen)})
    return rows


def captures(count: int, say: Say) -> list[dict[str, Any]]:
    """Capture rates, rounded."""
    say(f"committees: {count} draws")
    rows = [asdict(item) for item in capture.measure(60, count, (0.1, 0.2, 0.33, 0.4, 0.45))]
    return [{key: round(value, 8) if isinstance(value, float) else value for key, value in row.items()} for row in rows]


def machine() -> dict[str, Any]:
    """Facts of this machine that a reader needs; no names."""
    return {"cpu": processor_name(), "cores": os.cpu_count(), "python": sys.version.split()[0], "numpy": np.__version__}
