"""The table and the plots of `efedllm bench attacks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from efedllm_bench.attacks.other_schemes import METHODS
from efedllm_bench.attacks.run import Curves
from efedllm_bench.attacks.statistics import roc

# Cheats near the tolerance, and the one that a sketch of the largest values cannot see.
SHOWN = ("out_noise_1e-5", "out_noise_1e-4", "finetune_1e-4", "precision_fp16", "out_sparse", "out_outside_topk")
_LABELS = {
    "statistic": "statistic of the auditor",
    "projection": "32 random directions",
    "largest_values": "largest 128 of 32 positions",
    "equality": "equality of bits",
}


def table(result: dict[str, Any]) -> Table:
    """One line per strategy: detections and outcome in both profiles, tokens of compute saved of 1,000 served, areas
    under the curves. "-" where nothing was measured."""
    found = Table(title="Cheats of a node: detected / audits")
    for column in ("#", "cheat", "exact", "float", "95 % from", "jobs at 5 %", "saved", "AUC", "AUC TOPLOC"):
        found.add_column(column, justify="left" if column == "cheat" else "right", no_wrap=column == "cheat")
    exact = {item["name"]: item for item in result.get("exact", {}).get("attacks", ())}
    inexact = {item["name"]: item for item in result.get("float", {}).get("attacks", ())}
    for name, item in {**inexact, **exact}.items():
        in_float = inexact.get(name)
        areas = (in_float or {}).get("per_audit_auc", {})
        found.add_row(
            str(item["number"]),
            name,
            _share(exact.get(name)),
            _share(in_float),
            str(item["interval_95"][0]),
            str(item["jobs_until_caught"]["0.05"]),
            _saved(in_float, exact.get(name)),
            _area(areas, "statistic"),
            _area(areas, "largest_values"),
        )
    return found


def _share(item: dict[str, Any] | None) -> str:
    if item is None:
        return "-"
    mark = "" if item["as_expected"] else " !"
    # Most are severe: what is not stands out.
    outcome = "" if item["outcome"] == "severe" else f" {item['outcome']}"
    return f"{item['detected']}/{item['audits']}{outcome}{mark}"


def _saved(*items: dict[str, Any] | None) -> str:
    """The first measurement among the profiles."""
    known = [item["tokens_saved_per_1000"] for item in items if item is not None]
    return next((f"{saved:.0f}" for saved in known if saved is not None), "-")


def _area(areas: dict[str, Any], method: str) -> str:
    return str(areas[method]["auc"]) if method in areas else "-"


def _rate(interval: dict[str, Any]) -> str:
    return f"{interval['hits'] / interval['trials']:.1%}"


def summary(result: dict[str, Any]) -> list[str]:
    """What a reader of the terminal must not miss."""
    lines = []
    for profile in (name for name in ("exact", "float") if name in result):
        part = result[profile]
        if "attacks" in part:
            wrong = [a["name"] for a in part["attacks"] if not a["as_expected"]]
            judged = [m for m in part["messages"] if m["judge"] != "nobody"]
            lies = [m["name"] for m in judged if not m["as_expected"]]
            apart = [m["name"] for m in part["messages"] if m["judge"] == "nobody"]
            lines.append(
                f"{profile}: {len(part['attacks']) - len(wrong)} of {len(part['attacks'])} strategies and "
                f"{len(judged) - len(lies)} of {len(judged)} lies judged as expected"
                + (f"; not: {', '.join(wrong + lies)}" if wrong or lies else "")
                + (f"; counted apart, as nothing that runs looks for it: {', '.join(apart)}" if apart else "")
            )
        if "calibration" in part:
            limit = part["calibration"]["tolerance"]
            lines.append(
                f"{profile}: judged by tau {limit['tau']:.2g}, calibrated on this model ({limit['honest_count']:,} "
                f"rows); weakest cheat {limit['weakest_attack']}, {limit['attack_min'] / limit['tau']:.1f} times above"
            )
        if "fleet" in part:
            fleet = part["fleet"]
            lines.append(
                f"{profile}: {fleet['false_accusations']} false accusations in {fleet['token_hops']:,} token-hops of "
                f"{len(fleet['machines'])} honest machines (95 %: below {fleet['bound_95_per_token_hop']:.1e}); "
                f"largest statistic {fleet['largest_statistic']:.3g}"
            )
        if "searched" in part and profile == "float":
            searched = part["searched"]
            lines.append(
                f"{profile}: of {searched['inputs']} inputs searched to strain honest machines "
                f"{searched['beyond_the_limits_alone']} exceed the limits alone and {searched['false_accusations']} "
                "are held against them"
            )
        elif "searched" in part:
            searched = part["searched"]
            lines.append(
                f"{profile}: {searched['inputs']} strained inputs through {' and '.join(searched['kernels'])}: "
                f"{len(searched['differing'])} differ, {sum(searched['refused_by_both'].values())} refused by both"
            )
        if "cost" in part:
            cost = part["cost"]
            lines.append(
                f"{profile}: an audit computes {cost['route_ratio']:.1%} of the decoding that it checks, with hashes "
                f"and signatures {cost['route_whole_ratio']:.1%} of the hop; all audits "
                + ", ".join(f"{load['share']:.1%} ({load['network']})" for load in cost["load"])
            )
            for item in [*cost["hops"], *cost.get("larger", [])]:
                bound = item["bound"]
                least = "" if bound is None else f" (products at the peak alone {bound['least']:.1%})"
                lines.append(f"{profile}: {item['what']}: {item['compute']['ratio']:.1%}{least}")
    if "aimed" not in result.get("float", {}):
        return lines
    aimed = result["float"]["aimed"]
    lines.append(
        "float: perturbations inside the tolerance, aimed: "
        + ", ".join(
            f"{aimed[name]['flipped']} of {aimed[name]['positions']:,} tokens replaced by {who} (95 %: "
            f"{aimed[name]['flip_interval']['low']:.2%} to {aimed[name]['flip_interval']['high']:.2%}; leads up to "
            f"{aimed[name]['largest_lead_flipped'] or 0:.3g} nats)"
            for name, who in (("one_hop", "the last hop"), ("all_hops", "all hops"))
        )
    )
    lot = result["games"]
    lines.append(
        f"arithmetic of the lot, no node or verifier: of {lot['rate_ppm'] / 1e4:.0f} % drawn, "
        f"{_rate(lot['audit_aware'])} of leaves believed safe, {_rate(lot['grind_salt'])} of the best of "
        f"{lot['grind_salt']['salts_tried']:,} salts, {_rate(lot['last_revealer_of_two_seeds'])} with two seeds to "
        "choose from"
    )
    door = result["publisher_backdoor"]
    lines.append(
        f"a model made to be accused spreads {door['times_wider']} times wider; "
        f"honest float nodes pass: {door['honest_float_nodes_pass']}; exact bits hold: {door['exact_bits_hold']}"
    )
    return lines


def plots(curves: Curves, out: Path) -> list[Path]:
    """attacks-roc.png: one panel per cheat, a curve per method."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in SHOWN if name in curves.attacks]
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 6), sharex=True, sharey=True)
    for axis, name in zip(axes.flat, names, strict=False):
        for method in METHODS:
            false, true = roc(curves.honest[method], curves.attacks[name][method])
            # A rate of zero has no place on a logarithmic axis: half of what one sample would be.
            floor = 0.5 / len(curves.honest[method])
            axis.step([max(f, floor) for f in false], true, where="post", label=_LABELS[method], linewidth=1.4)
        axis.set_xscale("log")
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("honest samples above the threshold")
    for axis in axes[:, 0]:
        axis.set_ylabel("cheating samples above it")
    axes.flat[0].legend(fontsize=7, loc="lower right")
    figure.suptitle("Float profile: every position (sketch: 32 positions) as one sample", fontsize=10)
    figure.tight_layout()
    path = out / "attacks-roc.png"
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return [path]
