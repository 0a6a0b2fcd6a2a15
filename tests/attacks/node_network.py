"""Two real nodes on a real chain, of which the second runs whatever strategy is chosen, and real auditors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efedllm.engine.protocol import Executor
from efedllm_bench.attacks.lab import Lab as AttackLab
from efedllm_bench.cheats.catalog import Attack
from efedllm_bench.cheats.wrapper import Switch
from efedllm_node.app import NodeApp
from efedllm_verifier.audit import LeafReport
from efedllm_verifier.fetch import FetchLimits
from tests.live_network import LiveNetwork
from tests.node.audit_kit import AuditedLab, open_auditor
from tests.node.node_kit import Lab, open_lab
from tests.node.raw_client import RawClient

LAYERS = ((0, 4), (4, 8))
# A node that answers nothing costs an auditor this long, not a minute.
LIMITS = FetchLimits(connect=1.0, total=1.5, attempts=2, pause=0.05, memory=0.0)
WARM: dict[str, Any] = {"temperature_milli": 900, "top_k": 50, "top_p_ppm": 950_000, "seed": b"\x05" * 32}


@dataclass
class NodeNetwork:
    """`switches[hop]` chooses what the node of that hop runs for the jobs that follow."""

    audited: AuditedLab
    switches: list[Switch]
    spent: int = 0

    @property
    def lab(self) -> Lab:
        return self.audited.lab

    @property
    def apps(self) -> list[NodeApp]:
        """The nodes, by hop."""
        return self.lab.apps

    async def job(self, client: RawClient, prompt: Sequence[int], new: int, *, warm: bool) -> bytes:
        """One paid job over both nodes; its id."""
        self.spent += len(prompt) + new
        spec, outcome = await client.generate(prompt, new, self.spent, **(WARM if warm else {}))
        assert None not in outcome.commits
        return spec.job_id

    async def post(self) -> int:
        """Go to the time of posting and post every node's batch; the epoch."""
        return await self.lab.post_batches()

    async def audit(self, epoch: int, app: NodeApp) -> dict[bytes, LeafReport]:
        """Every leaf of the node's batches of the epoch, by job."""
        return {report.job_id: report for report in await self.audit_all(epoch, app)}

    async def audit_all(self, epoch: int, app: NodeApp) -> tuple[LeafReport, ...]:
        """Every leaf of the node's batches of the epoch, in order."""
        return (await self.audited.audit(epoch, app)).leaves


@asynccontextmanager
async def node_network(live: LiveNetwork, attack_lab: AttackLab, home: Path) -> AsyncIterator[NodeNetwork]:
    switches: list[Switch] = []

    def switched(executor: Executor) -> Executor:
        switches.append(Switch(executor))
        return switches[-1]

    async with open_lab(live, attack_lab.published, home) as lab, open_auditor(lab, LIMITS) as audited:
        await lab.start_route(LAYERS, switched)
        await lab.begin_epoch()
        yield NodeNetwork(audited, switches)


def armed(item: Attack, attack_lab: AttackLab, inner: Executor, rows: Any) -> Executor:
    """The strategy over a node's executor. `rows`: what it sent in an earlier job."""
    shop = attack_lab.shop()
    kept = {(inner.lo, inner.hi): rows}
    return item.arm(type(shop)(shop.published, shop.work, shop.profile, kept), inner)
