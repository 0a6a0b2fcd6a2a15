"""The files of a deployment: the finished one, and the state of an unfinished one."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from efedllm.chain.deployment import DeployedContract, Deployment, write_json
from efedllm.errors import ConfigError


class DeployState(BaseModel):
    """What is done so far. `code` and `profile` are fingerprints of the contracts and of the parameters."""

    chain_id: int
    code: str
    profile: str
    genesis: int
    deployer: str
    treasury: str
    contracts: dict[str, DeployedContract] = Field(default_factory=dict)

    @property
    def addresses(self) -> dict[str, str]:
        """Address of each contract that is deployed."""
        return {name: item.address for name, item in self.contracts.items()}


class StateFiles:
    """<out>/<chainId>.json, .partial.json and the deployer's pending transactions."""

    def __init__(self, out: Path, chain_id: int) -> None:
        self.final = out / f"{chain_id}.json"
        self.partial = out / f"{chain_id}.partial.json"
        self._chain_id = chain_id

    def journal(self, address: str) -> Path:
        """Where an account's unfinished transactions are kept."""
        return self.final.with_name(f"{self._chain_id}.{address[2:10]}.pending.json")

    def deployment(self) -> Deployment | None:
        """The finished deployment, None when there is none. Raises ConfigError "bad-deployment"."""
        return Deployment.load(self.final) if self.final.exists() else None

    def set_aside(self, deployment: Deployment) -> None:
        """Keep the file of a chain that no longer exists under another name."""
        self.final.rename(self.final.with_name(f"{self._chain_id}.{deployment.genesis}.old.json"))

    def state(self) -> DeployState | None:
        """The state of an unfinished run, None when there is none. Raises ConfigError "bad-state"."""
        if not self.partial.exists():
            return None
        try:
            return DeployState.model_validate_json(self.partial.read_bytes())
        except ValidationError as error:
            raise ConfigError(
                "bad-state", f"{self.partial} is damaged.", "Delete the file to start the deployment afresh."
            ) from error

    def save_state(self, state: DeployState) -> None:
        """Write the state; called after every transaction."""
        write_json(self.partial, state.model_dump(mode="json"))

    def finish(self, deployment: Deployment) -> None:
        """Write the finished deployment and drop the state."""
        deployment.save(self.final)
        self.partial.unlink(missing_ok=True)
