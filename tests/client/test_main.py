"""The `efedllm` command: composing, errors, and that a client needs nothing a node needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from efedllm_client.cli.main import extra_of, missing_module

# Stands in for a machine without the `serve` extra.
WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "safetensors", "huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Refuse())
from efedllm_client.cli.main import main
main(sys.argv[1:])
"""


def efedllm(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty directory, without torch and without settings of this machine."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EFEDLLM_")}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words],
        cwd=cwd,
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), "EFEDLLM_HOME": str(cwd / "home"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("generate", "--help"),
        ("chat", "--help"),
        ("network", "--help"),
        ("wallet", "--help"),
        ("wallet", "withdraw", "--help"),
    ],
)
def test_help_needs_no_torch(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = efedllm(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_help_lists_every_command(tmp_path: Path) -> None:
    shown = efedllm("--help", cwd=tmp_path).stdout
    for name in ("generate", "chat", "network", "wallet", "node", "verifier", "model", "deploy", "up", "demo"):
        assert f"  {name} " in shown


def test_an_expected_failure_is_one_line_and_exit_1(tmp_path: Path) -> None:
    done = efedllm("generate", "hello", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "efedllm up" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_expected_failure_as_json(tmp_path: Path) -> None:
    done = efedllm("generate", "hello", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "no-network"
    assert set(json.loads(done.stdout)["error"]) == {"code", "message", "hint"}


def test_wrong_usage_is_exit_2(tmp_path: Path) -> None:
    assert efedllm("generate", cwd=tmp_path).returncode == 2
    assert efedllm("nonsense", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("amount", ["0", "-1", "one", "1e3", "0.0000000000000000001"])
def test_bad_amounts_are_refused_before_anything_else(tmp_path: Path, amount: str) -> None:
    done = efedllm("wallet", "deposit", "--json", "--", amount, cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "bad-amount"


def test_wallet_new_never_overwrites(tmp_path: Path) -> None:
    first = efedllm("wallet", "new", "--light", "--json", cwd=tmp_path, EFEDLLM_PASSWORD="secret")
    assert first.returncode == 0, first.stderr
    made = json.loads(first.stdout)
    path = Path(made["keystore"])
    assert path == tmp_path / "home" / "wallet.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "secret" not in path.read_text()
    assert made["address"][2:] != made["address"][2:].lower()  # EIP-55
    before = path.read_bytes()
    again = efedllm("wallet", "new", "--light", "--json", cwd=tmp_path, EFEDLLM_PASSWORD="secret")
    assert json.loads(again.stdout)["error"]["code"] == "keystore-exists"
    assert path.read_bytes() == before


def test_a_new_wallet_does_not_take_the_local_networks_password(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "password").write_text("known to everyone")
    (home / "network.json").write_text(json.dumps({"wallet": "w.json", "password_file": str(home / "password")}))
    done = efedllm("wallet", "new", "--light", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["error"]["code"] == "no-password"


def test_a_missing_extra_is_named() -> None:
    assert extra_of("torch") == "serve"
    assert extra_of("solcx") == "contracts"
    assert extra_of("nowhere") is None
    error = missing_module("node", ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    assert error.code == "missing-extra"
    assert 'pip install "efedllm-network[serve]"' in error.hint
