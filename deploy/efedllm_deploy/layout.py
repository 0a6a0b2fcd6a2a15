"""Which node serves what in a local network: pure functions of the options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from efedllm.chain.amounts import WEI
from efedllm.errors import ConfigError
from efedllm_deploy.bundled import ModelChoice

GWEI_PER_EFED = 10**9


@dataclass(frozen=True)
class NodePlacement:
    """A node's layers [lo, hi) and its price in gwei of EFED per 1000 tokens."""

    lo: int
    hi: int
    price: int


@dataclass(frozen=True)
class NetworkOptions:
    """What to start. `chain`: ganache, anvil, or the RPC address of a running chain. `layout`: one node for each
    placement, instead of `nodes` replicas in two stages.
    """

    home: Path
    chain: str = "ganache"
    nodes: int = 4
    layout: tuple[NodePlacement, ...] = ()
    verifiers: int = 3
    profile: str = "local"
    model: ModelChoice = field(default_factory=ModelChoice)
    keystore: Path | None = None
    password_file: Path | None = None
    node_stake: int = 200 * WEI
    verifier_stake: int = 100 * WEI
    wallet_tokens: int = 1000 * WEI
    processes: bool = True
    epoch_length: int | None = None  # seconds, instead of the profile's
    verifier_poll: float = 1.0  # seconds between a verifier's looks at the chain

    def check(self) -> None:
        """Raises ConfigError "bad-options"."""
        if self.chain not in ("ganache", "anvil") and "://" not in self.chain:
            raise ConfigError(
                "bad-options", f"--chain {self.chain} is not known.", "Use ganache, anvil or http://HOST:PORT."
            )
        if len(self.layout) > 64 or not 0 <= self.nodes <= 64 or not 0 <= self.verifiers <= 64:
            raise ConfigError("bad-options", "Between 0 and 64 nodes and verifiers can be started.", "Use fewer.")


def placements(layers: int, nodes: int) -> list[NodePlacement]:
    """Nodes in two stages, with as many replicas as there are pairs: 4 nodes cover every layer twice.

    The first replica of each stage is the cheapest, so that a client chooses the same route each time by default.
    """
    stages = min(2, nodes, layers)
    bounds = [round(stage * layers / stages) for stage in range(stages + 1)] if stages else []
    return [
        NodePlacement(
            bounds[index % stages], bounds[index % stages + 1], GWEI_PER_EFED * (10 + 2 * (index // stages)) // 10
        )
        for index in range(nodes)
    ]
