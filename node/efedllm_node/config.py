"""What a node is told at start, and the bounds it works within."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from efedllm.commitments.hashing import as_h32
from efedllm.errors import ConfigError
from efedllm.settings import Device

Compute = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class NodeLimits:
    """Bounds that protect the node. Times are seconds of this machine: they bound waiting, they decide nothing that
    others check.
    """

    max_jobs: int = 64  # jobs open at once
    max_jobs_per_session: int = 8
    max_context: int = 8192  # positions of one job; the model's own limit applies as well
    max_connections: int = 512
    batch_tokens: int = 320  # positions of one forward pass
    batch_jobs: int = 64  # sequences of one forward pass
    chunk_tokens: int = 256  # positions of one prompt in one forward pass
    starvation_rounds: int = 8  # forward passes a waiting job may be passed over
    job_inbox: int = 4096  # events waiting for one job
    start_timeout: float = 60.0  # from OPEN_JOB to the first work
    stall_timeout: float = 150.0  # without progress of a running job; another hop may be waiting for its voucher
    payment_timeout: float = 60.0  # paused, waiting for a voucher
    client_grace: float = 5.0  # a client gone for this long cancels its jobs
    connect_timeout: float = 10.0  # to reach a neighbour
    drain_timeout: float = 60.0  # for running jobs, after SIGTERM
    duty_timeout: float = 60.0  # for the last batch and settlement, after SIGTERM
    rpc_patience: float = 3.0  # a cached answer is used when the chain takes longer than this


@dataclass(frozen=True)
class Policy:
    """When the node posts, settles and claims. Fractions are of an epoch, amounts wei of EFED."""

    tick: float = 1.0  # seconds between looks at the chain
    post_at: float = 0.70
    post_until: float = 0.92  # later, the transaction may land in the next epoch, where the root is not valid
    max_lag: int = 1  # epochs between a commitment and its batch; auditors refuse older ones
    settle_at: float = 0.70
    settle_stagger: float = 0.02  # per hop, so that neighbours do not settle the same voucher twice
    settle_min: int = 10**9  # less than this is not worth a transaction
    settle_above: int = 10**20  # settled at once when this much is unsettled
    expiry_margin: float = 0.5  # settle this much of an epoch before a session expires
    finalize_at: float = 0.85  # from here on we finalize our own verdict when no verifier did
    claim_lookback: int = 64  # epochs looked at for rewards after a long absence
    keep_epochs: int = 3  # evidence is kept at least this long, and for the challenge window


@dataclass(frozen=True)
class NodeConfig:
    """One node process. `price` is gwei of EFED for 1000 tokens; `stake` wei, staked when less is active."""

    rpc_url: str
    deployment: Path
    keystore: Path
    password: str = field(repr=False)
    home: Path
    models: tuple[str, ...]  # directories or URLs with the published model
    layers: tuple[int, int] | None = None  # from the registration when None
    model_id: bytes | None = None  # from the registration when None
    price: int | None = None  # from the registration when None
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    endpoint: str | None = None  # http://host:port as others reach it
    stake: int | None = None
    credit_tokens: int = 64  # tokens worked ahead of the vouchers, beyond the prompt
    threads: int = 1
    compute: Compute = "float32"  # dtype of a float model; an exact one has its own arithmetic
    device: Device = "cpu"  # of the layers; with "cuda" `ram` is about the GPU's memory
    ram: int | None = None  # bytes for weights, caches and activations; everything is held in memory when None
    rpc_budget: float = 30.0  # seconds a request waits out an outage of the RPC server
    retire: bool = False  # leave the registry when drained
    allow_contract_signers: bool = False  # serve sessions whose signer had code when they opened
    light_keys: bool = False  # cheap key encryption for throw-away local keys
    limits: NodeLimits = NodeLimits()
    policy: Policy = Policy()

    def __post_init__(self) -> None:
        if self.layers is not None and not 0 <= self.layers[0] < self.layers[1]:
            raise ConfigError(
                "bad-layers", f"{self.layers[0]}:{self.layers[1]} is no layer range.", "Use --layers LO:HI."
            )
        if self.model_id is not None:
            as_h32(self.model_id, "model_id")
        if self.price is not None and not 0 <= self.price < 1 << 48:
            raise ConfigError("bad-price", "The price must be 0 or more gwei, below 2^48.", "Check --price.")
        if self.credit_tokens < 1:
            raise ConfigError("bad-credit", "A node must give at least one token of credit.", "Check --credit-tokens.")
        if not 0 <= self.listen_port < 1 << 16:
            raise ConfigError("bad-listen", f"{self.listen_port} is no port.", "Use --listen HOST:PORT.")
