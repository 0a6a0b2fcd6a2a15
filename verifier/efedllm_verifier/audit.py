"""Auditing one node's work of one epoch: read its batches, draw leaves, audit them, write the report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from efedllm.chain.client import Chain
from efedllm.chain.types import BatchInfo, ModelInfo
from efedllm.engine.protocol import Executor
from efedllm.errors import ModelError, ProtocolError
from efedllm.models.source import is_url
from efedllm_verifier.audit_report import AuditTask, LeafReport, NodeAudit, conclude, report_leaf, report_withheld
from efedllm_verifier.engine_cache import EngineCache
from efedllm_verifier.equivocation_search import AuditedCommit, audited_commit
from efedllm_verifier.fetch import NodeReader, UnavailableError
from efedllm_verifier.leaf import Leaf, LeafFault, Registration, committed_leaves
from efedllm_verifier.leaf_audit import LeafAudit
from efedllm_verifier.lot import is_sampled
from efedllm_verifier.node_directory import NodeDirectory, read_registration
from efedllm_verifier.rerun import HopResult
from efedllm_verifier.statistic import BackendError
from efedllm_verifier.verdict import FEE_REF_TOKENS

# Leaves in work at once: fetching overlaps with computing, memory stays bounded.
_IN_WORK = 3
# Withheld leaves after which a batch is not read further: the verdict is settled, and waiting would cost the epoch.
_WITHHELD_ENOUGH = 3

# Index in its batch, the leaf, and a fault found already.
_Drawn = tuple[int, Leaf, LeafFault | None]
_Audited = tuple[LeafReport, AuditedCommit | None]


class AbstainError(Exception):
    """We cannot judge this node: our weights, backend or tools are at fault, not the node."""


class Auditor:
    """Audits nodes on one chain. Raises AbstainError where we are at fault, ChainError when the chain is unreadable.

    reports: folder of the report files. me: address of this verifier.
    """

    def __init__(
        self,
        chain: Chain,
        reader: NodeReader,
        engines: EngineCache,
        reports: Path,
        me: str,
        fee_ref_tokens: int = FEE_REF_TOKENS,
    ) -> None:
        self._chain = chain
        self._reader = reader
        self._engines = engines
        self._reports = reports
        self._me = me
        self._fee_ref = fee_ref_tokens

    async def audit(self, task: AuditTask) -> NodeAudit:
        """Audit every sampled leaf of the node's batches and write the report."""
        nodes = await NodeDirectory.read(self._chain)
        reports: list[LeafReport] = []
        commits: list[AuditedCommit] = []
        seen: set[tuple[bytes, int]] = set()
        for batch in task.batches:
            leaves = await self._leaves(nodes.party(task.node).endpoint, batch)
            if leaves is None:
                reports.append(report_withheld(batch, task.rate_ppm))
                continue
            drawn: list[_Drawn] = []
            for index, leaf in enumerate(leaves):
                key = (leaf.commit.job_id, leaf.commit.hop)
                fault = LeafFault("duplicate-leaf", "the same hop of the same job is in this epoch's batches twice")
                if is_sampled(task.seed, leaf.hash, task.rate_ppm):
                    drawn.append((index, leaf, fault if key in seen else None))
                seen.add(key)
            if drawn:
                for report, commit in await self._audit_leaves(batch, drawn, nodes, task.seed):
                    reports.append(report)
                    commits += [] if commit is None else [commit]
        finish = partial(conclude, folder=self._reports, verifier=self._me, chain_id=self._chain.chain_id)
        return await asyncio.to_thread(finish, task, reports, commits)

    async def prepare(self, batch: BatchInfo) -> None:
        """Load the weights for a batch before its audit is due. Raises as `audit` does."""
        nodes = await NodeDirectory.read(self._chain)
        registration, model = await read_registration(self._chain, nodes, batch)
        await self._executor(model, registration, nodes)

    async def _leaves(self, endpoint: str, batch: BatchInfo) -> list[Leaf] | None:
        """The leaves under the root on chain; None when the node does not serve them."""
        domain = self._chain.efl_domain

        def take(value: dict[str, Any]) -> list[Leaf] | None:
            try:
                return committed_leaves(value, domain, batch.node, batch.epoch, batch.seq, batch.root, batch.count)
            except ProtocolError:
                return None

        try:
            return await self._reader.batch(endpoint, batch.seq, take)
        except UnavailableError:
            return None

    async def _audit_leaves(
        self, batch: BatchInfo, drawn: Sequence[_Drawn], nodes: NodeDirectory, seed: bytes
    ) -> list[_Audited]:
        """Report and signed commit of each leaf, until too many of them are withheld."""
        registration, model = await read_registration(self._chain, nodes, batch)
        executor = await self._executor(model, registration, nodes)
        limits = self._engines.limits(model)
        leaf_audit = LeafAudit(
            self._chain, self._reader, self._engines, nodes, registration, executor, limits, batch.epoch
        )
        gate = asyncio.Semaphore(_IN_WORK)
        withheld = 0

        async def one(
            index: int, leaf: Leaf, fault: LeafFault | None
        ) -> tuple[LeafReport, AuditedCommit | None] | None:
            nonlocal withheld
            async with gate:
                if withheld >= _WITHHELD_ENOUGH:
                    return None
                started = time.monotonic()
                result = await leaf_audit.check(leaf) if fault is None else HopResult(None, fault)
                withheld += result.fault is not None and result.fault.code == "withheld"
                seconds = time.monotonic() - started
                report = report_leaf(
                    batch.seq, index, leaf, result, fee_ref_tokens=self._fee_ref, seed=seed, seconds=seconds
                )
                return report, audited_commit(leaf, registration, nodes, self._chain.efl_domain)

        tasks = [asyncio.ensure_future(one(*item)) for item in drawn]
        try:
            return [found for found in await asyncio.gather(*tasks) if found is not None]
        except BackendError as error:
            raise AbstainError(str(error)) from error
        finally:
            for item in tasks:
                item.cancel()

    async def _executor(self, model: ModelInfo, registration: Registration, nodes: NodeDirectory) -> Executor:
        mirrors = [*nodes.model_urls, *([model.uri] if is_url(model.uri) else [])]
        try:
            return await self._engines.executor(model, registration.lo, registration.hi, mirrors)
        except (ModelError, BackendError) as error:
            raise AbstainError(str(error)) from error
