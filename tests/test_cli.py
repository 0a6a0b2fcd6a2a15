"""Option groups: the fields of a dataclass are options of the command, in any number of commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from efedllm.cli import Json, RpcUrl, with_options


@dataclass(frozen=True)
class Reached:
    rpc: RpcUrl = None
    as_json: Json = False


@dataclass(frozen=True)
class Named(Reached):
    name: Annotated[str, typer.Option("--name")] = "nobody"


app = typer.Typer()


@app.command()
@with_options
def first(reached: Reached, text: Annotated[str, typer.Argument()], times: int = 1) -> None:
    """First command."""
    print(reached, text * times)


@app.command()
@with_options
def second(named: Named) -> None:
    print(named)


def test_fields_are_options() -> None:
    run = CliRunner().invoke(app, ["first", "ab", "--times", "2", "--rpc", "http://x", "--json"])
    assert run.output == "Reached(rpc='http://x', as_json=True) abab\n"
    assert CliRunner().invoke(app, ["first", "ab"]).output == "Reached(rpc=None, as_json=False) ab\n"


def test_fields_of_a_base_class_are_options_too() -> None:
    run = CliRunner().invoke(app, ["second", "--name", "me", "--rpc", "http://x"])
    assert run.output == "Named(rpc='http://x', as_json=False, name='me')\n"


def test_help_and_errors_are_those_of_the_command() -> None:
    shown = CliRunner().invoke(app, ["first", "--help"]).output
    assert "First command." in shown
    assert shown.index("--times") < shown.index("--rpc")
    assert CliRunner().invoke(app, ["second", "--times", "2"]).exit_code == 2
