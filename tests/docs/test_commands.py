"""Every command and option that a document names is one of the command reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown_files import ROOT, WRITTEN, shown

REFERENCE = ROOT / "docs" / "reference" / "commands.md"
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# A command line, in a code span or a code block, up to its comment.
_CALL = re.compile(r"(?<![\w-])efedllm((?: [a-z]+)+)([^`\n#]*)")


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command, by its words after `efedllm`."""
    sections = re.split(r"\n##+ efedllm ", REFERENCE.read_text(encoding="utf-8"))[1:]
    return {section.splitlines()[0]: {"--help", *_OPTION.findall(section)} for section in sections}


@pytest.mark.parametrize("path", WRITTEN, ids=shown)
def test_commands_and_options_exist(path: Path, options: dict[str, set[str]]) -> None:
    wrong = []
    for found in _CALL.finditer(path.read_text(encoding="utf-8").replace("\\\n", " ")):
        words = found[1].split()
        prefixes = [" ".join(words[:count]) for count in range(len(words), 0, -1)]
        command = next((prefix for prefix in prefixes if prefix in options), None)
        if command is None:
            wrong.append(found[0])
        else:
            wrong += [f"{command}: {name}" for name in _OPTION.findall(found[2]) if name not in options[command]]
    assert wrong == []


@pytest.mark.parametrize("path", WRITTEN, ids=shown)
def test_options_named_alone_exist(path: Path, options: dict[str, set[str]]) -> None:
    known = set().union(*options.values())
    alone = re.findall(r"`(--[a-z][a-z-]*)", path.read_text(encoding="utf-8"))
    assert [name for name in alone if name not in known] == []
