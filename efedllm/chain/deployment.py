"""The deployment file: addresses of a network's contracts. `efedllm deploy` writes it, every program reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efedllm.errors import ConfigError


class DeployedContract(BaseModel):
    """One contract on chain: address (EIP-55), block and transaction that created it."""

    model_config = ConfigDict(frozen=True)

    address: str = Field(pattern=r"^0x[0-9a-fA-F]{40}$")
    abi_sha256: str
    block: int
    tx: str


class Deployment(BaseModel):
    """deployments/<chainId>.json. `genesis` and `epoch_length` (seconds) define the epoch clock of every contract."""

    model_config = ConfigDict(frozen=True)

    chain_id: int
    genesis: int
    epoch_length: int = Field(gt=0)
    block: int
    deployer: str
    contracts: dict[str, DeployedContract]
    compiler: str
    profile: str
    # The parameters the network was deployed with, as strings where they are amounts.
    params: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | str) -> Deployment:
        """Read a deployment file. Raises ConfigError "no-deployment" or "bad-deployment"."""
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ConfigError(
                "no-deployment",
                f"There is no deployment file {path}.",
                "Run `efedllm deploy --rpc URL`, or pass --deployment FILE.",
            ) from error
        except (OSError, ValidationError, ValueError) as error:
            raise ConfigError(
                "bad-deployment",
                f"{path} is not a deployment file ({type(error).__name__}).",
                "Pass the file that `efedllm deploy` wrote (deployments/<chainId>.json).",
            ) from error

    def save(self, path: Path) -> None:
        """Write atomically, so that a reader never sees half a file."""
        write_json(path, self.model_dump(mode="json"))

    def address(self, name: str) -> str:
        """Checksum address of a contract. Raises ConfigError "bad-deployment" when the file lacks it."""
        try:
            return self.contracts[name].address
        except KeyError as error:
            raise ConfigError(
                "bad-deployment", f"The deployment has no contract {name}.", "Deploy again with `efedllm deploy`."
            ) from error


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """Replace `path` by pretty JSON in one step (write beside it, then rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as out:
        json.dump(value, out, indent=2, sort_keys=True)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
