"""Runs the Solidity tests and the Solidity formatter, so that one command tests everything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORGE = ROOT / "node_modules" / ".bin" / "forge"


def _forge(*arguments: str) -> None:
    if not FORGE.exists():
        pytest.fail("forge is missing. Run `npm install` in the repository root and try again.")
    environment = {**os.environ, "PATH": f"{FORGE.parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    done = subprocess.run(
        [str(FORGE), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"forge {' '.join(arguments)}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"


@pytest.mark.timeout(900)
def test_solidity_tests_pass() -> None:
    _forge("test")


def test_solidity_sources_are_formatted() -> None:
    _forge("fmt", "--check")
