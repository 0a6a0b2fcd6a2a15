"""The documents of the repository, read as Markdown that a git host and the site render alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from efedllm.checkout import project_root

ROOT = project_root()
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = sorted((ROOT / "docs" / "reference").glob("*.md"))

_FENCE = re.compile(r"\s*```")
_HEADING = re.compile(r"#+ (.*)")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines of a document outside its code blocks."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, line


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as git hosts make them: lower case, dashes for blanks, no punctuation."""
    found: set[str] = set()
    for _, line in prose(path):
        heading = _HEADING.match(line)
        if heading:
            kept = re.sub(r"[^\w\- ]", "", heading[1].lower())
            anchor = kept.strip().replace(" ", "-")
            repeated = sum(1 for other in found if re.fullmatch(re.escape(anchor) + r"(-\d+)?", other))
            found.add(f"{anchor}-{repeated}" if repeated else anchor)
    return found
