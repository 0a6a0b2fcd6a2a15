"""`efedllm bench memory`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from efedllm.errors import EfedError
from efedllm_bench.memory.traffic import MEANING

MODEL = Path("models/pylib-7m")
PARTS = ("traffic", "speed", "nodes", "tiers", "blocks")


def memory(
    part: Annotated[list[str] | None, typer.Option(help=f"Only this part: {', '.join(PARTS)}. Repeatable.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="How often each form is timed.")] = 9,
    model: Annotated[Path, typer.Option(help="Checkpoint that is spread over nodes.")] = MODEL,
    out: Annotated[Path, typer.Option(help="Folder for the JSON files and plots.")] = Path("bench/results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bytes moved per token, counted and predicted; decode speed against bandwidth; memory of nodes and budgets."""
    console = Console(stderr=True)
    try:
        wanted = tuple(part or PARTS)
        if unknown := [name for name in wanted if name not in PARTS]:
            raise EfedError("bad-option", f"There is no part {unknown[0]}.", f"Parts: {', '.join(PARTS)}.")
        from efedllm_bench.memory.run import run

        found = run(wanted, turns, model, out, lambda text: console.print(f"[dim]·[/dim] {text}"))
    except EfedError as error:
        if as_json:
            print(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
        else:
            console.print(f"error: {error}", highlight=False)
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(found))
        return
    if "traffic" in found:
        _verdicts(found["traffic"])
    if "speed" in found:
        _speed(found["speed"])
    if "nodes" in found:
        _nodes(found["nodes"])
    if "tiers" in found:
        _tiers(found["tiers"])


def _verdicts(result: dict[str, Any]) -> None:
    counted = result["counted"]
    print(f"counted by really computing: {counted['equal']} of {counted['cases']} cases equal to the formulas")
    for name, meaning in MEANING.items():
        print(f"{name}: {meaning}")
    table = Table(title='"60 % less memory bandwidth at 70 % compression", 16-bit numbers')
    for column in ("definition", "counted", "batch", "least saved", "most saved", "60 %"):
        table.add_column(column)
    for row in result["verdicts"]:
        shares = row["saved"].values()
        table.add_row(
            row["definition"],
            row["counted"],
            str(row["batch"]),
            f"{min(shares):.1%}",
            f"{max(shares):.1%}",
            row["sixty_percent"],
        )
    Console().print(table)


def _speed(result: dict[str, Any]) -> None:
    table = Table(title=f"Cold weights, one thread, bandwidth {result['bandwidth_gb_per_s']} GB/s")
    for column in ("form", "profile", "nodes", "MB/token", "saved", "ms/token", "faster", "of limit"):
        table.add_column(column, justify="left" if column in ("form", "profile") else "right")
    for row in result["forms"]:
        table.add_row(
            row["form"],
            row["profile"],
            str(row["nodes"]),
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['saved_of_bf16']:.0%}",
            str(row["ms_per_token"]),
            f"{row['faster_than_bf16']}x",
            f"{row['of_limit']:.0%}",
        )
    Console().print(table)


def _nodes(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['model']} over nodes, MB")
    for column in ("nodes", "weights, largest", "weights, sum", "peak, largest", "peaks, sum", "wire bytes/token"):
        table.add_column(column, justify="right")
    for row in result["splits"]:
        table.add_row(
            str(row["nodes"]),
            f"{max(row['weights_per_node']) / 1e6:.1f}",
            f"{row['weights_sum'] / 1e6:.1f}",
            f"{row['largest_peak_over_baseline'] / 1e6:.1f}",
            f"{row['peaks_over_baseline_sum'] / 1e6:.1f}",
            f"{row['wire_bytes_per_token']:,}",
        )
    Console().print(table)


def _tiers(result: dict[str, Any]) -> None:
    table = Table(title="A shard within a budget")
    for column in ("profile", "--ram MB", "peak MB", "resident", "times slower", "tokens/s"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        tiers = row["tiers"] or {"resident": "all", "slowdown": 1.0}
        table.add_row(
            row["profile"],
            str(row["ram_mb"] or "-"),
            str(row["peak_over_baseline_mb"]),
            str(tiers["resident"]),
            str(tiers["slowdown"]),
            str(row["tokens_per_second"]),
        )
    Console().print(table)
