"""What every client command shares: options, running the event loop, printing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from efedllm.settings import Settings

WALLET_FILE = "wallet.json"  # in the home directory, where `efedllm wallet new` puts it
INTERRUPTED = 130  # 128 + SIGINT, as shells expect

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Home = Annotated[Path | None, typer.Option("--home", help="Directory for keys, sessions and receipts.")]
Rpc = Annotated[str | None, typer.Option("--rpc", help="RPC address of the chain.", metavar="URL")]
DeploymentFile = Annotated[Path | None, typer.Option("--deployment", help="File that `efedllm deploy` wrote.")]
Keystore = Annotated[Path | None, typer.Option("--keystore", help="Encrypted wallet file.")]
PasswordFile = Annotated[Path | None, typer.Option("--password-file", help="File with the wallet's password.")]
Model = Annotated[str | None, typer.Option("--model", help="Model id, or the start of one.", metavar="ID")]


def load_settings(
    home: Path | None,
    rpc: str | None,
    deployment: Path | None,
    keystore: Path | None = None,
    password_file: Path | None = None,
    model: str | None = None,
) -> Settings:
    """Flags over the environment over efedllm.toml over the local network's file; also sets up logging."""
    from efedllm import logs
    from efedllm.settings import Settings

    settings = Settings.load(
        home=home,
        rpc_url=rpc,
        deployment=deployment,
        keystore=keystore,
        password_file=password_file,
        model_id=model,
    )
    logs.setup(settings.log_level, settings.log_format)
    own = settings.home / WALLET_FILE
    if settings.keystore is None and own.exists():
        settings = settings.model_copy(update={"keystore": own})
    return settings


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a command's coroutine; Ctrl-C lets it clean up and exits with 130."""
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2), flush=True)


def note(text: str) -> None:
    """A line for the person, beside the result: on stderr."""
    print(text, file=sys.stderr, flush=True)
