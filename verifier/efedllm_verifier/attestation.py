"""The attestation of one verifier for one epoch: its commitment hash, its salt, the canonical report it stands on."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_abi.abi import encode

from efedllm.commitments.hashing import ZERO32, keccak


@dataclass(frozen=True)
class NodeVerdict:
    """What we say about one node: packed verdict (uint16), hash of the report behind it, and a digest.

    tap: the tap digest, zero without an audited leaf of an exact model; for a node with failed leaves the fault digest.
    """

    node: str
    verdict: int
    evidence: bytes
    tap: bytes = ZERO32


@dataclass(frozen=True)
class Attestation:
    """Everything that `reveal` needs. Written to disk before the commitment is sent: without the salt it is lost."""

    epoch: int
    nodes: tuple[str, ...]
    verdicts: tuple[int, ...]
    taps: tuple[bytes, ...]
    evidence: tuple[bytes, ...]
    salt: bytes

    def __post_init__(self) -> None:
        columns = {len(column) for column in (self.nodes, self.verdicts, self.taps, self.evidence)}
        if len(columns) != 1 or len(self.salt) != 32:
            raise ValueError("attestation with unequal columns or a salt that is not 32 bytes")


def prepare(epoch: int, verdicts: list[NodeVerdict], salt: bytes | None = None) -> Attestation:
    """Attestation over `verdicts`, nodes in ascending address order, with a fresh random salt unless one is given."""
    ordered = sorted(verdicts, key=lambda verdict: int(verdict.node, 16))
    return Attestation(
        epoch,
        tuple(verdict.node for verdict in ordered),
        tuple(verdict.verdict for verdict in ordered),
        tuple(verdict.tap for verdict in ordered),
        tuple(verdict.evidence for verdict in ordered),
        secrets.token_bytes(32) if salt is None else salt,
    )


def commitment(attestation: Attestation, chain_id: int, committee: str, verifier: str) -> bytes:
    """keccak256(abi.encode(chainid, committee, epoch, verifier, nodes, verdicts, taps, evidence, salt)), on chain."""
    types = ["uint256", "address", "uint64", "address", "address[]", "uint16[]", "bytes32[]", "bytes32[]", "bytes32"]
    values = [
        chain_id,
        committee,
        attestation.epoch,
        verifier,
        list(attestation.nodes),
        list(attestation.verdicts),
        list(attestation.taps),
        list(attestation.evidence),
        attestation.salt,
    ]
    return keccak(encode(types, values))


def canonical_json(report: Mapping[str, Any]) -> bytes:
    """Sorted keys, no spaces, ASCII; an infinite or undefined number becomes a string, as JSON has none."""
    return json.dumps(_plain(report), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def write_report(path: Path, report: Mapping[str, Any]) -> bytes:
    """Write the canonical report durably (beside, fsync, rename) and return its keccak hash."""
    data = canonical_json(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    return keccak(data)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
