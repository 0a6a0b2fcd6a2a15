"""`efedllm embed`: texts to vectors, with an encoder on the network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efedllm_client.cli.common import note, print_json, run_with_client
from efedllm_client.cli.options import AccountOptions, Json, Model, RouteFlags, expand_options

if TYPE_CHECKING:
    from efedllm_client.api import Client
    from efedllm_client.jobs.embedding import Embedded

HELP = "Embed texts with an encoder: the mean of its last hidden states, one vector each."

Texts = Annotated[list[str] | None, typer.Argument(help="Texts to embed; - reads one per line from stdin.")]
TextFile = Annotated[Path | None, typer.Option("--file", help="A file with one text per line.")]
Normalize = Annotated[bool, typer.Option("--normalize/--no-normalize", help="Scale each vector to length 1.")]
_SHOWN = 6  # numbers of a vector on a terminal


@expand_options
def embed(
    route: RouteFlags,
    account: AccountOptions,
    texts: Texts = None,
    file: TextFile = None,
    normalize: Normalize = True,
    model: Model = None,
    json_: Json = False,
) -> None:
    from efedllm_client.jobs.embedding import Embedded
    from efedllm_client.jobs.failover import RouteSwitched

    settings = account.settings(model)
    options = route.options()
    wanted = collect(texts or [], file)
    done: list[Embedded] = []

    async def work(client: Client) -> None:
        async for event in client.embeddings(wanted, options, normalize=normalize):
            if isinstance(event, RouteSwitched):
                note(f"route failed after {event.results} texts ({event.error.message}); continuing with another")
            elif isinstance(event, Embedded):
                done.append(event)
                if not json_:
                    show(wanted[event.index], event)
        if json_:
            print_json({"texts": len(wanted), "embeddings": [item.to_json() for item in done]})
        else:
            summarize(wanted, done)

    run_with_client(settings, work)


def collect(texts: list[str], file: Path | None) -> list[str]:
    """The texts of a command line.

    Raises ConfigError "empty-prompt" when there are none, "bad-option" for a file that cannot be read.
    """
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
    """Print how similar the texts are, what they cost, and whether the receipts are consistent."""
    from efedllm.chain.amounts import format_amount
    from efedllm_client.jobs.embedding_job import cosine

    if 1 < len(done) <= 12:
        print("cosine")
        for item in done:
            row = " ".join(f"{cosine(item.vector, other.vector):+.3f}" for other in done)
            print(f"{item.index:>3}  {row}", flush=True)
    faults = [finding for item in done for finding in item.outcome.findings]
    complete = all(item.outcome.receipts_ok for item in done)
    receipts = "receipts ok" if complete else f"RECEIPTS NOT OK ({len(faults)} faults)"
    nodes = " > ".join(f"{hop.node[:8]}[{hop.lo}:{hop.hi}]" for hop in done[-1].outcome.record.route)
    tokens = sum(item.tokens for item in done)
    cost = format_amount(sum(item.outcome.cost for item in done))
    note(f"{len(texts)} texts, {tokens} tokens, {cost}, {nodes}, {receipts}")
    for finding in faults:
        note(f"fault: {finding.fault.detail} Guilty: {', '.join(finding.guilty) or 'unknown'}.")
