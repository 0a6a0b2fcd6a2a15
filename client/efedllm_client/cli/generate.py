"""Continue a prompt: text on stdout, a summary on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efedllm.cli import Json, with_options
from efedllm_client.cli.common import note, print_json, run_with_client
from efedllm_client.cli.options import Model, RouteFlags, SamplingFlags, WalletOptions

if TYPE_CHECKING:
    from efedllm_client.api import Client
    from efedllm_client.jobs.options import GenerateOptions
    from efedllm_client.jobs.report import GenerationReport

StopAtEos = Annotated[bool, typer.Option("--stop-at-eos/--no-stop-at-eos", help="End at the model's end token.")]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Also write the JSON report to this file.")]


@with_options
def generate(
    sampling: SamplingFlags,
    route: RouteFlags,
    account: WalletOptions,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from stdin.")],
    stop_at_eos: StopAtEos = True,
    report: ReportFile = None,
    model: Model = None,
    json_: Json = False,
) -> None:
    from efedllm.chain.deployment import write_json

    settings = account.settings(model)
    options = sampling.options(route, stop_at_eos=stop_at_eos)
    text = sys.stdin.read() if prompt == "-" else prompt
    if report is not None:
        # Before anything is paid.
        check_writable(report)

    async def work(client: Client) -> None:
        await stream(client, text, options, quiet=json_)
        assert client.report is not None
        if json_:
            print_json(client.report.to_json())
        else:
            summarize(client.report)
        if report is not None:
            write_json(report, client.report.to_json())

    run_with_client(settings, work)


def check_writable(path: Path) -> None:
    """Create the parent folder of a file to be written.

    Raises OSError, or ConfigError "bad-path" when the file is a folder.
    """
    from efedllm.errors import ConfigError

    if path.is_dir():
        raise ConfigError("bad-path", f"{path} is a folder.", "Give a file to --report.")
    path.parent.mkdir(parents=True, exist_ok=True)


def summarize(report: GenerationReport) -> None:
    """The summary line, and one line for each fault in the receipts."""
    note(report.summary())
    for fault in report.faults:
        guilty = f" Guilty: {', '.join(fault['guilty'])}." if fault["guilty"] else ""
        note(f"fault: {fault['detail']}{guilty}")


async def stream(client: Client, prompt: str | list[int], options: GenerateOptions, quiet: bool) -> None:
    """Print the text as it arrives, and notes for the person to stderr."""
    from contextlib import aclosing

    from efedllm_client.jobs.failover import RouteSwitched
    from efedllm_client.jobs.generation import Piece, RouteStarted

    shown_seed = False
    async with aclosing(client.events(prompt, options)) as events:
        async for event in events:
            if isinstance(event, Piece) and not quiet:
                print(event.text, end="", flush=True)
            elif isinstance(event, RouteStarted) and options.temperature > 0 and not shown_seed and not quiet:
                note(f"seed 0x{event.seed.hex()}")
                shown_seed = True
            elif isinstance(event, RouteSwitched):
                without = f", without {', '.join(event.avoided)}" if event.avoided else ", with a new session"
                note(f"route failed after {event.results} tokens ({event.error.message}); continuing{without}")
    if not quiet:
        print(flush=True)
