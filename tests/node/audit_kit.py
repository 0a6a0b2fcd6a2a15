"""A real auditor over the nodes of a lab: it reads their batches on chain and their rows over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from efedllm.commitments.hashing import keccak
from efedllm_node.app import NodeApp
from efedllm_verifier.audit import Auditor
from efedllm_verifier.audit_report import AuditTask, NodeAudit
from efedllm_verifier.engine_cache import EngineCache
from efedllm_verifier.fetch import FetchLimits, NodeReader
from tests.node.node_kit import Lab

SEED = keccak(b"seed of the epoch")
ALL = 1_000_000  # ppm of the leaves


@dataclass(frozen=True)
class AuditedLab:
    """`house`: the auditor's engines, for a test that makes an auditor of its own."""

    lab: Lab
    auditor: Auditor
    house: EngineCache

    async def task(self, epoch: int, app: NodeApp) -> AuditTask:
        """Every leaf of the node's batches of an epoch."""
        return AuditTask(epoch, app.address, await self.lab.batches(epoch, app), SEED, ALL)

    async def audit(self, epoch: int, app: NodeApp) -> NodeAudit:
        return await self.auditor.audit(await self.task(epoch, app))


@asynccontextmanager
async def open_auditor(lab: Lab, limits: FetchLimits, account: int = 9) -> AsyncIterator[AuditedLab]:
    """An auditor in the name of an account, with weights and reports of its own below the lab's directory."""
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(NodeReader(limits))
        house = EngineCache(lab.directory / f"house-{account}", [str(lab.model_dir)], 1 << 30)
        stack.callback(house.close)
        auditor = Auditor(
            lab.chain, reader, house, lab.directory / f"reports-{account}", lab.live.account(account).address
        )
        yield AuditedLab(lab, auditor, house)
