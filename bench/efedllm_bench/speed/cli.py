"""`efedllm bench kernels` and `efedllm bench decode`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from efedllm.errors import EfedError

Out = Annotated[Path, typer.Option(help="Write the JSON to this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def kernels(
    turns: Annotated[int, typer.Option(min=10, help="How often each kernel is timed at each shape.")] = 40,
    out: Out = Path("bench/results/kernels.json"),
    as_json: AsJson = False,
) -> None:
    """Bytes of weights per second of the native products against the memory bandwidth, and of torch's; products of many
    tokens per second against the processor's peak; the cost of a call."""
    from efedllm_bench.speed.kernels import run

    result = _measured(lambda say: run(turns, say), out, as_json)
    if as_json:
        return
    print(f"memory bandwidth of one thread: {result['bandwidth_gbps']} GB/s")
    _show_products("GB/s of weights, cold (share of the bandwidth)", result["rates"], "gbps", "of_bandwidth")
    for name, share in result["least_of_bandwidth"].items():
        print(f"{name}: at least {share:.0%} of the bandwidth for M = 1..4, calls of 4 million weights and more")
    many = result["many"]
    for variant, peak in many["peak_gmacs"].items():
        print(f"peak of {variant}: {peak} GMAC/s of int16 by int8")
    _show_products("GMAC/s of exact products (share of the peak)", many["products"], "gmacs", "of_peak")
    for name, share in many["least_of_peak"].items():
        print(f"{name}: at least {share:.0%} of the peak for M >= 64, matrices of a million weights and more")
    call = result["call"]
    print(f"one call: {call['c_function_us']} us through ctypes, {call['with_tensors_us']} us with its tensors")


def _show_products(title: str, products: list[dict[str, Any]], rate: str, share: str) -> None:
    """A row for each shape and kernel, a column for each number of tokens."""
    table = Table(title=title)
    counts = dict.fromkeys(product["tokens"] for product in products)
    for column in ("rows x columns", "kernel", *(f"M = {count}" for count in counts)):
        table.add_column(column, justify="right")
    lines: dict[tuple[str, str], list[str]] = {}
    for product in products:
        rows = product["rows"]
        of_maps = str(rows) if isinstance(rows, int) else " + ".join(map(str, rows))
        key = (f"{of_maps} x {product['columns']}", product["kernel"])
        lines.setdefault(key, []).append(f"{product[rate]} ({product[share]:.0%})")
    for key, values in lines.items():
        table.add_row(*key, *values)
    Console().print(table)


def decode(
    tokens: Annotated[int, typer.Option(min=10, help="Tokens decoded by each model.")] = 30,
    out: Out = Path("bench/results/decode.json"),
    as_json: AsJson = False,
) -> None:
    """Tokens per second of a model of 1.1 billion parameters on one thread: bf16 against our engines."""
    from efedllm_bench.speed.decode import run

    result = _measured(lambda say: run(tokens, say), out, as_json)
    if as_json:
        return
    saved = result["bytes_saved_of_16_bit_matrices"]
    print(
        f"{result['form']}: {saved:.1%} of the matrices' 16-bit bytes saved; bandwidth {result['bandwidth_gbps']} GB/s"
    )
    table = Table(title="Decoding, one thread, median token, processor time")
    for column in ("", "tokens/s", "ms/token", "x bf16", "MB/token", "of bandwidth (best tenth)"):
        table.add_column(column, justify="right")
    for row in result["decoded"]:
        table.add_row(
            row["name"],
            str(row["tokens_per_second"]),
            str(row["ms_per_token"]),
            str(row["faster_than_bf16"]),
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['of_bandwidth']:.0%}",
        )
    Console().print(table)


def _measured(run: Callable[[Callable[[str], None]], dict[str, Any]], out: Path, as_json: bool) -> dict[str, Any]:
    """Run, write the JSON, and print it if asked. An expected failure is one line and exit code 1."""
    console = Console(stderr=True)
    try:
        result = run(lambda text: console.print(f"[dim]·[/dim] {text}"))
    except EfedError as error:
        if as_json:
            print(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
        else:
            console.print(f"error: {error}", highlight=False)
        raise typer.Exit(1) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    if as_json:
        print(json.dumps(result))
    return result
