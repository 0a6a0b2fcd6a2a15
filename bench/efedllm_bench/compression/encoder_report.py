"""The encoder benchmark as JSON, table and plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table


def save(result: dict[str, Any], folder: Path) -> None:
    """Write encoder.json and encoder.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, folder / "encoder.png")


def plot(result: dict[str, Any], path: Path) -> None:
    """Cosine with the original against bytes saved, a line for each method, a panel for each kind of text."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = list(result["texts"])
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 3.6), sharey=True, squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for method in dict.fromkeys(row["method"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["method"] == method]
            points = sorted((100 * row["bytes_saved"], row["cosine"][name]) for row in rows)
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=method)
        panel.axhline(result["cosine_of_unrelated_texts"][name], color="grey", linewidth=0.8, linestyle=":")
        panel.set_title(f"all-MiniLM-L6-v2, {name}")
        panel.set_xlabel("bytes saved against 16 bit, %")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("cosine with the original")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def table(result: dict[str, Any]) -> Table:
    """What `save` writes, for a person."""
    shown = Table(title="all-MiniLM-L6-v2 compressed, against itself")
    for column in ("method", "rank dropped", "params saved", "bytes saved", "cosine", "top-10", "seconds"):
        shown.add_column(column, justify="left" if column == "method" else "right")
    for row in result["rows"]:
        shown.add_row(
            row["method"],
            *(f"{row[name]:.1%}" for name in ("rank_dropped", "params_saved", "bytes_saved")),
            " / ".join(f"{value:.4f}" for value in row["cosine"].values()),
            " / ".join(f"{value:.3f}" for value in row["top10"].values()),
            str(row["seconds"]),
        )
    return shown
