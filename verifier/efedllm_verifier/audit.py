"""Auditing one node's work of one epoch: read its batches, sample leaves, recompute them, write the report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from efedllm.chain.client import Chain
from efedllm.chain.types import BatchInfo, ModelInfo
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, as_dtype, itemsize
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import HopCommit, SignedCommit
from efedllm.commitments.signing import is_signed_by
from efedllm.commitments.taps import chosen_taps, tap_digest
from efedllm.engine.protocol import Executor
from efedllm.engine.taps import TAP_BYTES
from efedllm.errors import ModelError, ProtocolError
from efedllm.models.source import is_url
from efedllm_verifier.attestation import NodeVerdict, write_report
from efedllm_verifier.chain_view import endpoints
from efedllm_verifier.engine_cache import EngineHouse
from efedllm_verifier.equivocation_search import Sighting
from efedllm_verifier.fetch import NodeReader, UnavailableError, base_url
from efedllm_verifier.leaf import Fault, Leaf, Registration, check_leaf, committed_leaves
from efedllm_verifier.lot import FEE_REF_TOKENS, is_sampled, leaf_units, pack_verdict, tally, withheld_units
from efedllm_verifier.neighbour_checks import Party, check_inputs, check_outputs
from efedllm_verifier.rerun import HopResult, rerun
from efedllm_verifier.statistic import BackendError, Limits, Outcome

BATCH_WITHHELD = "batch-withheld"
# Leaves in work at once: fetching overlaps with computing, memory stays bounded.
_IN_WORK = 3
# Withheld leaves after which a batch is not read further: the verdict is settled, and waiting would cost the epoch.
_WITHHELD_ENOUGH = 3


class AbstainError(Exception):
    """We cannot judge this node: our weights, backend or tools are at fault, not the node."""


@dataclass(frozen=True)
class AuditTask:
    """seed: of the epoch. rate_ppm: share of the leaves to audit."""

    epoch: int
    node: str
    batches: tuple[BatchInfo, ...]
    seed: bytes
    rate_ppm: int


@dataclass(frozen=True)
class LeafReport:
    """One audited leaf, or one unreadable batch (then leaf is its root and index -1)."""

    seq: int
    index: int
    leaf: bytes
    units: int
    outcome: Outcome
    code: str = ""
    detail: str = ""
    job_id: bytes = b""
    hop: int = -1
    tokens: int = 0
    statistic: float | None = None
    mismatch: float | None = None
    bytes_fetched: int = 0
    seconds: float = 0.0
    tap: bytes = b""  # what a passed leaf of an exact model puts into the tap digest

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "outcome": self.outcome.name.lower()}


def attested_digest(leaves: Iterable[LeafReport]) -> bytes:
    """The tap digest over a node's audited leaves; zero when one did not pass, or when none is of an exact model.

    A verifier that met no failure has read every sampled leaf of every batch, and found the taps under their committed
    roots: two such verifiers have the same digest. A verifier that met one may not have been shown every leaf.
    """
    audited = list(leaves)
    if any(item.outcome is not Outcome.PASS for item in audited):
        return ZERO32
    return tap_digest((item.leaf, item.tap) for item in audited if item.tap)


@dataclass(frozen=True)
class NodeAudit:
    """The result: what to attest, the leaves behind it, and those whose neighbours may have been shown another one."""

    verdict: NodeVerdict
    leaves: tuple[LeafReport, ...]
    report: Path
    sightings: tuple[Sighting, ...] = ()


@dataclass(frozen=True)
class _Scope:
    """What the leaves of one batch share. `parties`, `paid` and `sightings` fill up as leaves are met."""

    batch: BatchInfo
    registration: Registration
    executor: Executor
    limits: Limits
    endpoints: Mapping[str, str]
    parties: dict[str, Party]
    paid: dict[bytes, bool]
    sightings: list[Sighting]


class Auditor:
    """Audits nodes on one chain. Raises AbstainError where we are at fault, ChainError when the chain is unreadable."""

    def __init__(
        self,
        chain: Chain,
        reader: NodeReader,
        house: EngineHouse,
        reports: Path,
        me: str,
        fee_ref_tokens: int = FEE_REF_TOKENS,
    ) -> None:
        self._chain = chain
        self._reader = reader
        self._house = house
        self._reports = reports
        self._me = me
        self._fee_ref = fee_ref_tokens

    async def audit(self, task: AuditTask) -> NodeAudit:
        """Audit every sampled leaf of the node's batches and write the report."""
        known = await endpoints(self._chain)
        reports: list[LeafReport] = []
        sightings: list[Sighting] = []
        seen: set[tuple[bytes, int]] = set()
        for batch in task.batches:
            leaves = await self._leaves(known.get(task.node, ""), batch)
            if leaves is None:
                units = withheld_units(batch.count, task.rate_ppm)
                detail = "no answer with the committed root"
                reports.append(LeafReport(batch.seq, -1, batch.root, units, Outcome.FAIL, BATCH_WITHHELD, detail))
                continue
            sampled: list[tuple[int, Leaf, Fault | None]] = []
            for index, leaf in enumerate(leaves):
                key = (leaf.commit.job_id, leaf.commit.hop)
                fault = Fault("duplicate-leaf", "the same hop stands in this epoch's batches twice")
                if is_sampled(task.seed, leaf.hash, task.rate_ppm):
                    sampled.append((index, leaf, fault if key in seen else None))
                seen.add(key)
            reports += await self._audit_batch(batch, sampled, known, task.seed, sightings)
        return await self._conclude(task, reports, sightings)

    async def prepare(self, batch: BatchInfo) -> None:
        """Have the weights for a batch ready before its audit is due. Raises like `audit`."""
        registration, model = await self._registration(batch)
        await self._executor(model, registration.lo, registration.hi, await endpoints(self._chain))

    async def _conclude(
        self, task: AuditTask, reports: Sequence[LeafReport], sightings: Sequence[Sighting]
    ) -> NodeAudit:
        verdict = tally(
            (item.units, item.outcome is not Outcome.PASS, item.outcome is Outcome.SEVERE) for item in reports
        )
        packed, tap = pack_verdict(verdict), attested_digest(reports)
        report = {
            "epoch": task.epoch,
            "node": task.node,
            "verifier": self._me,
            "chain_id": self._chain.chain_id,
            "seed": task.seed,
            "rate_ppm": task.rate_ppm,
            "batches": [{"seq": b.seq, "root": b.root, "count": b.count} for b in task.batches],
            "passed": verdict.passed,
            "failed": verdict.failed,
            "severe": verdict.severe,
            "verdict": packed,
            "tap": tap,
            "leaves": [item.to_json() for item in reports],
        }
        path = self._reports / str(task.epoch) / f"{task.node}.json"
        evidence = await asyncio.to_thread(write_report, path, report)
        settled = NodeVerdict(task.node, packed, evidence, tap)
        return NodeAudit(settled, tuple(reports), path, tuple(sightings))

    async def _leaves(self, endpoint: str, batch: BatchInfo) -> list[Leaf] | None:
        """The leaves under the root on chain; None when the node does not show them."""
        domain = self._chain.efl_domain
        found: list[Leaf] = []

        def accept(value: dict[str, Any]) -> bool:
            try:
                found[:] = committed_leaves(value, domain, batch.node, batch.epoch, batch.seq, batch.root, batch.count)
            except ProtocolError:
                return False
            return True

        try:
            await self._reader.batch(endpoint, batch.seq, accept)
        except UnavailableError:
            return None
        return found

    async def _audit_batch(
        self,
        batch: BatchInfo,
        sampled: Sequence[tuple[int, Leaf, Fault | None]],
        known: Mapping[str, str],
        seed: bytes,
        sightings: list[Sighting],
    ) -> list[LeafReport]:
        if not sampled:
            return []
        registration, model = await self._registration(batch)
        executor = await self._executor(model, registration.lo, registration.hi, known)
        scope = _Scope(batch, registration, executor, self._house.limits(model), known, {}, {}, sightings)
        gate = asyncio.Semaphore(_IN_WORK)
        withheld = 0

        async def one(index: int, leaf: Leaf, fault: Fault | None) -> LeafReport | None:
            nonlocal withheld
            async with gate:
                if withheld >= _WITHHELD_ENOUGH:
                    return None
                started = time.monotonic()
                fault = fault or check_leaf(
                    leaf, batch.epoch, registration, self._chain.efl_domain, self._chain.escrow_domain
                )
                if fault is None:
                    result, fetched = await self._recompute(leaf, scope)
                else:
                    result, fetched = HopResult(None, fault), 0
                await self._sight(leaf, scope)
                withheld += result.fault is not None and result.fault.code == "withheld"
                return self._report(batch.seq, index, leaf, result, fetched, time.monotonic() - started, seed)

        tasks = [asyncio.ensure_future(one(*item)) for item in sampled]
        try:
            return [report for report in await asyncio.gather(*tasks) if report is not None]
        finally:
            for item in tasks:
                item.cancel()

    def _report(
        self, seq: int, index: int, leaf: Leaf, result: HopResult, fetched: int, seconds: float, seed: bytes
    ) -> LeafReport:
        fault, statistic = result.fault, result.statistic
        return LeafReport(
            seq=seq,
            index=index,
            leaf=leaf.hash,
            units=leaf_units(leaf.commit.tokens, self._fee_ref),
            outcome=result.outcome,
            code="" if fault is None else fault.code,
            detail="" if fault is None else fault.detail,
            job_id=leaf.commit.job_id,
            hop=leaf.commit.hop,
            tokens=leaf.commit.tokens,
            statistic=None if statistic is None else statistic.worst,
            mismatch=None if statistic is None else statistic.mismatch,
            bytes_fetched=fetched,
            seconds=round(seconds, 6),
            tap=chosen_taps(seed, leaf.hash, result.taps, TAP_BYTES) if fault is None and result.taps else b"",
        )

    async def _executor(self, model: ModelInfo, lo: int, hi: int, known: Mapping[str, str]) -> Executor:
        # Nodes of other models fall out by their manifest.
        mirrors = [f"{base}/v1/model" for base in map(base_url, known.values()) if base is not None]
        if is_url(model.uri):
            mirrors.append(model.uri)
        try:
            return await self._house.executor(model, lo, hi, mirrors)
        except (ModelError, BackendError) as error:
            raise AbstainError(str(error)) from error

    async def _registration(self, batch: BatchInfo) -> tuple[Registration, ModelInfo]:
        """The node's registration when it posted the batch."""
        view: Any = await self._chain.call_at("NodeRegistry", "nodeOf", batch.node, block=batch.block)
        model = await self._chain.model(view.modelId)
        registration = Registration(
            node=batch.node,
            signers=await self._signers(batch.node),
            model_id=view.modelId,
            lo=view.lo,
            hi=view.hi,
            shard_root=view.shardRoot,
            layers=model.layers,
            hidden=model.hidden,
            profile=model.profile,
        )
        return registration, model

    async def _signers(self, node: str) -> frozenset[str]:
        """Every key a node ever registered.

        Which one was in force when a job ran is not asked: a neighbour that changes keys between the job and the batch,
        as often as it likes, could otherwise make an honest node look as if nobody had sent it anything.
        """
        events = await self._chain.history("NodeRegistry", "NodeRegistered", "NodeUpdated")
        return frozenset(event.args["signer"] for event in events if event.args["node"] == node)

    async def _recompute(self, leaf: Leaf, scope: _Scope) -> tuple[HopResult, int]:
        """Fetch both boundaries by root, run the hop, check its links; second value is the bytes fetched."""
        assert leaf.terms is not None
        commit, spec, nodes = leaf.commit, leaf.terms.spec, leaf.terms.key.nodes
        if spec.session_id not in scope.paid:
            scope.paid[spec.session_id] = (await self._chain.session(spec.session_id)).status != 0
        if not scope.paid[spec.session_id]:
            return HopResult(None, Fault("unknown-session", "no escrow session pays for this job")), 0
        wire = as_dtype(commit.wire_dtype)
        first, last = commit.hop == 0, commit.hop == len(nodes) - 1
        own = await self._party(nodes[commit.hop], scope)
        # Boundary 0 is the prompt and what the last hop sent back.
        before = None if len(nodes) == 1 else await self._party(nodes[commit.hop - 1], scope)
        after = None if last else await self._party(nodes[commit.hop + 1], scope)
        hidden = scope.registration.hidden
        if commit.tokens > scope.executor.max_positions:
            # Before anything is fetched: the committed number bounds what a source may send us.
            detail = f"{commit.tokens} positions exceed the model's context"
            return HopResult(None, Fault("context-exceeded", detail)), 0
        dtype, dim = (WireDtype.I32, 1) if first else (wire, hidden)
        try:
            inputs = await self._boundary(commit, commit.hop, dtype, dim, [own, before])
            outputs = await self._boundary(commit, commit.hop + 1, wire, hidden, [own, after])
        except UnavailableError as error:
            return HopResult(None, Fault("withheld", str(error))), 0
        try:
            result = await self._house.run(
                partial(rerun, scope.executor, leaf, spec, inputs, outputs, limits=scope.limits)
            )
        except BackendError as error:
            raise AbstainError(str(error)) from error
        fault = result.fault
        if fault is None and before is not None:
            tree = BoundaryTree(commit.job_id, commit.hop, dtype, dim)
            tree.append(inputs)
            start = min(spec.prompt_tokens, tree.length) if first else 0
            if start < tree.length:
                domain = self._chain.efl_domain
                fault = await check_inputs(self._reader, domain, commit, tree.leaves, start, own, before)
        if fault is None and after is not None:
            fault = await check_outputs(self._reader, self._chain.efl_domain, commit, own, after)
        return HopResult(result.statistic, fault, result.taps), len(inputs) + len(outputs)

    async def _sight(self, leaf: Leaf, scope: _Scope) -> None:
        """Remember a leaf that its node signed, with the neighbours that its session names."""
        commit, registration = leaf.commit, scope.registration
        nodes = () if leaf.terms is None else leaf.terms.key.nodes
        hop, domain = commit.hop, self._chain.efl_domain
        if hop >= len(nodes) or nodes[hop] != registration.node:
            return
        if not is_signed_by(commit.digest(domain), leaf.signature, registration.signers):
            return
        previous = nodes[hop - 1] if hop else None
        scope.sightings.append(
            Sighting(
                signed=SignedCommit(commit, leaf.signature),
                node=registration.node,
                own=await self._party(registration.node, scope),
                previous=previous,
                before=None if previous is None else await self._party(previous, scope),
                after=await self._party(nodes[hop + 1], scope) if hop + 1 < len(nodes) else None,
            )
        )

    async def _party(self, node: str, scope: _Scope) -> Party:
        """A node of the session's route by its registration; addresses inside the leaf are not trusted."""
        if node not in scope.parties:
            signers = await self._signers(node)
            scope.parties[node] = Party(scope.endpoints.get(node, ""), signers)
        return scope.parties[node]

    async def _boundary(
        self, commit: HopCommit, boundary: int, dtype: WireDtype, dim: int, holders: Sequence[Party | None]
    ) -> bytes:
        root = commit.in_root if boundary == commit.hop else commit.out_root
        size = commit.tokens * dim * itemsize(dtype)
        accept = partial(hashes_to, commit.job_id, boundary, dtype, dim, root)
        return await self._reader.boundary([party.endpoint for party in holders if party], root, size, accept)


def hashes_to(job_id: bytes, boundary: int, dtype: WireDtype, dim: int, root: bytes, payload: bytes) -> bool:
    """Whether the bytes hash to the root; whether they are canonical is for `rerun` to say."""
    tree = BoundaryTree(job_id, boundary, dtype, dim)
    tree.append(payload)
    return tree.root() == root
