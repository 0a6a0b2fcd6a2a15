"""The plots of `efedllm bench memory`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from efedllm_bench.memory.traffic import DEFINITIONS, SCOPES


def draw(part: str, result: dict[str, Any], path: Path) -> None:
    """One PNG for `part`."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    {"traffic": _traffic, "speed": _speed, "nodes": _nodes, "tiers": _tiers, "blocks": _blocks}[part](axes, result)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _traffic(axes: Any, result: dict[str, Any]) -> None:
    left: Axes = axes[0]
    saved = result["decode_saved"]
    for definition in DEFINITIONS[1:]:
        for scope, style in ((SCOPES[0], "-"), (SCOPES[-1], "--")):
            label = definition if scope == SCOPES[0] else None
            shares = [100 * share for share in saved["Llama-3-8B"]["2048"][definition][scope]]
            left.plot(saved["batches"], shares, style, color=f"C{DEFINITIONS.index(definition)}", label=label)
    left.axhline(60, color="grey", lw=0.8)
    left.set(xscale="log", xlabel="sequences in the batch", ylabel="% of bytes per token saved", ylim=(-5, 80))
    left.set_title("Llama-3-8B, context 2048: weights (-), with KV and head (--)", fontsize=9)
    left.legend(fontsize=8)
    right: Axes = axes[1]
    rows = result["tiling_and_svd"]["by_tokens"]
    for name in ("svd_saves_naive", "svd_saves_tiled_32", "svd_saves_all_reused"):
        right.plot([r["tokens"] for r in rows], [100 * r[name] for r in rows], marker="o", label=name)
    right.axhline(0, color="grey", lw=0.8)
    right.set(xscale="log", xlabel="tokens at once", ylabel="% of traffic that SVD saves")
    right.set_title("768 x 768, rank 230: SVD beside tiling", fontsize=9)
    right.legend(fontsize=8)


def _speed(axes: Any, result: dict[str, Any]) -> None:
    left, right = axes
    for row in result["forms"]:
        mark = "s" if row["profile"] == "exact" else "o"
        left.plot(
            row["bytes"] / 1e6, row["tokens_per_second"], mark, label=f"{row['form']}, {row['profile']}, {row['nodes']}"
        )
    left.set(xlabel="MB read per token", ylabel="tokens/s", xscale="log", yscale="log")
    low = min(row["bytes"] for row in result["forms"])
    high = max(row["bytes"] for row in result["forms"])
    rate = result["bandwidth_gb_per_s"] * 1e9
    left.plot([low / 1e6, high / 1e6], [rate / low, rate / high], color="grey", lw=0.8, label="bandwidth")
    left.legend(fontsize=5, loc="lower left")
    names = [f"{row['form']}, {row['profile']}, {row['nodes']}" for row in result["forms"]]
    right.barh(names, [100 * row["of_limit"] for row in result["forms"]])
    right.set(xlabel="% of the measured bandwidth")
    right.tick_params(axis="y", labelsize=6)


def _nodes(axes: Any, result: dict[str, Any]) -> None:
    left, right = axes
    splits = result["splits"]
    x = [split["nodes"] for split in splits]
    left.plot(x, [max(s["weights_per_node"]) / 1e6 for s in splits], "o-", label="weights, largest node")
    left.plot(x, [s["weights_sum"] / 1e6 for s in splits], "s--", label="weights, sum")
    left.plot(
        x, [s["largest_peak_over_baseline"] / 1e6 for s in splits], "o-", label="peak over libraries, largest node"
    )
    left.plot(x, [s["peaks_over_baseline_sum"] / 1e6 for s in splits], "s--", label="peak over libraries, sum")
    left.set(xlabel="nodes", ylabel="MB", xscale="log", yscale="log")
    left.legend(fontsize=7)
    right.bar([str(n) for n in x], [s["wire_bytes_per_token"] for s in splits])
    right.set(xlabel="nodes", ylabel="bytes on the wire per token")


def _tiers(axes: Any, result: dict[str, Any]) -> None:
    left, right = axes
    for profile in ("float", "exact"):
        rows = [row for row in result["rows"] if row["profile"] == profile and row["ram_mb"]]
        x = [row["ram_mb"] for row in rows]
        left.plot(x, [row["peak_over_baseline_mb"] for row in rows], "o-", label=f"{profile}, peak")
        right.plot(x, [row["tiers"]["slowdown"] for row in rows], "o-", label=profile)
    left.plot(x, x, color="grey", lw=0.8, label="the budget")
    left.set(xlabel="--ram, MB", ylabel="peak over libraries, MB")
    right.set(xlabel="--ram, MB", ylabel="times slower than resident")
    left.legend(fontsize=8)
    right.legend(fontsize=8)


def _blocks(axes: Any, result: dict[str, Any]) -> None:
    for axis, width in zip(axes, (2048, 256), strict=True):
        for name, times in result["ms_by_block"].items():
            if name.endswith(f"width {width}"):
                axis.plot([int(size) for size in times], list(times.values()), "o-", label=name)
        axis.set(xscale="log", xlabel="tokens in a block (1024: naive)", ylabel="ms for 1024 tokens", ylim=(0, None))
        axis.legend(fontsize=8)
