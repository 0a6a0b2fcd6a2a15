"""What the commands of this package share: accounts, output, running until a signal."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from efedllm.chain import keystore
from efedllm.chain.connection import LOCAL_CHAIN_IDS
from efedllm.errors import ConfigError, EfedError
from efedllm.settings import Settings
from efedllm_deploy.local import dev_account

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

# Progress and tables for people go to stderr, so that stdout carries results only.
console = Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """One JSON object on one line of stdout."""
    print(json.dumps(value, default=_plain), flush=True)


def _plain(value: object) -> str:
    return "0x" + value.hex() if isinstance(value, bytes) else str(value)


def open_account(settings: Settings, chain_id: int | None = None) -> LocalAccount:
    """The account of --keystore; without one, on a development chain, its first funded account.

    Raises ConfigError "no-keystore" or as keystore.load does.
    """
    if settings.keystore is not None:
        return keystore.load(settings.keystore, keystore.read_password(settings.password_file))
    if chain_id in LOCAL_CHAIN_IDS:
        return dev_account()
    raise ConfigError(
        "no-keystore", "An account is needed on this chain.", "Pass --keystore FILE and --password-file FILE."
    )


def need_engine() -> None:
    """Raise ModuleNotFoundError, which `efedllm` explains, when this installation cannot compute a model.

    A local network would notice only after minutes, in a child process.
    """
    for module in ("torch", "transformers"):
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def entry(app: typer.Typer) -> None:
    """Run a command as a program of its own, with the errors that `efedllm` shows."""
    try:
        app()
    except EfedError as error:
        if "--json" in sys.argv:
            print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        else:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """asyncio.run in which SIGTERM, like Ctrl-C, cancels `main` so that it cleans up."""

    async def guarded() -> Any:
        task = asyncio.ensure_future(main)
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            return await task
        except asyncio.CancelledError:
            if stopped:
                return None
            raise

    return asyncio.run(guarded())
