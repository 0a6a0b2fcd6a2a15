"""`python -m tools.docs` writes the reference pages and copies all documents to where the site is built from."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from efedllm.checkout import project_root
from tools.docs import commands, contracts

ROOT = project_root()
REFERENCE = ROOT / "docs" / "reference"
PAGES: dict[str, Callable[[], str]] = {"commands.md": commands.render, "contracts.md": contracts.render}
# What the site shows. Files keep their place, so that links hold in the repository and in the site.
SHOWN = ("README.md", "docs", "models/pylib-7m/README.md")
SITE_SOURCE = ROOT / "build" / "docs"


def write() -> None:
    """Writes the reference pages."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, render in PAGES.items():
        (REFERENCE / name).write_text(render(), encoding="utf-8")


def copy(target: Path = SITE_SOURCE) -> None:
    """Copies the documents to `target`, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    for name in SHOWN:
        source, place = ROOT / name, target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place)
        else:
            shutil.copyfile(source, place)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description=__doc__)
    parser.add_argument("--copy-only", action="store_true", help="leave the reference pages as they are")
    if not parser.parse_args().copy_only:
        write()
    copy()


if __name__ == "__main__":
    main()
