"""Saving and showing a run of the trust benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from efedllm_bench.trust.experiments import Row


def save(result: dict[str, Any], folder: Path) -> Path:
    """Write `trust.json`, a row a line so that changes can be read, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for key, value in result.items():
        rows = isinstance(value, list) and len(value) > 0
        text = "[\n  " + ",\n  ".join(json.dumps(row) for row in value) + "\n ]" if rows else json.dumps(value)
        parts.append(f" {json.dumps(key)}: {text}")
    path = folder / "trust.json"
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    return path


def tables(result: dict[str, Any]) -> list[Table]:
    """What a person looks at first: the comparison, the strategies, the verifiers, the captures."""
    return [
        _contract(result["contract"]),
        _strategies(result["strategies"]),
        _break_even(result["break_even"]),
        _payoffs(result["payoffs"]),
        _captures(result["capture"]),
    ]


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _contract(rows: list[Row]) -> Table:
    columns = ("epochs", "verdicts", "severe", "gray", "re-entries", "verifiers slashed", "values equal")
    table = _table("Contract and model on random histories", "profile", *columns)
    for row in rows:
        slashed = row["deviated"] + row["missed"]
        values = ("epochs", "verdicts", "severe", "gray", "reentered")
        table.add_row(
            row["profile"], *(f"{row[key]:,}" for key in values), f"{slashed:,}", f"{row['values_compared']:,}"
        )
    return table


def _strategies(rows: list[Row]) -> Table:
    columns = ("mean", "median", "p95", "in all", "out", "stake lost", "profit", "deterred at")
    title = (
        "Bad jobs served until excluded and in all, profit as a share of an honest node's, stake in fees; production"
    )
    table = _table(title, "strategy", *columns)
    for row in rows:
        before, deterring = row["bad_before_exclusion"], row["deterring_stake_fees"]
        table.add_row(
            row["strategy"],
            f"{before['mean']:,.1f}",
            f"{before['median']:,.0f}",
            f"{before['p95']:,.0f}",
            f"{row['bad_total']:,.1f}",
            f"{row['excluded_share']:.1%}",
            f"{row['stake_lost']:.0%}",
            f"{row['profit_of_honest']:.2f}",
            "none" if deterring is None else f"{deterring:,.0f}",
        )
    return table


def _break_even(rows: list[Row]) -> Table:
    columns = ("parameters", "jobs", "reward an audit", "honest earn", "dearest audit", "paid share", "needed", "load")
    table = _table(
        "What verifiers are paid: an audit may cost at most so much of the hop it checks", "profile", *columns
    )
    for row in rows:
        table.add_row(
            row["profile"],
            row["parameters"],
            str(row["jobs"]),
            f"{row['reward_per_audit']:.4f}",
            f"{row['honest_alone']:+.3f}",
            f"{row['dearest_audit_of_hop_cost']:.1%}",
            f"{row['paid_share']:.2%}",
            f"{row['needed_share']:.2%}",
            f"{row['audit_load_of_compute']:.1%}",
        )
    return table


def _payoffs(rows: list[Row]) -> Table:
    shown = [row for row in rows if row["jobs"] == 24]
    rules = list(dict.fromkeys(row["rule"] for row in shown))
    table = _table("Utility of verifiers per audit, fees; 24 jobs an epoch", "profile and strategy", *rules)
    for profile in dict.fromkeys(row["profile"] for row in shown):
        by_rule = {row["rule"]: row["utility_per_audit"] for row in shown if row["profile"] == profile}
        for strategy in by_rule[rules[0]]:
            table.add_row(f"{profile}, {strategy}", *(f"{by_rule[rule][strategy]:.2f}" for rule in rules))
    return table


def _captures(rows: list[Row]) -> Table:
    columns = ("colluding", "median held", "formula", "slash held", "formula", "blocked", "formula")
    table = _table("Committees from 60 seats: the contract's draw and the hypergeometric formula", "k", *columns)
    for row in rows:
        parts = ("majority", "majority_formula", "two_thirds", "two_thirds_formula", "blocked", "blocked_formula")
        share = f"{row['malicious'] / row['seats']:.0%}"
        table.add_row(str(row["size"]), share, *(f"{row[part]:.2%}" for part in parts))
    return table
