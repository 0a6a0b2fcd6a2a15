"""What the documents name exists, their links lead somewhere, and their lines can be read in a terminal."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.markdown_files import GENERATED, ROOT, WRITTEN, anchors, prose, shown

MAX_LINE = 120
MAX_COLUMNS = 4
SKIPPED = {"node_modules", "build", "out", "cache", "__pycache__"}
# Names of files that programs write or users bring.
NOT_OURS = {
    "compression.json",
    "efedllm.toml",
    "held-out.txt",
    "manifest.json",
    "network.json",
    "signer.json",
}
# Folders below the home of a client, a node or a verifier, or of a published model.
HOME_FOLDERS = ("client/client.db", "client/events/", "client/signers/", "evidence/", "models/")
_SPAN = re.compile(r"`([^`]+)`")
_PATH = re.compile(r"[\w.{},*/-]+")
_SOURCE = re.compile(r".+\.(py|sol|c|h|js|toml|md|json|png|txt)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NESTED = re.compile(r"( +)([-*]|\d+\.) ")


@pytest.fixture(scope="module")
def tree() -> set[str]:
    """Every file and folder of the checkout, relative to it; folders end in a slash."""
    found: set[str] = set()
    pending = [ROOT]
    while pending:
        for item in pending.pop().iterdir():
            if item.name in SKIPPED or item.name.startswith(".") or item.name.endswith(".egg-info"):
                continue
            name = item.relative_to(ROOT).as_posix()
            if item.is_dir():
                found.add(f"{name}/")
                pending.append(item)
            else:
                found.add(name)
    return found


def expand(path: str) -> list[str]:
    """All paths that `a/{b,c}.py` stands for."""
    parts = re.split(r"\{([^}]*)\}", path)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def named_paths(path: Path, folders: set[str]) -> Iterator[tuple[int, str]]:
    """The paths of the repository that a document names in backticks."""
    for number, line in prose(path):
        for span in _SPAN.findall(line):
            if not _PATH.fullmatch(span) or span.startswith(("/", "-", ".")) or span.startswith(HOME_FOLDERS):
                continue
            first = span.split("/")[0]
            if ("/" in span and first in folders) or _SOURCE.fullmatch(span):
                yield number, span


@pytest.mark.parametrize("path", WRITTEN, ids=shown)
def test_every_path_that_a_document_names_exists(path: Path, tree: set[str]) -> None:
    folders = {part for name in tree for part in name.split("/")[:-1]}
    missing = []
    for number, span in named_paths(path, folders):
        if span in NOT_OURS:
            continue
        for name in expand(span):
            pattern = re.compile("(.*/)?" + re.escape(name).replace(r"\*", "[^/]*") + "/?")
            if not any(pattern.fullmatch(known) for known in tree):
                missing.append(f"{shown(path)}:{number}: {name}")
    assert missing == []


@pytest.mark.parametrize("path", WRITTEN, ids=shown)
def test_lines_outside_code_blocks_are_short(path: Path) -> None:
    assert [f"{shown(path)}:{number}" for number, line in prose(path) if len(line) > MAX_LINE] == []


@pytest.mark.parametrize("path", WRITTEN + GENERATED, ids=shown)
def test_relative_links_lead_to_files_and_headings(path: Path) -> None:
    broken = []
    for number, line in prose(path):
        for link in _LINK.findall(re.sub(_SPAN, "", line)) + _LINK.findall(line):
            if "://" in link:
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{shown(path)}:{number}: {link}")
    assert broken == []


@pytest.mark.parametrize("path", WRITTEN + GENERATED, ids=shown)
def test_tables_have_few_columns(path: Path) -> None:
    wide = []
    for number, line in prose(path):
        if line.startswith("|") and len(re.sub(r"`[^`]*`|\\\|", "", line).strip("| ").split("|")) > MAX_COLUMNS:
            wide.append(f"{shown(path)}:{number}")
    assert wide == []


@pytest.mark.parametrize("path", WRITTEN + GENERATED, ids=shown)
def test_only_rows_of_tables_begin_with_a_bar(path: Path) -> None:
    begun = [(number, line.strip()) for number, line in prose(path) if line.lstrip().startswith("|")]
    assert [f"{shown(path)}:{number}" for number, line in begun if not line.endswith("|")] == []


@pytest.mark.parametrize("path", WRITTEN + GENERATED, ids=shown)
def test_nested_lists_are_indented_by_four_spaces(path: Path) -> None:
    """A git host nests a list from two spaces on, the site's Markdown from four."""
    nested = [(number, _NESTED.match(line)) for number, line in prose(path)]
    assert [f"{shown(path)}:{number}" for number, found in nested if found and len(found[1]) % 4] == []
