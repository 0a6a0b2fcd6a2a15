"""`efedllm bench compression`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

PARTS = ("curves", "healed", "matrix", "ray")
console = Console(stderr=True)


def compression(
    quick: Annotated[bool, typer.Option("--quick", help="A few points of each curve, small matrices.")] = False,
    only: Annotated[str | None, typer.Option(help=f"One part: {', '.join(PARTS)}. Else all of them.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of healing.")] = 150,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the result already has.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for compression.json and the plots.")] = Path("bench/results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What every method of compression costs the bundled model, how long it takes, and how that grows. Resumes."""
    from efedllm.checkout import project_root
    from efedllm.errors import ConfigError
    from efedllm_bench.compression import matrix
    from efedllm_bench.compression import run as curves
    from efedllm_bench.compression.report import draw, load, save, tables

    if only is not None and only not in PARTS:
        raise ConfigError("bad-option", f"Unknown part {only}.", f"Use one of {', '.join(PARTS)}.")
    model = project_root() / "models" / "pylib-7m"

    def say(text: str) -> None:
        console.print(f"[dim]·[/dim] {text}")

    def keep(part: str, result: dict[str, Any]) -> None:
        save(out, **{part: result})

    def wanted(part: str) -> bool:
        return only == part or (only is None and not (quick and part == "healed"))

    earlier = {} if fresh else load(out).get("curves", {})
    chosen = curves.cases(quick) if wanted("curves") else []
    chosen += curves.healed_cases(steps) if wanted("healed") else []
    if chosen:
        curves.run(model, chosen, earlier, say, partial(keep, "curves"))
    if wanted("matrix"):
        before = {} if fresh else load(out).get("matrix", {})
        matrix.run(quick, before, say, partial(keep, "matrix"))
    if wanted("ray"):
        save(out, ray=matrix.ray_speed_up(model, 2, say))
    result = load(out)
    draw(result, out)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        for table in tables(result):
            Console().print(table)
