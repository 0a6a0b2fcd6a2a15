"""Plots of the trust benchmark, small PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from efedllm_bench.trust.experiments import Row

DPI = 80
SIZE = (6.4, 4.0)


def draw_all(result: dict[str, Any], folder: Path) -> list[str]:
    """Write every plot of a finished run into `folder`; their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "trust-audit-rate.png": _audit_rate,
        "trust-theta.png": _theta,
        "trust-memory.png": _memory,
        "trust-routing.png": _routing,
        "trust-verifiers.png": _crowds,
        "trust-capture.png": _capture,
    }
    for name, plot in drawn.items():
        figure, axes = plt.subplots(figsize=SIZE)
        plot(axes, result)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        figure.tight_layout()
        figure.savefig(folder / name, dpi=DPI)
        plt.close(figure)
    return list(drawn)


def _series(rows: Sequence[Row], by: str, x: str, y: str) -> dict[Any, tuple[list[Any], list[Any]]]:
    """Columns x and y of `rows`, split by the values of `by`; rows without y are left out."""
    split: dict[Any, tuple[list[Any], list[Any]]] = {}
    for row in rows:
        if row[y] is not None:
            xs, ys = split.setdefault(row[by], ([], []))
            xs.append(row[x])
            ys.append(row[y])
    return split


def _audit_rate(axes: Axes, result: dict[str, Any]) -> None:
    for rho, (xs, ys) in _series(result["audit_rate_sweep"], "rho", "honest_audit_rate", "bad_mean").items():
        axes.semilogy([100 * x for x in xs], ys, marker="o", label=f"cheats on {100 * rho:g} % of its jobs")
    axes.set_xlabel("audit rate of an honest node in the long run, %")
    axes.set_ylabel("bad jobs before exclusion, mean")


def _theta(axes: Axes, result: dict[str, Any]) -> None:
    rows = result["theta_sweep"]
    for jobs, (xs, ys) in _series(rows, "jobs", "theta_ppm", "bad_gray_mean").items():
        axes.plot([x / 1e6 for x in xs], ys, marker="o", label=f"bad jobs (gray, 10 %) at {jobs} jobs an epoch")
    for jobs, (xs, ys) in _series(rows, "jobs", "theta_ppm", "epochs_to_active").items():
        axes.plot([x / 1e6 for x in xs], ys, marker="x", linestyle="--", label=f"epochs to active at {jobs} jobs")
    axes.set_yscale("log")
    # Room for the legend above the curves.
    axes.set_ylim(1, 3_000)
    axes.set_xlabel("theta")
    axes.set_ylabel("bad jobs before exclusion; epochs to active")


def _memory(axes: Axes, result: dict[str, Any]) -> None:
    rows = result["memory_sweep"]
    for column, what, style in (("on_off_bad_mean", "on-off", "-"), ("one_percent_bad_mean", "1 % of jobs", "--")):
        for shift, (xs, ys) in _series(rows, "decay_shift", "steady_audit_rate", column).items():
            axes.plot([100 * x for x in xs], ys, style, marker="o", label=f"{what}, decay 1/{2**shift} an epoch")
    axes.set_xlabel("audit rate of an honest node in the long run, % (prior mass 2 to 100 audits)")
    axes.set_ylabel("bad jobs before exclusion, mean")
    axes.set_ylim(bottom=0)


def _routing(axes: Axes, result: dict[str, Any]) -> None:
    for row in result["filtering"]:
        if row["malicious"] in (0.2, 0.5) and (row["explore"] or not row["trust_weighs"]):
            style = "-" if row["trust_weighs"] else "--"
            label = f"{row['malicious']:.0%} cheat, {'trust weighs' if row['trust_weighs'] else 'trust ignored'}"
            axes.plot([100 * x for x in row["work_of_malicious"][:40]], style, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("share of the work that cheats get, %")


def _crowds(axes: Axes, result: dict[str, Any]) -> None:
    for kind in ("lazy pass", "collude"):
        for taps in (False, True):
            rows = [r for r in result["crowds"] if (r["kind"], r["taps"]) == (kind, taps)]
            advantage = [r["deviant"] - r["honest"] for r in rows]
            label = f"{kind}, {'taps' if taps else 'no taps'}, 1 % of nodes cheat"
            axes.plot([100 * r["share"] for r in rows], advantage, marker="o", label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_xlabel("share of the seats, %")
    axes.set_ylabel("advantage over honest per audit, fees")


def _capture(axes: Axes, result: dict[str, Any]) -> None:
    for size in sorted({row["size"] for row in result["capture"]}):
        rows = [row for row in result["capture"] if row["size"] == size]
        share = [100 * row["malicious"] / row["seats"] for row in rows]
        (line,) = axes.plot(share, [row["majority_formula"] for row in rows], label=f"k = {size}, median")
        axes.plot(share, [row["majority"] for row in rows], "o", color=line.get_color())
        axes.plot(
            share, [row["two_thirds_formula"] for row in rows], ":", color=line.get_color(), label=f"k = {size}, slash"
        )
    axes.set_yscale("log")
    axes.set_ylim(1e-5, 1)
    axes.set_xlabel("colluding seats, % of 60 (dots: the contract's draw, lines: hypergeometric)")
    axes.set_ylabel("probability")
