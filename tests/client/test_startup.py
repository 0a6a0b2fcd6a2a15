"""What starting a command imports. How long it takes is measured by `efedllm bench startup`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NEVER = ("torch", "transformers", "safetensors", "web3", "ray", "matplotlib")
# What opens a key, and what that brings.
KEYS = ("eth_account", "eth_keyfile", "py_ecc")
# Libraries of the chain, of stores, of the wire, of models, of terminals.
CHAIN = ("eth_abi", "eth_utils", "coincurve", "Crypto", "pydantic")
NETWORK = ("aiohttp", "sqlalchemy", "aiosqlite", "prometheus_client")
MODEL = ("numpy", "tokenizers", "huggingface_hub")
SHOWN = ("rich", "pygments", "structlog")

PROGRAM = """
import atexit, json, sys
from efedllm_client.cli.main import main

def show():
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)

atexit.register(show)
main(sys.argv[1:])
"""


def imported(folder: Path, *words: str, code: int = 0) -> set[str]:
    """The modules that a command has imported at its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EFEDLLM_")}
    settings = {"EFEDLLM_HOME": str(folder / "home"), "EFEDLLM_RPC_BUDGET": "0.1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr[-2000:]
    modules: list[str] = json.loads(done.stderr.splitlines()[-1])
    return set(modules)


@pytest.mark.parametrize("words", [("--help",), ("--version",)])
def test_help_imports_no_command_and_no_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    found = imported(tmp_path, *words)
    assert found.isdisjoint({*NEVER, *KEYS, *CHAIN, *NETWORK, *MODEL, *SHOWN})
    ours = {name for name in found if name.startswith("efedllm")}
    assert ours <= {
        *("efedllm", "efedllm.errors", "efedllm_client", "efedllm_client.cli", "efedllm_client.cli.main"),
        *("efedllm_bench", "efedllm_deploy", "efedllm_node", "efedllm_verifier"),
    }


@pytest.mark.parametrize(
    "words", [("generate", "--help"), ("chat", "--help"), ("network", "--help"), ("wallet", "balance", "--help")]
)
def test_the_help_of_a_client_command_needs_no_network(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert imported(tmp_path, *words).isdisjoint({*NEVER, *KEYS, *NETWORK, *MODEL, "eth_abi", "eth_utils"})


@pytest.mark.parametrize("command", ["wallet", "generate", "network"])
def test_a_client_command_imports_what_it_runs(tmp_path: Path, command: str) -> None:
    """It opens the wallet and asks a chain that is not there."""
    (tmp_path / "password").write_text("secret")
    wallet = ("--keystore", str(tmp_path / "wallet.json"), "--password-file", str(tmp_path / "password"))
    imported(tmp_path, "wallet", "new", "--light", *wallet)
    deployment = {
        **{"chain_id": 1337, "genesis": 0, "epoch_length": 60, "block": 0, "deployer": "", "compiler": ""},
        **{"contracts": {}, "profile": "local"},
    }
    (tmp_path / "1337.json").write_text(json.dumps(deployment))
    words = {"wallet": ("balance", *wallet), "generate": ("a prompt", *wallet), "network": ()}[command]
    options = ("--rpc", "http://127.0.0.1:1", "--deployment", str(tmp_path / "1337.json"))
    found = imported(tmp_path, command, *words, *options, code=1)
    assert "efedllm.chain.client" in found
    # Opening a wallet brings eth_account's own; who only looks does without it.
    assert found.isdisjoint({*NEVER, *SHOWN, *(KEYS if command == "network" else ())})
    if command == "wallet":
        assert found.isdisjoint({"tokenizers", "huggingface_hub", "efedllm_client.jobs.job"})
