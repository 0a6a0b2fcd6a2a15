"""First block from which this store is a complete record of what the node signed.

Two commitments for one job cost half the stake. The store keeps the node from signing the second one. A store that was
lost, copied or set back lacks jobs that were signed, and their clients could ask for them again. Therefore the node
takes jobs only in sessions that were opened after the block from which this store is complete.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from efedllm.chain import Chain, Deployment
from efedllm.errors import ProtocolError
from efedllm.logs import get_logger
from efedllm_node.storage.records import OriginRecord
from efedllm_node.storage.store import NodeStore


@dataclass(frozen=True)
class Found:
    """What a node finds when it starts.

    `known`: the origin in the store, None when it has none for this network; `file`: inode number of the store's file;
    `store_seq`, `chain_seq`: number of the next batch by store and by chain; `head`: the newest block.
    """

    known: OriginRecord | None
    file: str
    store_seq: int
    chain_seq: int
    head: int


def doubt(found: Found) -> str:
    """Why the store may be incomplete; empty when it is complete."""
    if found.known is None:
        return "it is new"
    if found.file != found.known.file:
        return "its file is a copy, or was put back"
    if found.chain_seq > found.store_seq:
        return f"batch {found.chain_seq - 1} is on chain and not in it"
    return ""


def origin(found: Found) -> OriginRecord:
    """The origin to keep: the known one, or the newest block when the store may be incomplete."""
    if found.known is not None and not doubt(found):
        return found.known
    return OriginRecord(found.head, found.file)


def network_name(deployment: Deployment) -> str:
    """Name of the network that commitments are signed for: a signature counts in one network only."""
    return f"{deployment.chain_id} {deployment.genesis} {deployment.address('CommitmentLog').lower()}"


async def establish(chain: Chain, store: NodeStore, path: Path) -> int:
    """The block after which sessions must have been opened; kept in the store. `path`: of its file."""
    network, status = network_name(chain.deployment), await asyncio.to_thread(path.stat)
    found = Found(
        known=await store.origin(network),
        file=str(status.st_ino),
        store_seq=await store.next_seq(),
        chain_seq=await chain.contracts.commitment_log.next_seq(chain.account_address),
        head=await chain.block_number(),
    )
    chosen = origin(found)
    if chosen != found.known:
        await store.set_origin(network, chosen)
        if found.known is not None or found.chain_seq:
            get_logger("origin").warning(
                "the store may lack jobs that were signed: sessions opened before are refused",
                why=doubt(found),
                block=chosen.block,
            )
    return chosen.block


def session_too_old(session_id: bytes) -> ProtocolError:
    """The refusal of a session in which this node may have signed jobs that the store lacks."""
    return ProtocolError(
        "session-too-old",
        f"Session 0x{session_id.hex()} was opened before this node's records begin.",
        "Open a new session.",
    )
