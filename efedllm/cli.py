"""Command-line options that several roles share, and groups of options for Typer commands."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
RpcUrl = Annotated[str | None, typer.Option("--rpc", metavar="URL", help="RPC address of the chain.")]
DeploymentFile = Annotated[Path | None, typer.Option("--deployment", help="File that `efedllm deploy` wrote.")]
Keystore = Annotated[Path | None, typer.Option("--keystore", help="Encrypted wallet file.")]
PasswordFile = Annotated[Path | None, typer.Option("--password-file", help="File with the wallet's password.")]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` for Typer, with each parameter whose type is a dataclass replaced by one option for each field.

    Fields are annotated as parameters of a command are. A field without a default is a required option. The options of
    groups come after the command's own.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    options = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in groups
    ]
    for group in groups.values():
        options += _options_of(group)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _options_of(group: Any) -> list[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=types[field.name],
        )
        for field in fields(group)
    ]
