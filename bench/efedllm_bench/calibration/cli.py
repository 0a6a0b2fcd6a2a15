"""`efedllm model calibrate`: how far honest machines stray on a float model, written into its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    directory: Annotated[Path, typer.Option("--dir", help="Folder of a published float model.")],
    text: Annotated[list[Path], typer.Option(help="Text file to run through it; repeat it for several.")],
    tokens: Annotated[int, typer.Option(help="Tokens of the texts to use.")] = 4096,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer machines.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the evidence to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the tolerance of a float model: honest machines against the weakest cheats. Do this before publishing."""
    from rich.console import Console

    from efedllm_bench.calibration.measure import CalibrateOptions
    from efedllm_bench.calibration.measure import calibrate as measure
    from efedllm_bench.fleet.machines import machines

    console = Console(stderr=True)
    options = CalibrateOptions(directory, tuple(text), tokens, tuple(machines(eager=True, quick=quick)))
    manifest, evidence = measure(options, lambda line: console.print(f"[dim]·[/dim] {line}", highlight=False))
    found = manifest.tolerance
    assert found is not None
    if report is not None:
        report.write_text(json.dumps(evidence, indent=1) + "\n")
    if as_json:
        tolerance = found.model_dump(mode="json")
        print(
            json.dumps({"dir": str(directory), "tolerance": tolerance, "manifest_hash": "0x" + manifest.hash().hex()})
        )
        return
    print(f"{found.honest_count:,} honest rows: at most {found.honest_max:.3g} beyond rounding; tau {found.tau:.3g}")
    for name, deviation in sorted(evidence["cheats"].items(), key=lambda pair: pair[1]):
        print(f"  {name}: at least {deviation:.3g}, {deviation / found.tau:.1f} times tau")
    for name, deviation in evidence["noises"].items():
        print(f"  {name}, which saves nothing and does not count: at least {deviation:.3g}")
    verdict = "slashable" if found.slashable else "NOT slashable: the weakest cheat is too near"
    print(f"{verdict}; the manifest's hash changed, publish it now")
