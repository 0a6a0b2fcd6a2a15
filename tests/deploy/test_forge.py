"""Runs the Solidity tests and the Solidity formatter, so that one command tests everything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from efedllm.checkout import project_root

ROOT = project_root()
NODE_MODULES = ROOT / "node_modules"


def _forge(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # The launcher in node_modules/.bin ends with 0 whatever forge ends with, so the binary behind it is run.
    binaries = sorted(NODE_MODULES.glob("@foundry-rs/forge-*/bin/forge"))
    if not binaries:
        pytest.fail("forge is missing. Run `npm install` in the repository root and try again.")
    return subprocess.run(
        [str(binaries[0]), *arguments],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def _report(done: subprocess.CompletedProcess[str]) -> str:
    return f"{' '.join(done.args)}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"


@pytest.mark.timeout(900)
def test_solidity_tests_pass() -> None:
    done = _forge("test")
    assert done.returncode == 0, _report(done)
    assert " 0 failed" in done.stdout, _report(done)


def test_solidity_sources_are_formatted() -> None:
    done = _forge("fmt", "--check")
    assert done.returncode == 0, _report(done)


def test_a_failing_solidity_test_and_an_unformatted_source_are_noticed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "foundry.toml", tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "contracts").mkdir()
    tests = tmp_path / "tests" / "contracts"
    tests.mkdir(parents=True)
    (tests / "Failing.t.sol").write_text(
        "// SPDX-License-Identifier: MIT\npragma solidity 0.8.30;\n"
        "contract FailingTest { function test_fails() public pure { require(false, 'no'); } }\n"
    )
    assert _forge("test", cwd=tmp_path).returncode != 0
    assert _forge("fmt", "--check", cwd=tmp_path).returncode != 0
