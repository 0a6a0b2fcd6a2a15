"""The demo as a person runs it: everything it claims, read from its JSON, and nothing left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from efedllm.chain.amounts import WEI
from tests.model_fixtures import use_model


@pytest.mark.network
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chain", ["ganache", pytest.param("anvil", marks=pytest.mark.second_chain)])
def test_demo_pays_the_honest_and_catches_the_cheat(tmp_path: Path, default_model: Path, chain: str) -> None:
    home = tmp_path / "demo"
    if chain == "ganache":
        # The other one compresses the model itself.
        use_model(home, default_model)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "efedllm_deploy.demo_cli", "--json", "--max-tokens", "12"),
            *("--chain", chain, "--home", str(home)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["ok"]
    assert (home / "logs" / f"{chain}.log").exists()
    assert [check["name"] for check in result["checks"] if not check["ok"]] == []
    assert result["tokens"] == 12
    assert result["text"]
    assert result["tokens_per_second"] > 0

    assert len(result["nodes"]) == 4
    cheater = result["cheater"]
    assert cheater["caught"]
    assert 1 <= cheater["epochs"] <= 3
    for node in result["nodes"]:
        assert int(node["paid"]) > 0
        assert int(node["rewarded"]) > 0
        if node["address"] == cheater["address"]:
            assert node["trust"] < 0.3
            assert node["standing"] == 0
            assert int(node["slashed"]) == 40 * WEI
            assert int(node["stake"]) == 160 * WEI
        else:
            assert node["trust"] >= 0.3
            assert (int(node["slashed"]), int(node["stake"])) == (0, 200 * WEI)
    assert [int(verifier["slashed"]) for verifier in result["verifiers"]] == [0, 0, 0]
    assert all(verifier["audits"] == 1 + cheater["epochs"] for verifier in result["verifiers"])
    assert all(int(verifier["rewarded"]) > 0 for verifier in result["verifiers"])

    assert result["ledger_check"]["ok"]
    assert int(result["ledger_check"]["burned"]) >= 40 * WEI
    hashes = [item["hash"] for item in result["transactions"]]
    assert len(hashes) == len(set(hashes))
    assert {"open session", "post batch", "settle", "reveal verdicts", "finalize", "claim reward"} <= set(result["gas"])

    running = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(home) not in running
