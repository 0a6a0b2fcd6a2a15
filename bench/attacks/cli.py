"""The command `efedllm bench attacks`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def attacks(
    quick: Annotated[bool, typer.Option("--quick", help="Few jobs and machines: some minutes.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for attacks.json and the plots.")] = Path("bench/results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Every attack of the list against the verifiers' own code: detections, false accusations, cost."""
    from bench.attacks.report import plots, summary, table
    from bench.attacks.run import AttackBench, run

    console = Console(stderr=True)
    result, curves = run(AttackBench(quick), lambda text: console.print(f"[dim]·[/dim] {text}"))
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    (out / "attacks.json").write_text(text + "\n")
    plots(curves, out)
    if as_json:
        print(text)
        return
    Console().print(table(result))
    for line in summary(result):
        print(line)
