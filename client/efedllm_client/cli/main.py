"""The `efedllm` command: the client's own commands, and those that the installed roles offer as entry points."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires
from typing import Annotated, Any, NoReturn

import typer

import efedllm_client.cli.chat
import efedllm_client.cli.dispute
import efedllm_client.cli.embed
import efedllm_client.cli.generate
import efedllm_client.cli.network
import efedllm_client.cli.wallet
from efedllm import __version__
from efedllm.errors import ConfigError, EfedError, file_error

GROUP = "efedllm.commands"
DISTRIBUTION = "efedllm-network"
# Import names that differ from the name of their distribution.
MODULE_OF = {"py-solc-x": "solcx"}


def build(argv: Sequence[str]) -> typer.Typer:
    """The application for one command line: of the other roles' commands only the one called is imported."""
    app = typer.Typer(
        name="efedllm",
        help="Inference bought from staked nodes, audited by staked verifiers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def options(version: Version = False) -> None:
        """Inference bought from staked nodes, audited by staked verifiers."""

    app.command("generate", help=efedllm_client.cli.generate.HELP)(efedllm_client.cli.generate.generate)
    app.command("chat", help=efedllm_client.cli.chat.HELP)(efedllm_client.cli.chat.chat)
    app.command("embed", help=efedllm_client.cli.embed.HELP)(efedllm_client.cli.embed.embed)
    app.command("network", help=efedllm_client.cli.network.HELP)(efedllm_client.cli.network.network)
    app.add_typer(efedllm_client.cli.wallet.app, name="wallet")
    app.add_typer(efedllm_client.cli.dispute.app, name="dispute")
    called = next((word for word in argv if not word.startswith("-")), None)
    for entry in sorted(entry_points(group=GROUP), key=lambda item: item.name):
        if entry.name == called:
            app.add_typer(_load(entry), name=entry.name, help=summary(entry))
        else:
            app.command(entry.name, help=summary(entry))(_not_loaded)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"efedllm {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
]


def _not_loaded() -> None:
    """Stands in for the help of a command that this command line does not call."""


def _load(entry: EntryPoint) -> typer.Typer:
    try:
        loaded = entry.load()
    except ModuleNotFoundError as error:
        raise missing_module(entry.name, error) from error
    if not isinstance(loaded, typer.Typer):
        raise ConfigError("bad-installation", f"{entry.value} is not a command.", "Install the package again.")
    return loaded


def summary(entry: EntryPoint) -> str:
    """First line of the docstring of a command's module, read without importing it."""
    try:
        spec = importlib.util.find_spec(entry.module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        return "Not part of this installation."
    with open(spec.origin, encoding="utf-8") as source:  # noqa: PTH123
        doc = ast.get_docstring(ast.parse(source.read()))
    return doc.splitlines()[0] if doc else ""


def missing_module(command: str, error: ModuleNotFoundError) -> ConfigError:
    """What to install when a command needs a module that is not there."""
    module = (error.name or "").split(".")[0]
    extra = extra_of(module)
    if extra is None:
        return ConfigError(
            "missing-module",
            f"`efedllm {command}` needs the Python module {error.name}, which is not installed.",
            f"Install {DISTRIBUTION} again.",
        )
    return ConfigError(
        "missing-extra",
        f"`efedllm {command}` needs {module}, which is not installed.",
        f'Install it with: pip install "{DISTRIBUTION}[{extra}]"',
    )


def extra_of(module: str) -> str | None:
    """The extra of our distribution that brings a module, by the distribution's own metadata."""
    try:
        requirements = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return None
    for requirement in requirements:
        found = re.match(r"([A-Za-z0-9._-]+).*;.*extra == ['\"]([\w-]+)['\"]", requirement)
        if found is None:
            continue
        name, extra = found.groups()
        if MODULE_OF.get(name, name.replace("-", "_")) == module:
            return extra
    return None


def report(error: EfedError, as_json: bool) -> None:
    """Print an error the way the command line asked for."""
    if as_json:
        body: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
        print(json.dumps({"error": body}))
    else:
        print(f"error: {error}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `efedllm`; exits 0, 1 for an expected failure, 2 for wrong usage, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        build(arguments)(arguments)
    except EfedError as error:
        report(error, as_json)
        sys.exit(1)
    except ModuleNotFoundError as error:
        command = next((word for word in arguments if not word.startswith("-")), "")
        if extra_of((error.name or "").split(".")[0]) is None:
            raise
        report(missing_module(command, error), as_json)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output is gone, as in `efedllm ... | head`.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        shown = file_error(error)
        if shown is None:
            raise
        report(shown, as_json)
        sys.exit(1)
    sys.exit(0)
