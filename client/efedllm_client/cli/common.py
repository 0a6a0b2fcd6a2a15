"""What every client command shares: running the event loop, printing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from efedllm.settings import Settings
    from efedllm_client.api import Client

INTERRUPTED = 130  # 128 + SIGINT, as shells expect


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a command's coroutine. Ctrl-C lets it clean up and exits with 130."""
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def run_with_client(settings: Settings, work: Callable[[Client], Awaitable[None]], *, read_only: bool = False) -> None:
    """Run `work` with a connected client; `read_only`: without a wallet."""
    from efedllm_client.api import Client

    async def main() -> None:
        async with Client.connect(settings, read_only=read_only) as client:
            await work(client)

    run(main)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2), flush=True)


def note(text: str) -> None:
    """Print a line for the person to stderr: stdout holds only the result."""
    print(text, file=sys.stderr, flush=True)
