"""The result of auditing one node's work of one epoch: its leaves, its verdict, and the report behind the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efedllm.chain.types import BatchInfo
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.taps import chosen_taps, tap_digest
from efedllm.engine.taps import TAP_BYTES
from efedllm_verifier.attestation import NodeVerdict, write_report
from efedllm_verifier.equivocation_search import AuditedCommit
from efedllm_verifier.leaf import Leaf
from efedllm_verifier.rerun import HopResult
from efedllm_verifier.statistic import Outcome
from efedllm_verifier.verdict import leaf_units, pack_verdict, tally, withheld_units

BATCH_WITHHELD = "batch-withheld"


@dataclass(frozen=True)
class AuditTask:
    """What to audit. seed: of the epoch. rate_ppm: share of the leaves to audit, in parts per million."""

    epoch: int
    node: str
    batches: tuple[BatchInfo, ...]
    seed: bytes
    rate_ppm: int


@dataclass(frozen=True)
class LeafReport:
    """One audited leaf, or one unreadable batch (then `leaf` is its root and `index` is -1).

    statistic, mismatch: of the recomputation, None where nothing was computed. bytes_fetched: of boundaries. tap: what
    a passed leaf of an exact model adds to the tap digest, else empty.
    """

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
    tap: bytes = b""

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "outcome": self.outcome.name.lower()}


@dataclass(frozen=True)
class NodeAudit:
    """The result: the verdict to attest, the leaves and the report file behind it, and the audited commits that the
    node signed, for the search for second commits."""

    verdict: NodeVerdict
    leaves: tuple[LeafReport, ...]
    report: Path
    commits: tuple[AuditedCommit, ...] = ()


def report_leaf(
    seq: int, index: int, leaf: Leaf, result: HopResult, *, fee_ref_tokens: int, seed: bytes, seconds: float
) -> LeafReport:
    """The report on leaf `index` of batch `seq`. seconds: time its audit took."""
    fault, statistic = result.fault, result.statistic
    return LeafReport(
        seq=seq,
        index=index,
        leaf=leaf.hash,
        units=leaf_units(leaf.commit.tokens, fee_ref_tokens),
        outcome=result.outcome,
        code="" if fault is None else fault.code,
        detail="" if fault is None else fault.detail,
        job_id=leaf.commit.job_id,
        hop=leaf.commit.hop,
        tokens=leaf.commit.tokens,
        statistic=None if statistic is None else statistic.worst,
        mismatch=None if statistic is None else statistic.mismatch,
        bytes_fetched=result.bytes_fetched,
        seconds=round(seconds, 6),
        tap=chosen_taps(seed, leaf.hash, result.taps, TAP_BYTES) if fault is None and result.taps else b"",
    )


def report_withheld(batch: BatchInfo, rate_ppm: int) -> LeafReport:
    """The report on a batch whose leaves the node does not serve."""
    units = withheld_units(batch.count, rate_ppm)
    return LeafReport(
        batch.seq, -1, batch.root, units, Outcome.FAIL, BATCH_WITHHELD, "no answer with the committed root"
    )


def attested_digest(leaves: Iterable[LeafReport]) -> bytes:
    """The tap digest over a node's audited leaves; zero when a leaf did not pass, or when none is of an exact model.

    A verifier that met no failure has read every sampled leaf of every batch and found the taps under their committed
    roots, so two such verifiers have the same digest. A verifier that met a failure may not have been shown every leaf.
    """
    audited = list(leaves)
    if any(item.outcome is not Outcome.PASS for item in audited):
        return ZERO32
    return tap_digest((item.leaf, item.tap) for item in audited if item.tap)


def conclude(
    task: AuditTask,
    leaves: Sequence[LeafReport],
    commits: Sequence[AuditedCommit],
    *,
    folder: Path,
    verifier: str,
    chain_id: int,
) -> NodeAudit:
    """Add the leaves up to a verdict and write the report durably to `folder`/EPOCH/NODE.json. Raises OSError."""
    verdict = tally((item.units, item.outcome is not Outcome.PASS, item.outcome is Outcome.SEVERE) for item in leaves)
    packed, tap = pack_verdict(verdict), attested_digest(leaves)
    report = {
        "epoch": task.epoch,
        "node": task.node,
        "verifier": verifier,
        "chain_id": chain_id,
        "seed": task.seed,
        "rate_ppm": task.rate_ppm,
        "batches": [{"seq": b.seq, "root": b.root, "count": b.count} for b in task.batches],
        "passed": verdict.passed,
        "failed": verdict.failed,
        "severe": verdict.severe,
        "verdict": packed,
        "tap": tap,
        "leaves": [item.to_json() for item in leaves],
    }
    path = folder / str(task.epoch) / f"{task.node}.json"
    evidence = write_report(path, report)
    return NodeAudit(NodeVerdict(task.node, packed, evidence, tap), tuple(leaves), path, tuple(commits))
