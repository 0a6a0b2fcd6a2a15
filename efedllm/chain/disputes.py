"""Proofs of equivocation: a folder that keeps them on disk, and the transaction that submits one to DisputeGame."""

from __future__ import annotations

import os
from pathlib import Path

from efedllm.chain.client import Chain
from efedllm.chain.deployment import write_json
from efedllm.chain.types import TxResult
from efedllm.commitments.equivocation import Equivocation
from efedllm.errors import ChainError, ConfigError, ProtocolError
from efedllm.wire.body import parse_json

FOLDER = "evidence"
SETTLED = "settled"  # subfolder of cases that need no further transaction

_MAX_BYTES = 1 << 16


def read_proof(path: Path) -> Equivocation:
    """The proof in a file. Raises ConfigError "bad-evidence", and ProtocolError where the file proves nothing."""
    try:
        with path.open("rb") as file:
            value = parse_json(file.read(_MAX_BYTES))
    except OSError as error:
        raise _unreadable(path, f"{error.strerror}.") from error
    except ProtocolError as error:
        raise _unreadable(path, error.message) from error
    try:
        return Equivocation.from_json(value)
    except ProtocolError as error:
        if error.code != "bad-message":
            raise
        raise _unreadable(path, error.message) from error


class EvidenceFolder:
    """One file for each case. Methods block on the disk: call them in a thread. A proof is on disk when `keep`
    returns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, proof: Equivocation) -> Path | None:
        """Write the proof and return its file; None when the case was known."""
        path = self.path / proof.name
        if path.exists() or (self.path / SETTLED / proof.name).exists():
            return None
        write_json(path, proof.to_json())
        _sync(self.path)
        return path

    def open(self) -> list[Path]:
        """Files of cases that are not settled, in order of their names."""
        return sorted(self.path.glob("*.json")) if self.path.is_dir() else []

    def settle(self, path: Path) -> None:
        """Move a case away that needs no further transaction."""
        (self.path / SETTLED).mkdir(exist_ok=True)
        path.replace(self.path / SETTLED / path.name)


async def prove(chain: Chain, proof: Equivocation) -> TxResult:
    """Submit a proof; the sender earns the accuser's share.

    Raises ChainError "wrong-network" for a proof of another deployment, and RevertError AlreadyProven, NothingAtStake
    or NotSignedByNode.
    """
    if proof.domain != chain.efl_domain:
        raise ChainError(
            "wrong-network",
            f"The commitments were signed for contract {proof.domain.contract} of chain {proof.domain.chain_id}.",
            "Pass the --rpc and --deployment of that network.",
        )
    first, second = proof.first, proof.second
    return await chain.contracts.dispute_game.prove_equivocation(
        proof.node, first.commit, first.signature, second.commit, second.signature
    )


def _sync(folder: Path) -> None:
    """Sync a folder: only then a new file name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        "bad-evidence", f"{path} is no evidence: {why}", "Pass a file from the evidence folder of a node or client."
    )
