"""The compiled contracts that ship with the package, so that nothing here needs a Solidity compiler."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from efedllm.errors import ConfigError

# Deploy order: each contract only takes addresses of earlier ones.
CONTRACTS = (
    "EfedToken",
    "StakeVault",
    "ModelRegistry",
    "NodeRegistry",
    "SeatRegistry",
    "VerifierCommittee",
    "SessionEscrow",
    "CommitmentLog",
    "RewardPool",
    "DisputeGame",
)

ARTIFACTS = Path(__file__).parent / "artifacts"


@dataclass(frozen=True)
class Artifact:
    """One compiled contract. `bytecode` is the creation code, `deployed_bytecode` has zeros where immutables go."""

    name: str
    abi: list[dict[str, Any]]
    bytecode: str
    deployed_bytecode: str
    abi_sha256: str
    compiler: str


def load_artifact(name: str, directory: Path = ARTIFACTS) -> Artifact:
    """Read one artifact. Raises ConfigError "no-artifact" when it is missing or unreadable."""
    path = directory / f"{name}.json"
    try:
        raw = json.loads(path.read_text())
        return Artifact(
            name=raw["contractName"],
            abi=raw["abi"],
            bytecode=raw["bytecode"],
            deployed_bytecode=raw["deployedBytecode"],
            abi_sha256=raw["abiSha256"],
            compiler=str(raw["compiler"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            "no-artifact",
            f"The compiled contract {name} cannot be read ({type(error).__name__}: {path.name}).",
            "Run `make contracts`, or reinstall the package.",
        ) from error


@cache
def artifact(name: str) -> Artifact:
    """The packaged artifact of a contract, read once."""
    return load_artifact(name)


def fingerprint() -> str:
    """sha256 over the creation code of every contract: changes when anything that gets deployed changes."""
    digest = hashlib.sha256()
    for name in CONTRACTS:
        digest.update(bytes.fromhex(artifact(name).bytecode.removeprefix("0x")))
    return digest.hexdigest()
