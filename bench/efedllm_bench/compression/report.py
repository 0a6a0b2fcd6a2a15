"""The compression benchmark as JSON, tables and plots."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from efedllm_bench.processor import processor_name

JSON_NAME = "compression.json"


def machine() -> dict[str, Any]:
    """Processor, cores and torch of this machine."""
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def load(folder: Path) -> dict[str, Any]:
    """An earlier result; empty when there is none."""
    try:
        found = json.loads((folder / JSON_NAME).read_text())
    except (OSError, ValueError):
        # Nothing measured yet: everything is.
        return {}
    return found if isinstance(found, dict) else {}


def save(folder: Path, **parts: Any) -> dict[str, Any]:
    """Put `parts` into the JSON beside those of earlier runs."""
    folder.mkdir(parents=True, exist_ok=True)
    result = load(folder) | {"machine": machine()} | parts
    partial = folder / f"{JSON_NAME}.tmp"
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(folder / JSON_NAME)
    return result


def draw(result: dict[str, Any], folder: Path) -> None:
    """compression.png (quality against bytes saved) and compression-time.png (seconds against the size)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    if "curves" in result:
        _draw_quality(result["curves"], folder / "compression.png", pyplot)
    if "matrix" in result:
        _draw_time(result["matrix"], folder / "compression-time.png", pyplot)


def _draw_quality(curves: dict[str, Any], path: Path, pyplot: Any) -> None:
    names = list(curves["tokens"])
    figure, panels = pyplot.subplots(2, len(names), figsize=(5.2 * len(names), 6.4), sharex=True)
    known = list(dict.fromkeys(row["name"] for row in curves["rows"]))
    # Twenty colours: the plain cycle of ten comes round again before the curves end.
    colours = {name: pyplot.get_cmap("tab20")(index % 20) for index, name in enumerate(known)}
    for column, text in enumerate(names):
        for name in known:
            rows = sorted((r for r in curves["rows"] if r["name"] == name), key=lambda r: float(r["bytes_saved"]))
            saved = [100 * row["bytes_saved"] for row in rows]
            style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1, "label": name}
            style["color"] = colours[name]
            # Below a hundredth of a percent the figures are noise; logarithms need something positive.
            panels[0][column].plot(saved, [max(1e-2, 100 * row["increase"][text]) for row in rows], **style)
            panels[1][column].plot(saved, [100 * row["top1"][text] for row in rows], **style)
        panels[0][column].set_yscale("log")
        panels[0][column].set_title(f"{curves['model']}, {text}")
        panels[1][column].set_xlabel("bytes saved against 16 bit, %")
        for row_ in (0, 1):
            panels[row_][column].grid(alpha=0.3)
    panels[0][0].set_ylabel("rise of the perplexity, %")
    panels[1][0].set_ylabel("same favourite token, %")
    figure.legend(*panels[1][0].get_legend_handles_labels(), fontsize=7, loc="lower center", ncols=6)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    _save(figure, path)
    pyplot.close(figure)


def _draw_time(matrix: dict[str, Any], path: Path, pyplot: Any) -> None:
    figure, panel = pyplot.subplots(figsize=(5.2, 3.6))
    for name in dict.fromkeys(row["method"] for row in matrix["rows"]):
        rows = [row for row in matrix["rows"] if row["method"] == name]
        points = sorted((row["rows"] * row["cols"], row["cpu_seconds"]) for row in rows)
        panel.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=name)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("numbers in the matrix")
    panel.set_ylabel("processor seconds")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)
    figure.tight_layout()
    _save(figure, path)
    pyplot.close(figure)


def _save(figure: Any, path: Path) -> None:
    """As PNG with a palette: a third of the bytes, and the same to the eye."""
    from PIL import Image

    figure.savefig(path, dpi=80)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(255, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def tables(result: dict[str, Any]) -> list[Table]:
    """What `save` keeps, for a person."""
    shown = []
    curves = result.get("curves")
    if curves:
        table = Table(
            title=f"{curves['model']}: perplexity {' / '.join(map(str, curves['perplexity_original'].values()))}"
        )
        for column in ("method", "rank dropped", "params saved", "bytes saved", "perplexity", "top-1", "seconds"):
            table.add_column(column, justify="left" if column == "method" else "right")
        for row in curves["rows"]:
            table.add_row(
                row["name"],
                *(f"{row[name]:.1%}" for name in ("rank_dropped", "params_saved", "bytes_saved")),
                " / ".join(f"{value:+.2%}" for value in row["increase"].values()),
                " / ".join(f"{value:.1%}" for value in row["top1"].values()),
                str(row["seconds"]),
            )
        shown.append(table)
        best = Table(title="Fewest bytes within a floor, on both texts")
        for column in ("perplexity rises by at most", "method", "bytes saved"):
            best.add_column(column)
        for one in curves["optimal"]:
            best.add_row(f"{one['floor']:.0%}", one["name"], f"{one['bytes_saved']:.1%}")
        shown.append(best)
    if "matrix" in result:
        table = Table(title=f"One matrix, {result['matrix']['threads']} threads")
        for column in ("matrix", "method", "seconds", "processor seconds"):
            table.add_column(column, justify="right")
        for row in result["matrix"]["rows"]:
            table.add_row(f"{row['rows']} x {row['cols']}", row["method"], str(row["seconds"]), str(row["cpu_seconds"]))
        shown.append(table)
    return shown
