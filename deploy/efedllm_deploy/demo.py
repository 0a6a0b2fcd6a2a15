"""The demo: honest inference bought, audited and paid; then a cheating node caught, slashed and avoided."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from eth_utils.address import to_checksum_address

from efedllm.chain.amounts import format_amount
from efedllm.chain.ledger import read_ledger
from efedllm.chain.types import NodeInfo
from efedllm_deploy.client_process import generate
from efedllm_deploy.demo_facts import Transaction, gas_by_operation, node_facts, plain, transactions, verifier_facts
from efedllm_deploy.epochs import EpochDriver, EpochWork
from efedllm_deploy.network import LocalNetwork, Member

PROMPT = "def fibonacci(n):"
MAX_CHEAT_EPOCHS = 3
EXCLUDED, ACTIVE = 0, 2


@dataclass(frozen=True)
class Check:
    """One claim of the demo, and whether the state of the chain confirms it."""

    name: str
    ok: bool
    detail: str


@dataclass
class Purchase:
    """An inference bought from the network, by the client's report."""

    report: dict[str, Any]

    @property
    def route(self) -> list[str]:
        """Addresses of the nodes that worked, in layer order."""
        return [to_checksum_address(hop["node"]) for hop in self.report["route"]]

    @property
    def session(self) -> bytes:
        """Escrow session that paid."""
        return bytes.fromhex(self.report["session_id"][2:])

    @property
    def cost(self) -> int:
        """What it cost, wei."""
        return int(self.report["cost_wei"])


@dataclass
class Cheater:
    """The node that was made to cheat, before and after."""

    address: str
    epochs: int = 0
    caught: bool = False
    trust_before: float = 0.0
    trust_after: float = 0.0
    stake_before: int = 0
    stake_after: int = 0
    slashed: int = 0
    severe: bool = False
    tx: str = ""


def exclusions_end(nodes: Iterable[NodeInfo]) -> int | None:
    """First epoch in which no node is excluded any more; None when none is excluded now."""
    return max((node.jailed_until for node in nodes if node.standing == EXCLUDED), default=None)


def came_out_well(before: NodeInfo, after: NodeInfo, failed: bool, theta: int) -> bool:
    """Whether an honest node's audit went well: it is trusted and active. One that cheated in an earlier demo on this
    chain takes many epochs to get there: its trust must have grown."""
    if failed or after.standing == EXCLUDED:
        return False
    if before.offences:
        return after.trust_ppm > before.trust_ppm
    return after.trust_ppm >= theta and after.standing == ACTIVE


@dataclass
class DemoResult:
    """The results of the demo; see `to_json`."""

    purchases: list[Purchase] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    cheater: Cheater | None = None
    seconds: float = 0.0
    nodes: list[dict[str, object]] = field(default_factory=list)
    verifiers: list[dict[str, object]] = field(default_factory=list)
    done: list[Transaction] = field(default_factory=list)
    ledger: dict[str, object] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Every check holds, and none is missing."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """The one object that `efedllm demo --json` prints. Amounts are wei as text."""
        first = self.purchases[0].report if self.purchases else {}
        cheater = None
        if self.cheater is not None:
            cheater = {
                key: str(value) if key.startswith(("stake", "slashed")) else value
                for key, value in vars(self.cheater).items()
            }
        return {
            "ok": self.ok,
            "tokens": first.get("tokens", 0),
            "text": first.get("text", ""),
            "tokens_per_second": first.get("tokens_per_second", 0.0),
            "first_token_at": first.get("first_token_at", 0.0),
            "seconds": round(self.seconds, 1),
            "nodes": self.nodes,
            "verifiers": self.verifiers,
            "cheater": cheater,
            "gas": gas_by_operation(self.done),
            "transactions": [plain(item) for item in self.done],
            "ledger_check": self.ledger,
            "checks": [vars(check) for check in self.checks],
        }


class Demo:
    """Runs on a started LocalNetwork. `say` is told what happens; with `show` the text streams to the terminal."""

    def __init__(self, network: LocalNetwork, say: Callable[[str], None], *, show: bool, max_tokens: int) -> None:
        self._network = network
        self._chain = network.chain
        self._say = say
        self._show = show
        self._max_tokens = max_tokens
        self._driver = EpochDriver(network.chain, network.clock, say)
        self._paid: dict[bytes, int] = defaultdict(int)
        self.result = DemoResult()

    async def run(self) -> DemoResult:
        """Run both rounds and collect the results. Raises EfedError when an expected event does not happen."""
        started = time.monotonic()
        await self._honest_round()
        await self._cheating_round()
        await self._facts()
        self.result.seconds = time.monotonic() - started
        return self.result

    def _check(self, name: str, ok: bool, detail: str = "") -> None:
        self.result.checks.append(Check(name, ok, detail))

    async def _buy(self, prompt: str, **how: Any) -> Purchase:
        report = await generate(self._network, prompt, self._max_tokens, show=self._show, **how)
        purchase = Purchase(report)
        self.result.purchases.append(purchase)
        self._paid[purchase.session] += purchase.cost
        self._say(
            f"{report['tokens']} tokens, {report['tokens_per_second']:.0f} a second, the first after "
            f"{report['first_token_s']:.2f} s, for {format_amount(purchase.cost)}, by {self._names(purchase.route)}"
        )
        return purchase

    async def _audit(self, epoch: int, purchases: list[Purchase]) -> None:
        nodes = frozenset(node for purchase in purchases for node in purchase.route)
        paid = {purchase.session: self._paid[purchase.session] for purchase in purchases}
        await self._driver.run(EpochWork(epoch, nodes, paid))

    def _names(self, addresses: list[str]) -> str:
        known = {member.address: member.name for member in self._network.nodes}
        return " > ".join(known.get(address, address) for address in addresses)

    # --- round 1 ---

    async def _honest_round(self) -> None:
        # A seat taken in one epoch counts from the next one on.
        epoch = await self._driver.start_next_epoch()
        free = exclusions_end((await self._infos()).values())
        if free is not None:
            self._say(f"A node that cheated in an earlier demo is excluded until epoch {free}: going there.")
            epoch = await self._driver.start_epoch(free)
        before = await self._infos()
        seats = await self._chain.contracts.seat_registry.seats_of(epoch)
        self._check("verifiers seated", len(seats) == len(self._network.verifiers), f"{len(seats)} seats")
        self._say(f"Round 1, epoch {epoch}: the wallet {self._network.wallet.address} buys two inferences.")
        first = await self._buy(PROMPT)
        second = await self._buy("class Stack:\n    def __init__(self", avoid=first.route)
        for purchase in (first, second):
            report = purchase.report
            self._check(
                "inference served",
                report["tokens"] > 0 and report["receipts_ok"] and len(report["receipts"]) == len(purchase.route),
                f"{report['tokens']} tokens by {self._names(purchase.route)}, {len(report['receipts'])} receipts",
            )
        everyone = {member.address for member in self._network.nodes}
        self._check("every node got work", everyone == {*first.route, *second.route})
        self._say("The epoch: batches, seed, audits, verdicts, pay.")
        await self._audit(epoch, [first, second])
        failures = await self._chain.history("VerifierCommittee", "NodeFailed")
        failed = {event.args["node"] for event in failures if event.args["epoch"] == epoch}
        theta, after = await self._theta(), await self._infos()
        for member in self._network.nodes:
            node = member.address
            self._check(
                f"{member.name} passed its audit",
                came_out_well(before[node], after[node], node in failed, theta),
                f"trust {after[node].trust_ppm / 1e6:.3f}, standing {after[node].standing}",
            )
        claims = await self._chain.history("RewardPool", "RewardClaimed")
        paid = {event.args["account"] for event in claims if event.args["epoch"] == epoch}
        # Nodes on probation live on fees alone.
        working = {node for node in everyone if after[node].standing == ACTIVE} | set(seats)
        self._check("nodes and verifiers were rewarded", working <= paid, f"{len(paid & working)} of {len(working)}")

    async def _infos(self) -> dict[str, NodeInfo]:
        return {member.address: await self._chain.node(member.address) for member in self._network.nodes}

    async def _theta(self) -> int:
        return (await self._chain.contracts.verifier_committee.params()).theta

    # --- round 2 ---

    async def _cheating_round(self) -> None:
        route = self.result.purchases[0].route
        member = next(node for node in self._network.nodes if node.address == route[0])
        before = await self._chain.node(member.address)
        cheater = Cheater(
            member.address,
            trust_before=before.trust_ppm / 1e6,
            stake_before=before.stake_active + before.stake_unbonding,
        )
        self.result.cheater = cheater
        self._say(f"Round 2: {member.name} {member.address} restarts with falsified weights.")
        await self._network.stop_member(member)
        await self._network.start_node(member, module="efedllm_deploy.adversary")
        while not cheater.caught and cheater.epochs < MAX_CHEAT_EPOCHS:
            await self._cheat_once(member, route, cheater)
        after = await self._chain.node(member.address)
        self._check_caught(cheater, after, await self._theta())
        self._say("The next request chooses its route itself.")
        last = await self._buy(PROMPT)
        self._check("the next request avoids the cheater", member.address not in last.route, self._names(last.route))

    async def _cheat_once(self, member: Member, route: list[str], cheater: Cheater) -> None:
        # A fresh epoch, so that the audit sees only the cheat.
        epoch = await self._driver.start_next_epoch()
        cheater.epochs += 1
        purchase = await self._buy(PROMPT, route=route)
        await self._audit(epoch, [purchase])
        for event in await self._chain.history("VerifierCommittee", "NodeFailed"):
            if event.args["node"] == member.address and event.args["epoch"] == epoch:
                cheater.slashed += event.args["slashed"]
                cheater.severe = event.args["severe"]
                cheater.tx = event.tx_hash
        info = await self._chain.node(member.address)
        cheater.trust_after = info.trust_ppm / 1e6
        cheater.stake_after = info.stake_active + info.stake_unbonding
        cheater.caught = bool(cheater.tx) and info.standing == EXCLUDED and cheater.slashed > 0

    def _check_caught(self, cheater: Cheater, info: NodeInfo, theta: int) -> None:
        self._check("the cheater failed its audit", bool(cheater.tx), f"after {cheater.epochs} epoch")
        self._check(
            "its trust fell below theta",
            info.trust_ppm < theta,
            f"{cheater.trust_before:.3f} -> {info.trust_ppm / 1e6:.3f}, theta {theta / 1e6:.3f}",
        )
        self._check("it is excluded", info.standing == EXCLUDED, f"until epoch {info.jailed_until}")
        lost = cheater.stake_before - cheater.stake_after
        self._check("its stake was slashed", lost == cheater.slashed > 0, format_amount(lost))

    # --- facts ---

    async def _facts(self) -> None:
        chain, result = self._chain, self.result
        names = {member.address: member.name for member in self._network.nodes}
        result.nodes = [plain(item) for item in await node_facts(chain, names)]
        names = {member.address: member.name for member in self._network.verifiers}
        result.verifiers = [plain(item) for item in await verifier_facts(chain, names)]
        result.done = await transactions(chain)
        ledger = await read_ledger(chain)
        wei = ("minted", "burned", "supply", "in_wallets", "vault", "escrow")
        result.ledger = {
            "ok": ledger.ok,
            **{name: str(getattr(ledger, name)) for name in wei},
            "problems": ledger.problems,
        }
        self._check("every EFED is accounted for, to the wei", ledger.ok, "; ".join(ledger.problems))
