"""Frozen records that the chain layer returns. Amounts are wei, trust is ppm, prices are gwei per 1000 tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ChainTime:
    """The chain's own clock, from its latest block. `phase` of the running epoch: 0 commit, 1 reveal, 2 tally."""

    block: int
    timestamp: int
    epoch: int
    phase: int
    epoch_start: int
    epoch_length: int

    @property
    def fraction(self) -> float:
        """How much of the epoch has passed, in [0, 1)."""
        return (self.timestamp - self.epoch_start) / self.epoch_length


def chain_time(block: int, timestamp: int, genesis: int, epoch_length: int) -> ChainTime:
    """EpochClock's arithmetic: epochs count from 1 at `genesis`, a third of each is one phase."""
    elapsed = max(0, timestamp - genesis)
    epoch = elapsed // epoch_length + 1
    start = genesis + (epoch - 1) * epoch_length
    phase = min(2, 3 * (elapsed - (epoch - 1) * epoch_length) // epoch_length)
    return ChainTime(block, timestamp, epoch, phase, start, epoch_length)


@dataclass(frozen=True)
class ChainEvent:
    """One decoded log. bytes32 are `bytes`, addresses checksum `str`, integers `int`, structs named tuples."""

    contract: str
    name: str
    args: dict[str, Any]
    address: str
    block: int
    tx_hash: str
    log_index: int


@dataclass(frozen=True)
class TxResult:
    """A mined transaction. `status` is always 1: a reverted one raises ChainError instead."""

    hash: str
    gas_used: int
    block: int
    status: int
    events: list[ChainEvent] = field(default_factory=list)

    def event(self, name: str) -> ChainEvent:
        """The only or first event called `name`; KeyError when the transaction emitted none."""
        for event in self.events:
            if event.name == name:
                return event
        raise KeyError(name)


@dataclass(frozen=True)
class ModelInfo:
    """A registered model, with what its event added: manifest hash, certificate hash, where it is served.

    profile 0 float, 1 exact; `constants_hash` is zero for float, `certificate_hash` zero when there is none.
    """

    model_id: bytes
    owner: str
    weights_root: bytes
    manifest_hash: bytes
    layers: int
    hidden: int
    rank_bps: int
    quant: int
    profile: int
    status: int
    uri: str
    block: int
    constants_hash: bytes = bytes(32)
    certificate_hash: bytes = bytes(32)


@dataclass(frozen=True)
class NodeInfo:
    """A node's registration, stake, trust and unpaid fees. standing: 0 excluded, 1 probation, 2 active."""

    address: str
    signer: str
    lo: int
    hi: int
    price_per_ktok: int
    status: int
    model_id: bytes
    shard_root: bytes
    endpoint: str
    stake_active: int
    stake_unbonding: int
    trust_ppm: int
    standing: int
    jailed_until: int
    offences: int
    owed: int


@dataclass(frozen=True)
class SessionInfo:
    """An escrow session. status 0 none, 1 open, 2 closing, 3 closed.

    `contract_signer`: whether the signer had code when the session opened, so that ERC-1271 counts for its vouchers.
    """

    session_id: bytes
    deposit: int
    settled: int
    closes_at: int
    fee_bps: int
    status: int
    contract_signer: bool = False

    @property
    def remaining(self) -> int:
        """Wei still locked for this session."""
        return self.deposit - self.settled if self.status in (1, 2) else 0


@dataclass(frozen=True)
class VerifierInfo:
    """A seated verifier; `active` when the seat counts in the running epoch."""

    address: str
    stake: int
    active: bool


@dataclass(frozen=True)
class BatchInfo:
    """A batch root that a node posted."""

    node: str
    epoch: int
    seq: int
    root: bytes
    count: int
    block: int
