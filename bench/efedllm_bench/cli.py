"""Measure the network: every figure of the README."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from efedllm import logs
from efedllm_bench.attacks.cli import attacks
from efedllm_bench.compression.cli import compression
from efedllm_bench.memory.cli import memory
from efedllm_bench.speed.cli import decode, kernels
from efedllm_bench.startup import startup

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)

console = Console(stderr=True)


@app.callback()
def bench() -> None:
    """Measure the network: every figure of the README."""
    logs.setup("warning")


@app.command()
def demo(
    turns: Annotated[int, typer.Option(min=1, help="How often each route is measured.")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens of one generation.")] = 128,
    with_demo: Annotated[bool, typer.Option("--demo/--no-demo", help="Run `efedllm demo` for gas as well.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write the JSON to this file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tokens per second through 1, 2 and 4 nodes against transformers, bytes, signatures, gas."""
    from efedllm_bench.network.demo import DemoBench, run

    options = DemoBench(turns, tokens, with_demo)
    result = asyncio.run(run(options, lambda text: console.print(f"[dim]·[/dim] {text}")))
    text = json.dumps(result, indent=2)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
    if as_json:
        print(text)
    else:
        _show(result)


@app.command()
def encoder(
    quick: Annotated[bool, typer.Option("--quick", help="A few points of each curve.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for encoder.json and the plot.")] = Path("bench/results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What every method of compression costs a trained sentence encoder, on two kinds of text."""
    from efedllm.checkout import project_root
    from efedllm_bench.compression.encoder import paragraphs, run
    from efedllm_bench.compression.encoder_report import save, table

    folder = project_root() / "models" / "pylib-7m"
    texts = {"source code": folder / "held-out.txt", "prose": folder / "held-out-2.txt"}
    lines = {name: paragraphs(path)[:200] for name, path in texts.items() if path.exists()}
    result = run(quick, lines, folder / "calibration.txt", lambda text: console.print(f"[dim]·[/dim] {text}"))
    save(result, out)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        Console().print(table(result))


app.command()(attacks)
app.command()(compression)
app.command()(memory)
app.command()(kernels)
app.command()(decode)
app.command()(startup)


@app.command()
def trust(
    quick: Annotated[bool, typer.Option("--quick", help="Few nodes and epochs: a minute.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for trust.json and the plots.")] = Path("bench/results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """The trust rule against its contract, cheating nodes and verifiers by the thousand, captured committees."""
    from efedllm_bench.trust.plots import draw_all
    from efedllm_bench.trust.report import save, tables
    from efedllm_bench.trust.run import run

    result = run(quick, lambda text: console.print(f"[dim]·[/dim] {text}"))
    save(result, out)
    draw_all(result, out)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        for table in tables(result):
            Console().print(table)


def _show(result: dict[str, Any]) -> None:
    base = result["baseline_tokens_per_second"]
    print(f"transformers.generate: {base['median']} tokens/s ({base['slowest']} to {base['fastest']})")
    table = Table(title="Through the network, one thread per node")
    for column in ("hops", "tokens/s", "of baseline", "ms/token", "first token s", "bytes/token", "signing+hashing"):
        table.add_column(column, justify="right")
    for route in result["routes"]:
        table.add_row(
            str(route["hops"]),
            f"{route['tokens_per_second']} ({route['slowest']} to {route['fastest']})",
            f"{route['of_baseline']:.0%}",
            str(route["ms_per_token"]),
            str(route["first_token_s"]),
            f"{route['bytes_per_token']:,}",
            f"{route['authentication_share']:.1%}",
        )
    Console().print(table)
    print(f"one more hop adds {result['ms_per_extra_hop']} ms per token")
    demo = result["demo"]
    if demo is None:
        return
    print(f"demo: {demo['seconds']} s, first token after {demo['seconds_to_first_token']} s")
    gas = Table(title="Gas")
    gas.add_column("operation")
    gas.add_column("mean", justify="right")
    for name, value in demo["gas"].items():
        gas.add_row(name, f"{value:,}")
    Console().print(gas)
    each = ", ".join(f"{gas:,} at {jobs}" for jobs, gas in demo["gas_per_inference"].items())
    print(f"gas per inference by inferences in a session: {each}")
