"""Two real nodes on a real chain, of which the second runs whatever strategy is chosen, and real auditors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.attacks.lab import Lab as AttackLab
from bench.attacks.strategies import Attack
from bench.attacks.wrapped import Switch
from efedllm.chain.types import BatchInfo
from efedllm.commitments.hashing import keccak
from efedllm.engine.protocol import Executor
from node.app import NodeApp
from tests.live_network import LiveNetwork
from tests.node.node_kit import Lab
from tests.node.raw_client import RawClient
from verifier.audit import Auditor, AuditTask, LeafReport
from verifier.fetch import FetchLimits, NodeReader
from verifier.weights import EngineHouse

LAYERS = ((0, 4), (4, 8))
SEED = keccak(b"seed of the epoch")
ALL = 1_000_000
# A node that answers nothing costs an auditor this long, not a minute.
LIMITS = FetchLimits(connect=1.0, total=1.5, attempts=2, pause=0.05, memory=0.0)
WARM: dict[str, Any] = {"temperature_milli": 900, "top_k": 50, "top_p_ppm": 950_000, "seed": b"\x05" * 32}


@dataclass
class NodeNetwork:
    """`switches[hop]` chooses what the node of that hop runs for the jobs that follow."""

    lab: Lab
    apps: list[NodeApp]
    switches: list[Switch]
    reader: NodeReader
    auditors: tuple[Auditor, Auditor]
    spent: int = 0

    @property
    def auditor(self) -> Auditor:
        return self.auditors[0]

    async def job(self, client: RawClient, prompt: Sequence[int], new: int, *, warm: bool) -> bytes:
        """One paid job over both nodes; its id."""
        self.spent += len(prompt) + new
        spec, outcome = await client.generate(prompt, new, self.spent, **(WARM if warm else {}))
        assert None not in outcome.commits
        return spec.job_id

    async def post(self) -> int:
        """Go to the time of posting and post every node's batch; the epoch."""
        epoch = (await self.lab.chain.now()).epoch
        await self.lab.live.clock(self.lab.chain).skip_to(epoch, 0.72)
        for app in self.apps:
            await app.duties.tick()
            await app.duties.tick()
        return epoch

    async def batches(self, epoch: int, app: NodeApp) -> tuple[BatchInfo, ...]:
        return tuple(batch for batch in await self.lab.chain.batches(epoch) if batch.node == app.address)

    async def audit(self, epoch: int, app: NodeApp) -> dict[bytes, LeafReport]:
        """Every leaf of the node's batches of the epoch, by job."""
        return {report.job_id: report for report in await self.audit_all(epoch, app)}

    async def audit_all(self, epoch: int, app: NodeApp) -> tuple[LeafReport, ...]:
        """Every leaf of the node's batches of the epoch, in order."""
        task = AuditTask(epoch, app.address, await self.batches(epoch, app), SEED, ALL)
        return (await self.auditor.audit(task)).leaves


@asynccontextmanager
async def node_network(live: LiveNetwork, attack_lab: AttackLab, home: Path) -> AsyncIterator[NodeNetwork]:
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(await live.connect())
        snapshot = await chain.rpc.request("evm_snapshot")
        await live.clock(chain).mine()
        lab = await Lab.make(live, chain, attack_lab.published, home)
        stack.push_async_callback(lab.close)
        switches: list[Switch] = []

        def switched(executor: Executor) -> Executor:
            switches.append(Switch(executor))
            return switches[-1]

        apps = [await lab.start(hop + 1, layers, switched) for hop, layers in enumerate(LAYERS)]
        epoch = (await chain.now()).epoch + 1
        await live.clock(chain).skip_to(epoch, 0.01)
        for app in apps:
            await app.desk.shop.clock.refresh()
        reader = await stack.enter_async_context(NodeReader(LIMITS))
        house = EngineHouse(home / "house", [str(attack_lab.published)], 1 << 30)
        stack.callback(house.close)
        first, second = (
            Auditor(chain, reader, house, home / f"reports-{index}", live.account(index).address) for index in (9, 8)
        )
        yield NodeNetwork(lab, apps, switches, reader, (first, second))
        await chain.rpc.request("evm_revert", [snapshot])


def armed(item: Attack, attack_lab: AttackLab, inner: Executor, rows: Any) -> Executor:
    """The strategy over a node's executor. `rows`: what it sent in an earlier job."""
    shop = attack_lab.shop()
    kept = {(inner.lo, inner.hi): rows}
    return item.arm(type(shop)(shop.published, shop.work, shop.profile, kept), inner)
