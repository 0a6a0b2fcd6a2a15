"""The command `efedllm bench attacks`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from efedllm.errors import ConfigError


def attacks(
    quick: Annotated[bool, typer.Option("--quick", help="Few jobs and machines: some minutes.")] = False,
    profile: Annotated[str, typer.Option(help="exact, float or both.")] = "both",
    part: Annotated[str, typer.Option(help="strategies, fleet, cost or all.")] = "all",
    out: Annotated[Path, typer.Option(help="Folder for attacks.json and the plots.")] = Path("bench/results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Every attack of the list against the verifiers' own code: detections, false accusations, cost.

    One profile or part alone replaces what attacks.json holds of it and keeps the rest.
    """
    from efedllm_bench.attacks.report import plots, summary, table
    from efedllm_bench.attacks.run import PARTS, PROFILES, AttackBench, run

    chosen = tuple(one for one in PROFILES if profile in (one, "both"))
    parts = tuple(one for one in PARTS if part in (one, "all"))
    if not chosen or not parts:
        what, known = ("profile", (*PROFILES, "both")) if not chosen else ("part", (*PARTS, "all"))
        raise ConfigError("bad-option", f"There is no such {what}.", f"Use one of {', '.join(known)}.")
    console = Console(stderr=True)
    options = AttackBench(quick, chosen, parts)
    began = time.monotonic()
    made, curves = run(options, lambda text: console.print(f"[dim]{time.monotonic() - began:5.0f} s[/dim] {text}"))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "attacks.json"
    # Read after the run: another part may have been written meanwhile.
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() and options.partial else {}
    for key, value in made.items():
        result[key] = {**result.get(key, {}), **value} if key in PROFILES else value
    text = json.dumps(result, indent=1)
    path.write_text(text + "\n")
    if curves is not None:
        plots(curves, out)
    if as_json:
        print(text)
        return
    Console().print(table(result))
    for line in summary(result):
        print(line)
