"""What the chain says of nodes, for `efedllm node status`."""

from __future__ import annotations

import asyncio
from typing import Any

from rich.console import Console
from rich.table import Table

from efedllm.chain import Chain, ChainTime, format_amount
from efedllm.chain.types import NodeInfo
from efedllm.commitments.eip712 import to_hex
from efedllm_node.epoch.rewards import claimable_epochs

STATUS = {0: "not registered", 1: "active", 2: "paused", 3: "retired"}
STANDING = {0: "excluded", 1: "probation", 2: "active"}


async def status_of(chain: Chain, address: str, time: ChainTime, raw: bool) -> dict[str, Any]:
    """Registration, stake, trust and earnings of a node; see `describe`. Needs no account. Raises ChainError."""
    info, stake, rewards = await asyncio.gather(
        chain.node(address), chain.contracts.stake_vault.stake_of(address), claimable_epochs(chain, time, address)
    )
    return describe(info, time.epoch, sum(rewards.values()), stake.ready_at, raw)


def describe(info: NodeInfo, epoch: int, rewards: int, ready_at: int, raw: bool) -> dict[str, Any]:
    """A node's state for people, or with `raw` for programs (wei as decimal text)."""

    def money(wei: int) -> str:
        return str(wei) if raw else format_amount(wei)

    registered = info.status != 0
    return {
        "address": info.address,
        "status": STATUS[info.status],
        "model_id": to_hex(info.model_id) if registered else None,
        "layers": f"{info.lo}:{info.hi}" if registered else None,
        "price_per_ktok_gwei": info.price_per_ktok if registered else None,
        "endpoint": info.endpoint if registered else None,
        "signer": info.signer if registered else None,
        "stake": money(info.stake_active),
        "unbonding": money(info.stake_unbonding),
        "withdrawable_at": ready_at if info.stake_unbonding else None,
        "trust": info.trust_ppm / 1e6,
        "standing": STANDING[info.standing],
        "offences": info.offences,
        "excluded_until_epoch": info.jailed_until if info.jailed_until > epoch else None,
        "fees": money(info.owed),
        "rewards": money(rewards),
        "epoch": epoch,
    }


def show_all(nodes: list[dict[str, Any]], epoch: int) -> None:
    """One row for each node of a local network."""
    console = Console(highlight=False)
    console.print(f"epoch {epoch}; fees and rewards are what can be taken now")
    table = Table(box=None, padding=(0, 1))
    for column in ("name", "address", "layers", "status"):
        table.add_column(column, no_wrap=True)
    for column in ("stake", "trust", "fees", "rewards"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in nodes:
        address = node["address"] if console.width >= 120 else f"{node['address'][:8]}…{node['address'][-4:]}"
        # An active node's standing says more than that it is active.
        state = node["standing"] if node["status"] == "active" else node["status"]
        money = (node["stake"], f"{node['trust']:.3f}", node["fees"], node["rewards"])
        table.add_row(node["name"], address, node["layers"] or "-", state, *(m.removesuffix(" EFED") for m in money))
    console.print(table)
