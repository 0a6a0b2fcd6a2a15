"""What the demo reads back from the chain: pay, slashes, gas. Nothing here is taken from the programs' own words."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import asdict, dataclass

from efedllm.chain import Chain, ChainEvent

# Event -> the operation whose transaction emits it.
OPERATIONS = {
    ("ModelRegistry", "ModelRegistered"): "publish model",
    ("NodeRegistry", "NodeRegistered"): "register node",
    ("SeatRegistry", "SeatTaken"): "take seat",
    ("StakeVault", "Staked"): "stake",
    ("SessionEscrow", "Deposited"): "deposit",
    ("SessionEscrow", "SessionOpened"): "open session",
    ("CommitmentLog", "BatchPosted"): "post batch",
    ("SessionEscrow", "Settled"): "settle",
    ("SeatRegistry", "SeedArmed"): "arm seed",
    ("SeatRegistry", "SeedFixed"): "fix seed",
    ("VerifierCommittee", "Committed"): "commit verdicts",
    ("VerifierCommittee", "Revealed"): "reveal verdicts",
    ("VerifierCommittee", "TrustUpdated"): "finalize",
    ("VerifierCommittee", "VerifierJudged"): "judge verifier",
    ("RewardPool", "Weighed"): "weigh",
    ("RewardPool", "RewardClaimed"): "claim reward",
    ("SessionEscrow", "FeesWithdrawn"): "withdraw fees",
}


@dataclass(frozen=True)
class Transaction:
    """One mined transaction of the demo."""

    operation: str
    hash: str
    block: int
    gas: int


async def transactions(chain: Chain, from_block: int = 0) -> list[Transaction]:
    """The network's transactions since a block, in chain order, by what they did."""
    contracts = sorted({contract for contract, _ in OPERATIONS})
    histories = await asyncio.gather(*(chain.history(contract) for contract in contracts))
    named: dict[str, tuple[str, ChainEvent]] = {}
    for event in sorted((e for events in histories for e in events), key=lambda e: (e.block, e.log_index)):
        operation = OPERATIONS.get((event.contract, event.name))
        if operation is not None and event.block >= from_block:
            named.setdefault(event.tx_hash, (operation, event))
    receipts = await asyncio.gather(*(chain.rpc.request("eth_getTransactionReceipt", [tx]) for tx in named))
    return [
        Transaction(operation, tx, event.block, int(receipt["gasUsed"], 16))
        for (tx, (operation, event)), receipt in zip(named.items(), receipts, strict=True)
    ]


def gas_by_operation(done: list[Transaction]) -> dict[str, int]:
    """Mean gas of each operation, rounded."""
    by_name: dict[str, list[int]] = defaultdict(list)
    for item in done:
        by_name[item.operation].append(item.gas)
    return {name: round(sum(values) / len(values)) for name, values in by_name.items()}


@dataclass(frozen=True)
class DemoNodeFacts:
    """A node at the end. Amounts are wei; `paid` are session fees, `rewarded` epoch rewards."""

    name: str
    address: str
    layers: str
    stake: int
    trust: float
    standing: int
    paid: int
    rewarded: int
    slashed: int


@dataclass(frozen=True)
class DemoVerifierFacts:
    """A verifier at the end. `audits`: epochs in which it revealed verdicts."""

    name: str
    address: str
    stake: int
    audits: int
    rewarded: int
    slashed: int


async def rewards(chain: Chain) -> dict[str, int]:
    """Wei of rewards claimed by each account."""
    totals: dict[str, int] = defaultdict(int)
    for event in await chain.history("RewardPool", "RewardClaimed"):
        totals[event.args["account"]] += event.args["amount"]
    return totals


async def fees(chain: Chain) -> dict[str, int]:
    """Wei of session fees withdrawn by each node."""
    totals: dict[str, int] = defaultdict(int)
    for event in await chain.history("SessionEscrow", "FeesWithdrawn"):
        totals[event.args["node"]] += event.args["amount"]
    return totals


async def node_facts(chain: Chain, names: dict[str, str]) -> list[DemoNodeFacts]:
    """Facts of each node; `names` by address."""
    earned, paid = await rewards(chain), await fees(chain)
    failures = await chain.history("VerifierCommittee", "NodeFailed")
    found = []
    for address, name in names.items():
        info = await chain.node(address)
        found.append(
            DemoNodeFacts(
                name=name,
                address=address,
                layers=f"{info.lo}:{info.hi}",
                stake=info.stake_active + info.stake_unbonding,
                trust=info.trust_ppm / 1e6,
                standing=info.standing,
                paid=paid.get(address, 0) + info.owed,
                rewarded=earned.get(address, 0),
                slashed=sum(event.args["slashed"] for event in failures if event.args["node"] == address),
            )
        )
    return found


async def verifier_facts(chain: Chain, names: dict[str, str]) -> list[DemoVerifierFacts]:
    """Facts of each verifier; `names` by address."""
    earned = await rewards(chain)
    reveals = await chain.history("VerifierCommittee", "Revealed")
    judged = await chain.history("VerifierCommittee", "VerifierJudged")
    found = []
    for address, name in names.items():
        stake = await chain.contracts.stake_vault.stake_of(address)
        found.append(
            DemoVerifierFacts(
                name=name,
                address=address,
                stake=stake.active + stake.unbonding,
                audits=sum(event.args["verifier"] == address for event in reveals),
                rewarded=earned.get(address, 0),
                slashed=sum(event.args["slashed"] for event in judged if event.args["verifier"] == address),
            )
        )
    return found


def plain(facts: DemoNodeFacts | DemoVerifierFacts | Transaction) -> dict[str, object]:
    """As JSON; wei as decimal text, because JSON numbers are not exact that far."""
    return {
        key: str(value) if key in ("stake", "paid", "rewarded", "slashed") else value
        for key, value in asdict(facts).items()
    }
