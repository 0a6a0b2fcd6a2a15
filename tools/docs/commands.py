"""The command reference: every `efedllm` command with its options, read from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer

from efedllm_client.cli.main import build
from tools.docs.markdown import cell, code

# The end of an option's help: what Typer adds about its default, whether it is required, and its bounds.
_FACTS = re.compile(r"\s*\[(?P<facts>[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]$")

HEAD = """# Commands

This page is generated from the commands. `make docs` writes it again.

Every command has `--help`, which this page leaves out. Settings such as `--rpc` also come from variables
and files: see [clients](../clients.md) and [operators](../operators.md).
"""


@dataclass(frozen=True)
class Command:
    """One command, or one group of commands: its words, the Click object behind it, and the context to ask it with."""

    words: tuple[str, ...]
    click: Any
    context: Any

    @property
    def children(self) -> dict[str, Any]:
        return dict(getattr(self.click, "commands", {}))

    @property
    def runs(self) -> bool:
        """Whether the command does something itself. A group that runs without a sub-command does."""
        return not self.children or bool(self.click.invoke_without_command)


def commands() -> Iterator[Command]:
    """All commands of `efedllm`, sorted by their first word, then as the command lists them."""
    for word in sorted(_root("").commands):
        yield from _below(("efedllm", word), _root(word).commands[word], None)


def _root(called: str) -> Any:
    """The Click group for a command line that begins with `called`, the only command that is loaded."""
    return typer.main.get_command(build([called] if called else []))


def _below(words: tuple[str, ...], click: Any, parent: Any) -> Iterator[Command]:
    context = click.make_context(words[-1], [], parent=parent, resilient_parsing=True)
    command = Command(words, click, context)
    yield command
    for name, child in command.children.items():
        yield from _below((*words, name), child, context)


def render() -> str:
    """The page as Markdown."""
    found = list(commands())
    parts = [HEAD, _index(found)]
    parts += [_section(command) for command in found]
    return "\n".join(parts)


def _index(found: list[Command]) -> str:
    lines = ["| command | does |", "|---|---|"]
    for command in found:
        if command.runs:
            name = " ".join(command.words)
            lines.append(f"| [`{name}`](#{name.replace(' ', '-')}) | {cell(_help(command).splitlines()[0])} |")
    return "\n".join(lines) + "\n"


def _section(command: Command) -> str:
    title = " ".join(command.words)
    lines = [f"{'##' if len(command.words) == 2 else '###'} {title}", "", _help(command), ""]
    if command.runs:
        # A group that runs by itself is called without the name of a sub-command.
        usage = [piece for piece in command.click.collect_usage_pieces(command.context) if "COMMAND" not in piece]
        lines += ["```", " ".join((title, *usage)), "```", ""]
        lines += _options(command)
    return "\n".join(lines)


def _help(command: Command) -> str:
    """The help text, one line for each of its paragraphs."""
    paragraphs = (command.click.help or "").strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _options(command: Command) -> list[str]:
    rows = []
    for parameter in command.click.get_params(command.context):
        record = parameter.get_help_record(command.context)
        if record is None or "--help" in parameter.opts:
            continue
        names, text = record
        help_text, facts = _split(text)
        rows.append(f"| {code(names)} | {cell(facts)} | {cell(help_text)} |")
    return ["| option | default | meaning |", "|---|---|---|", *rows, ""] if rows else []


def _split(text: str) -> tuple[str, str]:
    """Separates what an option means from what Typer appends: ("5; at least 1" for "[default: 5; x>=1]")."""
    found = _FACTS.search(text)
    if found is None:
        return text, ""
    facts = [fact.strip() for fact in found["facts"].split(";")]
    shown = [fact.removeprefix("default: ") for fact in facts if fact]
    return text[: found.start()], "; ".join(shown)
