"""Continue a prompt: text on stdout, a summary on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efedllm_client.cli.common import (
    DeploymentFile,
    Home,
    Json,
    Keystore,
    Model,
    PasswordFile,
    Rpc,
    load_settings,
    note,
    print_json,
    run,
)
from efedllm_client.routes.newcomers import SHARE

if TYPE_CHECKING:
    from efedllm_client.api import Client
    from efedllm_client.jobs.options import GenerateOptions
    from efedllm_client.jobs.report import Report

MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
TopK = Annotated[int, typer.Option("--top-k", help="Sample among the k likeliest tokens; 0 is off.")]
TopP = Annotated[float, typer.Option("--top-p", help="Sample among the likeliest tokens of this total; 1 is off.")]
Seed = Annotated[str | None, typer.Option("--seed", help="Number that fixes the sampling; drawn when not given.")]
Wire = Annotated[str, typer.Option("--wire", help="Number format between the nodes: f32 or bf16.")]
StopAtEos = Annotated[bool, typer.Option("--stop-at-eos/--no-stop-at-eos", help="End at the model's end token.")]
RouteNames = Annotated[str | None, typer.Option("--route", help="Nodes to use, in layer order.", metavar="A,B")]
AvoidNames = Annotated[str | None, typer.Option("--avoid", help="Nodes not to use.", metavar="A,B")]
Deposit = Annotated[
    str | None, typer.Option("--deposit", help="EFED to lock in a new session; default: a few such jobs.")
]
MaxPrice = Annotated[str | None, typer.Option("--max-price", help="Most EFED per 1000 tokens, whole route.")]
NewSession = Annotated[bool, typer.Option("--new-session", help="Do not use an open session again.")]
Explore = Annotated[
    float, typer.Option("--explore", help="Share of jobs, 0 to 1, that try a node without trust; 0 never does.")
]
MinQuality = Annotated[
    float | None,
    typer.Option("--min-quality", help="Least certified quality: 0.98 allows a perplexity 2 % above the original's."),
]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Write the JSON report to this file too.")]


def names(text: str | None) -> tuple[str, ...]:
    """The items of a comma separated list."""
    return tuple(item.strip() for item in (text or "").split(",") if item.strip())


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from stdin.")],
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    wire: Wire = "f32",
    stop_at_eos: StopAtEos = True,
    route: RouteNames = None,
    avoid: AvoidNames = None,
    max_price: MaxPrice = None,
    deposit: Deposit = None,
    new_session: NewSession = False,
    explore: Explore = SHARE,
    min_quality: MinQuality = None,
    report: ReportFile = None,
    model: Model = None,
    json_: Json = False,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    from efedllm.chain.amounts import GWEI, parse_amount
    from efedllm.chain.deployment import write_json
    from efedllm_client.api import Client
    from efedllm_client.jobs.options import GenerateOptions

    settings = load_settings(home, rpc, deployment, keystore, password_file, model)
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        wire=wire,
        stop_at_eos=stop_at_eos,
        route=names(route),
        avoid=names(avoid),
        max_price=None if max_price is None else parse_amount(max_price) // GWEI,
        deposit=None if deposit is None else parse_amount(deposit),
        fresh_session=new_session,
        explore=explore,
        min_quality=min_quality,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    if report is not None:
        # Before anything is paid.
        check_writable(report)

    async def main() -> None:
        async with Client.connect(settings) as client:
            await stream(client, text, options, quiet=json_)
            assert client.report is not None
            if json_:
                print_json(client.report.to_json())
            else:
                summarize(client.report)
            if report is not None:
                write_json(report, client.report.to_json())

    run(main)


def check_writable(path: Path) -> None:
    """Make the folder of a file to be written. Raises OSError, or ConfigError "bad-path" when the file is a folder."""
    from efedllm.errors import ConfigError

    if path.is_dir():
        raise ConfigError("bad-path", f"{path} is a folder.", "Give a file to --report.")
    path.parent.mkdir(parents=True, exist_ok=True)


def summarize(report: Report) -> None:
    """The summary line, and one line for each fault in the receipts."""
    note(report.summary())
    for fault in report.faults:
        guilty = f" Guilty: {', '.join(fault['guilty'])}." if fault["guilty"] else ""
        note(f"fault: {fault['detail']}{guilty}")


async def stream(client: Client, prompt: str | list[int], options: GenerateOptions, quiet: bool) -> None:
    """Print the text as it comes, and what a person should know on stderr."""
    from contextlib import aclosing

    from efedllm_client.jobs.generation import Piece, Started, Switched

    shown_seed = False
    async with aclosing(client.events(prompt, options)) as events:
        async for event in events:
            if isinstance(event, Piece) and not quiet:
                print(event.text, end="", flush=True)
            elif isinstance(event, Started) and options.temperature > 0 and not shown_seed and not quiet:
                note(f"seed 0x{event.seed.hex()}")
                shown_seed = True
            elif isinstance(event, Switched):
                without = f", without {', '.join(event.avoided)}" if event.avoided else ", with a new session"
                note(f"route failed after {event.tokens} tokens ({event.error.message}) - going on{without}")
    if not quiet:
        print(flush=True)
