"""Embed texts with an encoder: the mean of its last hidden states, one vector each."""

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
from efedllm_client.cli.generate import AvoidNames, Deposit, Explore, MaxPrice, NewSession, RouteNames, names
from efedllm_client.routes.newcomers import SHARE

if TYPE_CHECKING:
    from efedllm_client.jobs.embedding import Embedded

Texts = Annotated[list[str] | None, typer.Argument(help="Texts to embed; - reads one per line from stdin.")]
TextFile = Annotated[Path | None, typer.Option("--file", help="A file with one text per line.")]
Normalize = Annotated[bool, typer.Option("--normalize/--no-normalize", help="Scale each vector to length 1.")]
_SHOWN = 6  # numbers of a vector on a terminal


def embed(
    texts: Texts = None,
    file: TextFile = None,
    normalize: Normalize = True,
    route: RouteNames = None,
    avoid: AvoidNames = None,
    max_price: MaxPrice = None,
    deposit: Deposit = None,
    new_session: NewSession = False,
    explore: Explore = SHARE,
    model: Model = None,
    json_: Json = False,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    from efedllm.chain.amounts import GWEI, parse_amount
    from efedllm_client.api import Client
    from efedllm_client.jobs.embedding import Embedded
    from efedllm_client.jobs.failover import RouteWishes, Switched

    settings = load_settings(home, rpc, deployment, keystore, password_file, model)
    wishes = RouteWishes(
        route=names(route),
        avoid=names(avoid),
        max_price=None if max_price is None else parse_amount(max_price) // GWEI,
        deposit=None if deposit is None else parse_amount(deposit),
        fresh_session=new_session,
        explore=explore,
    )
    wanted = collect(texts or [], file)
    done: list[Embedded] = []

    async def main() -> None:
        async with Client.connect(settings) as client:
            async for event in client.embeddings(wanted, wishes, normalize=normalize):
                if isinstance(event, Switched):
                    note(f"route failed after {event.tokens} texts ({event.error.message}) - going on with another")
                elif isinstance(event, Embedded):
                    done.append(event)
                    if not json_:
                        show(wanted[event.index], event)
        if json_:
            print_json({"texts": len(wanted), "embeddings": [item.to_json() for item in done]})
        else:
            summarize(wanted, done)

    run(main)


def collect(texts: list[str], file: Path | None) -> list[str]:
    """The texts of a command line. Raises ConfigError "empty-prompt" when there are none, "bad-option" for a file that
    cannot be read."""
    from efedllm.errors import ConfigError

    try:
        lines = file.read_text("utf-8").splitlines() if file is not None else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("bad-option", f"{file} cannot be read as text: {error}.", "Give a UTF-8 file.") from error
    for text in texts:
        lines += sys.stdin.read().splitlines() if text == "-" else [text]
    wanted = [line for line in lines if line.strip()]
    if not wanted:
        raise ConfigError("empty-prompt", "There is no text to embed.", "Give a text, or --file FILE.")
    return wanted


def show(text: str, item: Embedded) -> None:
    """One line for a person."""
    head = ", ".join(f"{value:+.4f}" for value in item.vector[:_SHOWN])
    label = text if len(text) <= 40 else text[:37] + "..."
    print(f"{item.index}: {label!r}, {item.tokens} tokens, {len(item.vector)} dimensions: [{head}, ...]", flush=True)


def summarize(texts: list[str], done: list[Embedded]) -> None:
    """How alike the texts are, what they cost, and whether the receipts fit."""
    from efedllm.chain.amounts import format_amount
    from efedllm_client.jobs.embedding_job import cosine

    if 1 < len(done) <= 12:
        print("cosine")
        for item in done:
            row = " ".join(f"{cosine(item.vector, other.vector):+.3f}" for other in done)
            print(f"{item.index:>3}  {row}", flush=True)
    faults = [finding for item in done for finding in item.outcome.findings]
    complete = all(commit is not None for item in done for commit in item.outcome.record.commits)
    receipts = "receipts ok" if complete and not faults else f"RECEIPTS NOT OK ({len(faults)} faults)"
    nodes = " > ".join(f"{hop.node[:8]}[{hop.lo}:{hop.hi}]" for hop in done[-1].outcome.record.route)
    tokens = sum(item.tokens for item in done)
    cost = format_amount(sum(item.outcome.cost for item in done))
    note(f"{len(texts)} texts, {tokens} tokens, {cost}, {nodes}, {receipts}")
    for finding in faults:
        note(f"fault: {finding.fault.detail} Guilty: {', '.join(finding.guilty) or 'unknown'}.")
