"""The committed artifacts and typed classes are what the sources give; the contracts fit on a chain and have the
interface that Python relies on.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from efedllm.chain.artifacts import CONTRACTS
from efedllm.errors import ConfigError
from efedllm_deploy import compile as build

# EIP-170 and EIP-3860, bytes.
MAX_RUNTIME = 24_576
MAX_INITCODE = 49_152

FUNCTIONS = {
    "EfedToken": "mint burn permit nonces cap totalSupply balanceOf transfer approve allowance grantRole MINTER_ROLE",
    "StakeVault": "stake stakeWithPermit setSponsor stakeFor unbond cancelUnbond withdraw slash lock unlock jail"
    " stakeOf totals jailedUntil grantRole SLASHER_ROLE GUARDIAN_ROLE",
    "ModelRegistry": "register deprecate modelOf verifyTensor",
    "NodeRegistry": "register update setEndpoint pause resume retire nodeOf checkRoute isSigner setEntryPaused",
    "SeatRegistry": "takeSeat leaveSeat evictSeat seatCount seatsOf seatNumberOf armSeed fixSeed stir seedOf armedBlock"
    " drawn isDrawn placesOf sizesOf checkSeated terms setTerms grantRole COMMITTEE_ROLE setEntryPaused",
    "VerifierCommittee": "commit reveal finalize judgeVerifier params setParams trustOf trustState standingOf auditRate"
    " tallyOf isFinalized pointsOf totalPoints commitmentOf convict DISPUTE_ROLE"
    " currentEpoch phase epochStart genesis epochLength",
    "SessionEscrow": "deposit depositWithPermit depositFor withdraw balanceOf open openWithSig topUp settle settleMany"
    " settleAndClose closeCooperative requestClose finalizeClose withdrawFees sweepProtocolFees sessionOf sessionIdOf"
    " voucherDigest owedOf workOf volumeOf protocolFees",
    "CommitmentLog": "post nextSeq isCommitted",
    "RewardPool": "weigh claim claimVerifier claimTreasury emissionOf weightOf totalWeight claimable",
    "DisputeGame": "proveEquivocation commitDigest isProven caseIdOf slashBps rewardBps",
}
EVENTS = {
    "StakeVault": "Staked UnbondStarted UnbondCancelled Withdrawn Slashed Locked Unlocked Jailed",
    "ModelRegistry": "ModelRegistered",
    "NodeRegistry": "NodeRegistered NodeUpdated EndpointUpdated NodePaused NodeResumed NodeRetired",
    "SeatRegistry": "SeatTaken SeatLeft SeedArmed SeedFixed TermsScheduled",
    "VerifierCommittee": "Committed Revealed TrustUpdated NodeFailed NodeConvicted NoQuorum"
    " VerifierJudged ParamsScheduled",
    "SessionEscrow": "Deposited Withdrawn SessionOpened ToppedUp Settled CloseRequested SessionClosed FeesWithdrawn"
    " ProtocolFeesBurned",
    "CommitmentLog": "BatchPosted",
    "RewardPool": "Weighed RewardClaimed",
    "DisputeGame": "EquivocationProven",
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    return build.compile_contracts()


def _committed(name: str) -> dict[str, Any]:
    artifact: dict[str, Any] = json.loads((build.ARTIFACTS / f"{name}.json").read_text())
    return artifact


def _names(abi: list[dict[str, Any]], kind: str) -> set[str]:
    return {entry["name"] for entry in abi if entry["type"] == kind}


def test_committed_artifacts_are_what_the_sources_compile_to(compiled: dict[str, dict[str, Any]]) -> None:
    assert build.stale(compiled) == []


def test_only_the_deployable_contracts_have_artifacts() -> None:
    assert {path.stem for path in build.ARTIFACTS.glob("*.json")} == set(CONTRACTS)


@pytest.mark.parametrize("name", CONTRACTS)
def test_artifact_fits_on_a_chain_and_is_consistent(name: str) -> None:
    artifact = _committed(name)
    assert set(artifact) == {"contractName", "abi", "bytecode", "deployedBytecode", "abiSha256", "compiler"}
    assert artifact["contractName"] == name
    assert artifact["compiler"].startswith(f"{build.SOLC_VERSION}+commit.")
    canonical = json.dumps(artifact["abi"], sort_keys=True, separators=(",", ":")).encode()
    assert artifact["abiSha256"] == hashlib.sha256(canonical).hexdigest()
    runtime = bytes.fromhex(artifact["deployedBytecode"].removeprefix("0x"))
    assert 0 < len(runtime) < MAX_RUNTIME
    assert len(runtime) < len(bytes.fromhex(artifact["bytecode"].removeprefix("0x"))) < MAX_INITCODE


@pytest.mark.parametrize("name", CONTRACTS)
def test_abi_has_the_functions_and_events_that_python_uses(name: str) -> None:
    abi = _committed(name)["abi"]
    assert set(FUNCTIONS[name].split()) <= _names(abi, "function")
    assert set(EVENTS.get(name, "").split()) <= _names(abi, "event")


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_custom_error_is_in_the_abi(name: str) -> None:
    abi = _committed(name)["abi"]
    assert _names(abi, "error"), "errors are decoded from the ABI"


def test_check_names_a_stale_artifact_and_leaves_the_file_alone(
    compiled: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    build.write(compiled, tmp_path)
    assert build.stale(compiled, tmp_path) == []
    changed = tmp_path / "artifacts" / "StakeVault.json"
    changed.write_text(changed.read_text().replace('"StakeVault"', '"Other"'))
    (tmp_path / "artifacts" / "EfedToken.json").unlink()
    typed = tmp_path / "contracts.py"
    typed.write_text(typed.read_text().replace("stake_of", "stake_at"))
    found = ["artifacts/EfedToken.json", "artifacts/StakeVault.json", "contracts.py"]
    assert sorted(build.stale(compiled, tmp_path)) == found
    assert "stake_at" in typed.read_text()


def test_check_fails_with_a_hint(
    compiled: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = {**compiled["EfedToken"], "bytecode": "0x"}
    monkeypatch.setattr(build, "compile_contracts", lambda: {**compiled, "EfedToken": other})
    assert build.main(["--check"]) == 1
    assert "artifacts/EfedToken.json" in (message := capsys.readouterr().err)
    assert "python -m efedllm_deploy.compile" in message


def test_compiling_is_deterministic(compiled: dict[str, dict[str, Any]]) -> None:
    assert build.compile_contracts() == compiled


def test_a_missing_import_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "NODE_MODULES", tmp_path)
    with pytest.raises(ConfigError, match="npm install"):
        build.collect_sources()


def test_a_missing_compiler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "SHIM", tmp_path / "absent")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SOLCX_BINARY_PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="npm install"):
        build.find_compiler()


def test_a_source_that_does_not_compile_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**build.collect_sources(), "contracts/Broken.sol": {"content": "contract {"}}
    monkeypatch.setattr(build, "collect_sources", lambda: broken)
    with pytest.raises(ConfigError, match=r"contracts/Broken\.sol"):
        build.compile_contracts()
