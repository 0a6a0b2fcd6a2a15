"""What a verifier is told at start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from efedllm.errors import ConfigError
from efedllm.settings import Device
from efedllm_verifier.plan import DEFAULT_TIMING, Timing
from efedllm_verifier.verdict import FEE_REF_TOKENS


@dataclass(frozen=True)
class VerifierConfig:
    """One verifier process. `stake`: wei of EFED, staked when less is active; None stakes what a seat needs."""

    rpc_url: str
    deployment: Path
    keystore: Path
    password: str = field(repr=False)
    home: Path
    models: tuple[str, ...] = ()  # directories or URLs with published models, tried before the nodes
    stake: int | None = None
    listen: tuple[str, int] | None = None  # where /metrics and /healthz are served
    poll: float = 1.0  # seconds between looks at the chain
    cache_bytes: int = 8 << 30  # weights held in memory
    ram: int | None = None  # bytes for the one engine then held: weights, caches and activations
    device: Device = "cpu"  # of causal models; with "cuda" `ram` is about the GPU's memory
    fee_ref_tokens: int = FEE_REF_TOKENS
    rpc_budget: float = 30.0  # seconds an RPC outage is waited out
    timing: Timing = DEFAULT_TIMING

    def __post_init__(self) -> None:
        if self.poll <= 0 or self.cache_bytes < 1 or self.fee_ref_tokens < 1:
            raise ConfigError("bad-settings", "--poll and --cache must be above 0.", "Leave them out for the defaults.")


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT, port 0 for any free one. Raises ConfigError "bad-listen"."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError("bad-listen", f"{text!r} is no address to listen on.", "Use --listen HOST:PORT.")
    return host.strip("[]"), int(port)
